"""The model card of a run: what its heads are, what they are for, and how far they can be trusted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from histoclip_lib.common.files import write_text
from histoclip_lib.common.html import as_typed
from histoclip_lib.data import registry as about
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.methods import OFFLINE_BACKBONE, ROW_LABELS
from histoclip_lib.evaluation.uncertainty import interval_note

LICENCES = {
    "synthetic": "Painted by this software; no licence applies.",
    "folder": "Known to whoever made the folder.",
    "bcss_wsss": "The BCSS images and masks are CC0 1.0, the slides are from TCGA; see the WSSS-Tissue project.",
    "luad_histoseg": "None is stated; ask its authors before any use but research.",
    "pannuke": "CC BY-NC-SA 4.0: attribution, no commercial use, the same terms for what is derived from it.",
}
# What the names of backbones and weights say of the images they were trained on; the first that fits counts.
PRETRAINING = {
    r"conch|plip|quilt|biomedclip|pathclip|pathgen|musk": (
        "Pathology images with text, from publications, textbooks, Twitter or YouTube, depending on the model. **TCGA "
        "images may be among them.**"
    ),
    r"openai": (
        "WIT, 400 million image-text pairs from the web, which OpenAI has not published. **TCGA images may be among "
        "them.**"
    ),
    r"laion|datacomp|commonpool|dfn|metaclip|webli|cc12m|yfcc": (
        "Image-text pairs collected from the web. **TCGA images may be among them.**"
    ),
}
FILES = {
    "cmm_patch.safetensors, cmm_global.safetensors": "the two heads, with their options, classes and backbone",
    "metrics.json": "every number of the table",
    "predictions.parquet": "score and decision of every row, patch and class",
    "split.csv": "which patch was trained on",
    "history.csv": "the course of the training",
}


def write_model_card(path: Path, *args: object, **kwargs: object) -> str:
    """Write `model_card` to a Markdown file, and return its text."""
    text = model_card(*args, **kwargs)
    write_text(path, text)
    return text


def model_card(
    patches: PatchDataset,
    train: np.ndarray,
    val: np.ndarray,
    rows: dict[str, dict],
    *,
    name: str,
    dataset: str,
    backbone: str,
    pretrained: str,
    split: str,
    seed: int,
    views: int,
    training: dict[str, object],
    findings: str = "",
) -> str:
    """Return a card of a run's heads as Markdown, under the headings of Mitchell et al. 2019.

    Parameters
    ----------
    patches : PatchDataset
        The data set.
    train, val : ndarray of int
        Its two parts.
    rows : dict of str to dict
        As in `metrics.json`.
    name, dataset, backbone, pretrained, split, seed, views
        As in the parameter file; any text is shown as it was typed.
    training : dict of str to object
        Options of the head and of its training, by name.
    findings : str
        Markdown that goes below the table: comparisons, calibration.

    References
    ----------
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    weights = f", weights {as_typed(pretrained)}" if pretrained else ""
    options = {**training, "seed": seed, "views": views}
    listed = ", ".join(as_typed(f"{key}: {value}") for key, value in options.items())
    files = "\n".join(
        f"- {', '.join(as_typed(file) for file in names.split(', '))}: {text}" for names, text in FILES.items()
    )
    return f"""# Model card: {as_typed(name)}

## Model details

- **What it is.** Two heads of HistoCLIP (Cross-Modal Matching: a Transformer decoder in which the class names ask and
  the image answers), one on the global embedding, one on the patch tokens, on top of a frozen encoder.
- **Encoder.** {as_typed(backbone)}{weights}.
- **What the encoder has seen.** {pretraining_of(backbone, pretrained)}
- **Options.** {listed}.
- **Licence.** The repository states none for its code; without one, all rights are reserved. The encoder's weights and
  the data have terms of their own.

## Intended use

Research on multi-label classification of H&E patches, on data like that named below. **Not for diagnosis**, nor for any
decision on a patient: it is not a medical device and was never validated as one. Not for whole slides, other stains, or
classes other than these:

{_classes(patches, rows)}

## Factors

Stain, scanner, magnification, hospital and organ change how patches look. Beyond what the data itself holds of them,
none was varied.
{_groups(patches, train, val)}

## Metrics

mAcc is the mean over the classes of the accuracy at sigma >= 0.5. It rewards the common answer, so it means something
beside the rows that look at no image only. mAP and AUROC rank by score; F1 counts what is present.
{interval_note(patches, val)}

## Training and evaluation data

{about(dataset)}

- **Sizes.** {len(train)} patches to train on, {len(val)} to validate on, of {len(patches)}.
- **Split.** {as_typed(split)}: {_split_text(split)}
- **Licence of the data.** {LICENCES[dataset]}
- No patch was held out for a test beyond the validation part. It chose nothing in this run, but whoever picks options
  by its numbers picks with its labels.

## Quantitative analyses

{_results(rows)}

{findings}

## Ethical considerations

{_ethics(dataset)}

## Caveats and recommendations

{_caveats(patches, val, rows, dataset, backbone)}

## Files

{files}
"""


