"""Explorer of prompts: other words for the classes, and what becomes of cosines and zero-shot rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from ipywidgets import HTML, Button, Combobox, Text, Textarea, VBox
from matplotlib.figure import Figure
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.html import Node, bar, element, picture, table
from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation.metrics import point_metrics
from histoclip_lib.features.encode import ImageFeatures
from histoclip_lib.prompting.sensitivity import MAX_NEW_PROMPTS, LimitedEncoder, TooManyPromptsError
from histoclip_lib.prompting.strategies import MAX_POWER_SET, baseline, one_vs_rest, power_set, top_k
from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary, check_templates, class_embeddings
from histoclip_lib.report.explore.base import BESIDE, STYLE, Explorer, beside, counter, set_quietly, swatch, write
from histoclip_lib.report.explore.tissue import UNREADABLE, resized
from histoclip_lib.report.figures.base import short
from histoclip_lib.report.figures.exploring import patch_cosines

MAX_SAMPLE = 500  # patches on which the rows are scored
STRATEGIES = {"Baseline": baseline, "One-vs-Rest": one_vs_rest, "Power-set": power_set, "Top-k": top_k}


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one choice of words gives for B patches.

    Attributes
    ----------
    words : Vocabulary
        The words.
    cosines : ndarray of shape (B, N)
        With the class embeddings, eq. (2).
    negative : ndarray of shape (B,)
        With the negative prompt.
    rows : dict of str to (Predictions or None)
        Of each strategy; None where it needs more than MAX_NEW_PROMPTS new prompts.
    """

    words: Vocabulary
    cosines: np.ndarray
    negative: np.ndarray
    rows: dict[str, Predictions | None]


def prompts(
    encode: TextEncoder,
    vocabulary: Vocabulary,
    features: ImageFeatures,
    patches: PatchDataset,
    rows: np.ndarray,
    train_prevalence: np.ndarray,
    baseline_rule: str = "sigmoid",
    static: object = None,
) -> Explorer:
    """Return an explorer in which each class can be called by other names, and asked for by other templates.

    A change counts when it is entered, by the return key or by leaving the field. Each distinct prompt is encoded once.

    Parameters
    ----------
    encode : TextEncoder
        Encodes the prompts; what it has encoded it keeps.
    vocabulary : Vocabulary
        The words to start from; synonyms are offered.
    features : ImageFeatures
        Of all patches.
    patches : PatchDataset
        The data set, of N classes.
    rows : ndarray of int
        Patches to look at and to score the strategies on: the validation part. Of more than MAX_SAMPLE, as many at
        even distances.
    train_prevalence, baseline_rule
        As in `zero_shot.score_all`.
    static : Figure or object with `_repr_mimebundle_`, optional
        What a page shows; by default the first patch and its cosines.

    Returns
    -------
    Explorer
        Controls `name 0` to `name N-1`, `templates`, `template`, `negative`, `patch` and `reset`; views `message`,
        `picture`, `cosines` and `rows`.
    """
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, MAX_SAMPLE).astype(int))]
    labels = patches.labels[rows]
    images = functional.normalize(torch.from_numpy(features.pooled.take(rows).astype(np.float32)), dim=-1)
    fields = _word_fields(vocabulary, patches.classes)
    controls = fields | {
        "patch": counter("Patch", len(rows), "Whose cosines are shown"),
        "reset": Button(description="Reset the words", tooltip="The words as the rows of the report use them"),
    }
    views = {"message": HTML(), "picture": HTML(layout=BESIDE), "cosines": HTML(), "rows": HTML()}
    answer = partial(_answer, images, encode, {"rule": baseline_rule, "train_prevalence": train_prevalence})
    reported = answers = answer(vocabulary)

    def ask(_: object = None) -> None:
        nonlocal answers
        try:
            answers = answer(_read_words(fields, vocabulary, patches.classes))
        except HistoCLIPError as error:
            answers = None
            write(views["message"], element("p", element("strong", str(error)), role="alert"))
            write(views["rows"])
        else:
            write(views["message"])
            write(views["rows"], _row_table(answers.rows, reported.rows, labels, patches.classes))
        draw()

    def draw(_: object = None) -> None:
        place = controls["patch"].value - 1
        write(views["picture"], _patch_picture(patches, rows[place]))
        write(views["cosines"], *([] if answers is None else [_cosine_table(answers, patches, rows[place], place)]))

    def reset(_: object) -> None:
        set_quietly({fields[name]: text for name, text in _texts(vocabulary).items()}, ask)

    for field in fields.values():
        field.observe(ask, "value")
    controls["patch"].observe(draw, "value")
    controls["reset"].on_click(reset)
    ask()
    asked = VBox([*fields.values(), controls["reset"]], layout=BESIDE)
    box = VBox(
        [
            beside(asked, VBox([views["message"], views["rows"]])),
            controls["patch"],
            beside(views["picture"], views["cosines"]),
        ]
    )
    return Explorer(box, controls, views, static or _first_patch(reported, patches, rows[0]))


def _answer(images: torch.Tensor, encode: TextEncoder, decide: dict, words: Vocabulary) -> _Answers:
    """Ask for unit images (B, d) in these words; `decide` are the Baseline's options."""
    cosines = images @ class_embeddings(encode, words).cpu().T
    negative = images @ encode([words.negative_prompt])[0].cpu()
    answered: dict[str, Predictions | None] = {}
    for name, strategy in STRATEGIES.items():
        if strategy is power_set and len(words.names) > MAX_POWER_SET:
            answered[name] = None
            continue
        options = decide if strategy is baseline else {}
        try:
            answered[name] = strategy(images, LimitedEncoder(encode, MAX_NEW_PROMPTS), words, **options)
        except TooManyPromptsError:
            answered[name] = None
    return _Answers(words, cosines.numpy(), negative.numpy(), answered)


