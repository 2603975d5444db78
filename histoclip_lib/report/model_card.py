"""The model card of a run: what its heads are, what they are for, and how far they can be trusted."""

from __future__ import annotations

import numpy as np

from histoclip_lib.clip.registry import encoder_entry
from histoclip_lib.common.html import as_typed
from histoclip_lib.common.registry import METHODS
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.registry import DATASETS
from histoclip_lib.evaluation.comparisons import OURS, finding
from histoclip_lib.evaluation.methods import in_table_order, label_of
from histoclip_lib.evaluation.text import p_clause
from histoclip_lib.evaluation.uncertainty import Comparison, interval_note
from histoclip_lib.report.tables import score_text

FILES = {
    "model.safetensors": "the head on patch tokens",
    "config.json": "classes, encoder, preprocessing, thresholds and what the head was trained on",
    "reference.safetensors": "embeddings of training patches, for the out-of-distribution score",
}
USE = """```python
from histoclip_lib import load_model

found = load_model("model").predict(images)  # RGB images, at the resolution of the training patches
found.probabilities, found.fitted, found.ood
```

or `histoclip predict MODEL IMAGES --out DIR`."""
SPLITS = {
    "random": "patches were drawn, so those of one patient may be in several parts and inflate every number.",
    "grouped": "each group is in one part.",
    "given": "the parts that came with the data.",
}


def card_metadata(methods: dict[str, dict], name: str, dataset: str) -> str:
    """Return the front matter that model hubs read, for the `methods` of `metrics.json`."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=DATASETS[dataset].title,
            metric_type=metric,
            metric_value=round(methods[OURS][metric], 4),
        )
        for metric in ("mAcc", "mAP")
        if methods.get(OURS, {}).get(metric) is not None
    ]
    data = ModelCardData(
        license="other",
        license_name="terms-of-the-data-and-the-encoder",
        library_name="histoclip",
        tags=["histopathology", "multi-label-classification", "clip"],
        datasets=[dataset],
        metrics=["accuracy", "f1", "roc_auc"],
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def model_card(
    methods: dict[str, dict],
    patches: PatchDataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    *,
    name: str,
    dataset: str,
    backbone: str,
    pretrained: str,
    split: str,
    seed: int,
    views: int,
    training: dict[str, object],
    against: dict[str, Comparison] | None = None,
    findings: str = "",
) -> str:
    """Return a card of a run's heads as Markdown, under the headings of Mitchell et al. 2019.

    Parameters
    ----------
    methods : dict of str to dict
        As in `metrics.json`.
    patches : PatchDataset
        The data set.
    folds : list of (ndarray, ndarray)
        For each fold the patches to fit on and those held out; a single one without cross-validation.
    name, dataset, backbone, pretrained, split, seed, views
        As in the parameter file; any text is shown as it was typed.
    training : dict of str to object
        Options of the head and of its training, by name.
    against : dict of str to Comparison, optional
        The head compared with each other method, as `comparisons.against_every_method` returns.
    findings : str
        Markdown that goes below the table: comparisons, calibration.

    References
    ----------
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    data, encoder = DATASETS[dataset], encoder_entry(backbone, pretrained)
    generated = not data.needs_folder
    weights = f", weights {as_typed(pretrained)}" if pretrained else ""
    options = {**training, "seed": seed, "views": views}
    val = np.concatenate([held_out for _, held_out in folds])
    train = folds[0][0] if len(folds) == 1 else val
    sizes = f"{len(train)} patches to train on, {len(val)} to validate on, of {len(patches)}."
    protocol = "The numbers come from the validation set, on which no head was trained."
    if len(folds) > 1:
        sizes = f"{len(val)} patches of {len(patches)}, each used for training and held out once."
        protocol = (
            f"The numbers come from a cross-validation of {len(folds)} folds: each patch was predicted by models that "
            "had not seen its fold. The head saved here was then trained on all patches, so these numbers are not its "
            "own."
        )
    listed = ", ".join(as_typed(f"{key}: {value}") for key, value in options.items())
    files = "\n".join(f"- {as_typed(name)}: {text}" for name, text in FILES.items())
    developed = (
        " The head's defaults and the attention map were developed on patches of this data set, so its scores are "
        "optimistic."
        if generated
        else ""
    )
    ethics = (
        "The patches are generated; no patient is behind them."
        if generated
        else "What the patients agreed to follows from the data's own terms. Their age, sex and ancestry are not "
        "recorded here, so nobody can say for whom the numbers hold."
    )
    return f"""# Model card: {as_typed(name)}

## Model details

- **What it is.** The head of HistoCLIP (Cross-Modal Matching: a Transformer decoder whose queries are class embeddings
  and whose keys and values are patch tokens) on top of a frozen encoder.
- **Encoder.** {as_typed(backbone)}{weights}.
- **What the encoder was trained on.** {encoder.pretraining}
- **Options.** {listed}.
- **Licence.** The software is under the MIT licence. The encoder's weights and the data have terms of their own.
  Encoder: {encoder.licence}

## Intended use

Research on multi-label classification of H&E patches, on data like that named below. **Not for diagnosis**, nor for any
decision on a patient: it is not a medical device and was never validated as one. Not for other stains or
magnifications, nor for classes other than these:

{_classes(patches, methods)}

## Factors

Stain, scanner, magnification, hospital and organ change how patches look. They vary only as much as they do in the
data.
{_groups(patches, folds)}

## Metrics

mAcc is the mean over the classes of the accuracy at sigma >= 0.5. It rewards predicting the more frequent label, so
compare it with the methods that ignore the image. mAP and AUROC measure ranking; F1 counts present classes only.
{interval_note(patches, val, len(folds))}

## Training and evaluation data

{data.about}

- **Sizes.** {sizes}
- **Split.** {as_typed(split)}: {SPLITS[split]} {protocol}
- **Licence of the data.** {data.licence}
- There is no further test set. Within this run nothing was chosen on the scored patches; options that are chosen by
  comparing its numbers are.{developed}

## Quantitative analyses

{_results(methods)}

{findings}

## Ethical considerations

{ethics}

## Caveats and recommendations

{_caveats(patches, val, against or {}, as_typed(backbone) if not encoder.is_clip else "", generated)}

## Use

{USE}

{files}
"""