def pretraining_of(backbone: str, pretrained: str) -> str:
    """Say in Markdown what is known of an encoder's training images, and whether TCGA may be among them."""
    if backbone == OFFLINE_BACKBONE:
        return "ImageNet photographs, and text without images. No tissue."
    for pattern, text in PRETRAINING.items():
        if re.search(pattern, f"{backbone} {Path(pretrained).name}", re.IGNORECASE):
            return text
    return (
        "Images that this software does not know. **TCGA images may be among them.** Ask whoever trained the weights."
    )


def _classes(patches: PatchDataset, rows: dict[str, dict]) -> str:
    ours = rows.get("histoclip_patch", {}).get("per_class", {})
    lines = []
    for name, prevalence in zip(patches.classes, patches.prevalence, strict=True):
        line = f"- {as_typed(name)}: present in {prevalence:.0%} of the patches"
        if name in ours:
            precision = ours[name]["ap"]
            line += f"; patch head: accuracy {ours[name]['accuracy']:.3f}, average precision " + (
                "not defined" if precision is None else f"{precision:.3f}"
            )
        lines.append(line)
    return "\n".join(lines)


def _groups(patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> str:
    if patches.groups is None:
        return "Groups (patients or source images) are not known, so how far results differ between them is not either."
    both = len(np.intersect1d(patches.groups[train], patches.groups[val]))
    return (
        f"Groups (patients or source images): {len(np.unique(patches.groups[train]))} to train on, "
        f"{len(np.unique(patches.groups[val]))} to validate on, {both} on both sides."
    )


def _split_text(split: str) -> str:
    return {
        "random": "patches were drawn, so those of one patient may stand on both sides and flatter every number.",
        "grouped": "no group stands on both sides.",
        "given": "the parts that came with the data.",
    }[split]


def _results(rows: dict[str, dict]) -> str:
    lines = ["| row | mAcc | mAP | macro F1 |", "|---|---|---|---|"]
    for name, label in ROW_LABELS.items():
        if name in rows:
            cells = [_with_interval(rows[name], key) for key in ("mAcc", "mAP", "macro_f1")]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "In brackets the 95 % interval."])


def _with_interval(row: dict, key: str) -> str:
    if row.get(key) is None:
        return "—"
    interval = row.get(f"{key}_ci")
    return f"{row[key]:.3f}" + (f" ({interval[0]:.3f} – {interval[1]:.3f})" if interval else "")


def _ethics(dataset: str) -> str:
    if dataset == "synthetic":
        return "No patient stands behind painted patches."
    return (
        "What the patients agreed to is a matter of the data's own terms. Their age, sex and ancestry are not recorded "
        "here, so nobody can say for whom the numbers hold."
    )


def _caveats(patches: PatchDataset, val: np.ndarray, rows: dict[str, dict], dataset: str, backbone: str) -> str:
    lines = []
    ours = rows.get("histoclip_patch", {}).get("mAcc")
    for name in ("majority", "tissue_prior", "linear_probe", "knn", "mlp"):
        if ours is not None and name in rows:
            gap = ours - rows[name]["mAcc"]
            stands = "level with" if abs(gap) < 5e-4 else "above" if gap > 0 else "below"
            lines.append(f"- {ROW_LABELS[name]}: the patch head is {stands} it ({gap:+.3f}).")
    if lines:
        lines.insert(0, "Before using a head, look at what is simpler, in mAcc:\n")
    lines.append("")
    if backbone == OFFLINE_BACKBONE:
        lines.append(f"- {as_typed(OFFLINE_BACKBONE)} is not CLIP. Use a real backbone before concluding anything.")
    if dataset == "synthetic":
        lines.append("- The patches are painted. Nothing here says how a head does on tissue.")
    n_units = len(val) if patches.groups is None else len(np.unique(patches.groups[val]))
    lines.append(
        f"- The validation part has {n_units} {'patches' if patches.groups is None else 'groups'}: other "
        "hospitals may differ more from it than its interval says."
    )
    lines.append(
        "- Validate on patients of your own before you rely on any of it, and choose a threshold for each class."
    )
    return "\n".join(lines)