def _word_fields(vocabulary: Vocabulary, classes: list[str]) -> dict[str, Text]:
    """Return a field for each of the words that can be changed."""
    texts, layout = _texts(vocabulary), {"width": "34em"}
    style = STYLE | {"description_width": "10em"}
    fields: dict[str, Text] = {}
    for k, (name, column) in enumerate(zip(vocabulary.names, classes, strict=True)):
        offered = [name, *(vocabulary.synonyms[k] if k < len(vocabulary.synonyms) else [])]
        fields[f"name {k}"] = Combobox(
            options=offered, description=short(column), tooltip=f"Another name for the class {column}",
            ensure_option=False,
        )  # fmt: skip
    fields["templates"] = Textarea(
        description="Templates", rows=4, tooltip="Those of the Baseline, one a line; {} takes the name"
    )
    fields["template"] = Text(description="One template", tooltip="That of the other strategies; {} takes the name")
    fields["negative"] = Text(description="Negative prompt", tooltip="Says that no class is there")
    for name, field in fields.items():
        field.continuous_update = False
        field.style, field.layout, field.value = style, layout, texts[name]
    return fields


def _texts(vocabulary: Vocabulary) -> dict[str, str]:
    """Return what the fields hold for a vocabulary."""
    names = {f"name {k}": name for k, name in enumerate(vocabulary.names)}
    return names | {
        "templates": "\n".join(vocabulary.templates),
        "template": vocabulary.photo_of,
        "negative": vocabulary.negative_prompt,
    }


def _read_words(fields: dict[str, Text], vocabulary: Vocabulary, classes: list[str]) -> Vocabulary:
    """Return the vocabulary that stands in the fields.

    Raises
    ------
    HistoCLIPError
        If a field is empty or a template has no `{}`.
    """
    texts = {name: field.value.strip() for name, field in fields.items()}
    titles = [f"the name of {column}" for column in classes] + ["Templates", "One template", "Negative prompt"]
    if empty := [title for title, text in zip(titles, texts.values(), strict=True) if not text]:
        raise HistoCLIPError(f"These fields are empty: {', '.join(empty)}. Write something, or reset the words.")
    templates = [line.strip() for line in texts["templates"].splitlines() if line.strip()]
    check_templates(templates, "Templates")
    check_templates([texts["template"]], "One template")
    return replace(
        vocabulary,
        names=[texts[f"name {k}"] for k in range(len(classes))],
        templates=templates,
        photo_of=texts["template"],
        negative_prompt=texts["negative"],
    )


def _row_table(
    rows: dict[str, Predictions | None], reported: dict[str, Predictions | None], labels: np.ndarray, classes: list[str]
) -> Node:
    """Return mAcc and mAP of each strategy in these words, and the change against those reported."""
    lines = []
    for name, predictions in rows.items():
        line = [name]
        for metric in ("mAcc", "mAP"):
            now, before = (
                None if own is None else point_metrics(labels, own, classes)[metric]
                for own in (predictions, reported[name])
            )
            line.append("—" if now is None else f"{now:.3f}")
            line.append("—" if now is None or before is None else f"{now - before:+.3f}")
        lines.append(line)
    caption = f"on {len(labels):,} patches; change against the words of the report"
    if None in rows.values():
        caption += f"; — needs more than {MAX_NEW_PROMPTS} new prompts"
    return table(["", "mAcc", "change", "mAP", "change"], lines, caption)


def _cosine_table(answers: _Answers, patches: PatchDataset, row: int, place: int) -> Node:
    """Return the cosines of one patch, and which classes each strategy chooses there."""
    cosines, low, high = answers.cosines[place], answers.cosines.min(), answers.cosines.max()
    answered = {name: own for name, own in answers.rows.items() if own is not None}
    lines = []
    for k, column in enumerate(patches.classes):
        fraction = float((cosines[k] - low) / max(high - low, 1e-9))
        line = [
            element("span", swatch(k), f" {column}"),
            answers.words.names[k],
            "present" if patches.labels[row, k] else "absent",
            f"{cosines[k]:.3f}",
            bar(fraction, f"cosine {cosines[k]:.3f}, between {low:.3f} and {high:.3f}", 80),
        ]
        lines.append([*line, *("✓" if own.decisions[place, k] else "" for own in answered.values())])
    nothing = ["no class", answers.words.negative_prompt, "", f"{answers.negative[place]:.3f}", ""]
    header = ["class", "called", "truth", "cosine", "", *answered]
    return table(header, [*lines, [*nothing, *("" for _ in answered)]], f"patch {patches.files[row]}")


def _patch_picture(patches: PatchDataset, row: int) -> Node:
    try:
        return picture(resized(patches.image(row)), f"patch {patches.files[row]}")
    except UNREADABLE as error:
        return element("p", f"{patches.files[row]} cannot be read: {error}")


def _first_patch(answers: _Answers, patches: PatchDataset, row: int) -> Figure:
    return patch_cosines(
        patches.image(row), answers.cosines[0], float(answers.negative[0]), answers.words.names, patches.labels[row],
        patches.files[row],
    )  # fmt: skip