def _classes(patches: PatchDataset, methods: dict[str, dict]) -> str:
    ours = methods.get(OURS, {}).get("per_class", {})
    lines = []
    for name, prevalence in zip(patches.classes, patches.prevalence, strict=True):
        line = f"- {as_typed(name)}: present in {prevalence:.0%} of the patches"
        if name in ours:
            accuracy, precision = (
                "not defined" if ours[name][key] is None else f"{ours[name][key]:.3f}" for key in ("accuracy", "ap")
            )
            line += f"; patch head: accuracy {accuracy}, average precision {precision}"
        lines.append(line)
    return "\n".join(lines)


def _groups(patches: PatchDataset, folds: list[tuple[np.ndarray, np.ndarray]]) -> str:
    if patches.groups is None:
        return "Groups (patients or source images) are not known, so neither is how far results differ between them."
    if len(folds) > 1:
        parts = [np.unique(patches.groups[val]) for _, val in folds]
        names, times = np.unique(np.concatenate(parts), return_counts=True)
        return f"Groups (patients or source images): {len(names)}, {(times > 1).sum()} of them in more than one fold."
    train, val = folds[0]
    both = len(np.intersect1d(patches.groups[train], patches.groups[val]))
    return (
        f"Groups (patients or source images): {len(np.unique(patches.groups[train]))} to train on, "
        f"{len(np.unique(patches.groups[val]))} to validate on, {both} in both parts."
    )


def _results(methods: dict[str, dict]) -> str:
    lines = ["| method | mAcc | mAP | macro F1 |", "|---|---|---|---|"]
    for name in in_table_order(methods):
        own = methods[name]
        cells = [score_text(own.get(key), own.get(f"{key}_ci")) for key in ("mAcc", "mAP", "macro_f1")]
        lines.append(f"| {label_of(name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Brackets hold 95% intervals."])


def _caveats(
    patches: PatchDataset, val: np.ndarray, against: dict[str, Comparison], not_clip: str, generated: bool
) -> str:
    lines = []
    for name, own in against.items():
        if METHODS[name].family in ("uninformative", "baseline"):
            gap = own.macc
            lines.append(f"- {label_of(name)}: the patch head {finding(gap)} it ({gap.value:+.3f}, {p_clause(gap.p)}).")
    if lines:
        note = "Before using the head, compare it with simpler methods in mAcc; p is corrected for all methods:\n"
        lines.insert(0, note)
    lines.append("")
    if not_clip:
        lines.append(f"- {not_clip} is not CLIP. Use a CLIP backbone before concluding anything about CLIP.")
    if generated:
        lines.append("- The patches are generated. Nothing here shows how a head performs on tissue.")
    n_units = len(val) if patches.groups is None else len(np.unique(patches.groups[val]))
    lines.append(
        f"- The numbers rest on {n_units} {'patches' if patches.groups is None else 'groups'}: other hospitals may "
        "differ from them by more than the intervals say."
    )
    lines.append("- Validate on your own patients before you rely on a head, and choose a threshold for each class.")
    return "\n".join(lines)
