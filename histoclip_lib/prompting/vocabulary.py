"""Classes as text: names, templates, the negative prompt, and the class matrix of eq. (2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoclip_lib.common.arrays import unit
from histoclip_lib.common.errors import HistoCLIPError, bullet_list, shown
from histoclip_lib.common.files import resolve
from histoclip_lib.common.html import as_typed
from histoclip_lib.common.yaml_files import read_yaml

if TYPE_CHECKING:
    from histoclip_lib.clip.encoder import CLIP

Encode = Callable[[list[str]], np.ndarray]  # from P prompts to unit embeddings (P, d)
FOLDER = Path(__file__).parent / "words"
NEGATIVE_PROMPT = "a photo with nothing in it."
PHOTO_OF = "a photo of a {}"
PAPER, OF_ENCODER, PATHOLOGY = "paper", "encoder", "pathology"  # sets of prompts; further ones are files


@dataclass(frozen=True)
class Vocabulary:
    """How a data set's classes are put into words.

    Attributes
    ----------
    names : list of str
        A readable name for each of the N classes, in column order.
    templates : list of str
        The M templates of eq. (2); `{}` takes the name.
    negative_prompt : str
        Says that no class is there.
    synonyms : list of list of str
        Other names for each class, for `prompt_sensitivity`; empty where none are known.
    photo_of : str
        The template of the three strategies that use one alone.
    """

    names: list[str]
    templates: list[str]
    negative_prompt: str = NEGATIVE_PROMPT
    synonyms: list[list[str]] = field(default_factory=list)
    photo_of: str = PHOTO_OF

    def about(self, classes: list[str]) -> str:
        """Return the words as lists in Markdown; `classes` are the N class columns."""
        words = [
            f"- {as_typed(column)} is called {as_typed(name)}" for column, name in zip(classes, self.names, strict=True)
        ]
        templates = [f"- {as_typed(template)}" for template in self.templates]
        single = [
            f"- {as_typed(self.photo_of)}, with the class or classes",
            f"- {as_typed(self.negative_prompt)}, for none",
        ]
        parts = {
            "Classes:": words,
            f"The {len(templates)} templates:": templates,
            "The prompts of One-vs-Rest, Power-set and Top-k:": single,
        }
        return "\n\n".join("\n".join([title, "", *lines]) for title, lines in parts.items())


def prompt_sets() -> list[str]:
    """Return the names of the sets of prompts, the paper's first."""
    names = sorted(path.stem for path in (FOLDER / "templates").glob("*.yaml"))
    return sorted(names, key=lambda name: name != PAPER)


def prompts_of_encoder(prompts: str, of_encoder: str) -> str:
    """Return the set that a parameter `prompts` names; `of_encoder` is `EncoderEntry.templates`.

    Raises
    ------
    HistoCLIPError
        If there is no such set.
    """
    name = (of_encoder or PATHOLOGY) if prompts == OF_ENCODER else prompts
    if name not in prompt_sets():
        raise HistoCLIPError(
            f"prompts: {shown(name)} is not a set of prompts. Use {OF_ENCODER} or one of {', '.join(prompt_sets())}."
        )
    return name


def load_vocabulary(dataset: str, classes: list[str], prompts_file: str = "", prompts: str = PAPER) -> Vocabulary:
    """Return the vocabulary of a data set.

    Parameters
    ----------
    dataset : str
        Its words are in `prompting/words/<dataset>.yaml`, where there is such a file.
    classes : list of str
        The N class columns; one that has no entry is named after its column, underscores read as spaces.
    prompts_file : str
        Your own YAML file of the same form, with any of the keys `classes` (names for some class columns), `synonyms`
        (a list of other names for some class columns, tried beside the name to see how much the choice of words
        matters), `templates`, `photo_of` and `negative_prompt`; it overrides what HistoCLIP brings. For example::

            classes: {stroma: stroma}
            synonyms: {stroma: [connective tissue, fibrous stroma]}
    prompts : str
        The set of templates: one of `prompt_sets`.

    Raises
    ------
    HistoCLIPError
        If `prompts_file` cannot be read as plain YAML (`yaml_files.read_yaml`), has other keys or one twice, names
        classes that do not exist, has a name, a list of synonyms or a negative prompt that is empty or not a text, or a
        template without `{}`.

    Examples
    --------
    >>> from histoclip_lib import load_vocabulary
    >>> load_vocabulary("folder", ["tumor_cells", "stroma"]).names
    ['tumor cells', 'stroma']
    """
    shipped = FOLDER / f"{dataset}.yaml"
    path = resolve(prompts_file) if prompts_file else shipped
    words = _read(path) if prompts_file else {}
    names = _by_column(words.get("classes", {}), classes, path)
    if nameless := [column for column, name in names.items() if name is None or not str(name).strip()]:
        raise HistoCLIPError(f"{path}: {', '.join(nameless)} have no name. Write one after the colon.")
    if wrong := [f"{column}: {shown(name)}" for column, name in names.items() if type(name) not in (str, int)]:
        raise HistoCLIPError(
            f"{path}: each name is a text; put yes, no and dates in quotes. These are not:\n{bullet_list(wrong)}"
        )
    synonyms = _by_column(words.get("synonyms", {}), classes, path)
    if wrong := [column for column, listed in synonyms.items() if not _are_texts(listed)]:
        raise HistoCLIPError(
            f"{path}: the synonyms of {', '.join(wrong)} are not a list of texts. Write them as [one, other], or leave "
            "the class out."
        )
    sentences, _ = read_yaml(FOLDER / "templates" / f"{prompts_of_encoder(prompts, '')}.yaml")
    sentences = sentences | words
    templates = sentences["templates"]
    if not templates:
        raise HistoCLIPError(f"{path}: templates is empty. List at least one, or leave the key out.")
    check_templates([*templates, sentences["photo_of"]], str(path))
    negative = sentences["negative_prompt"]
    if not negative.strip():
        raise HistoCLIPError(f"{path}: negative_prompt is empty. Write a text, or leave the key out.")
    defaults = _read(shipped) if shipped.is_file() else {}
    names, synonyms = defaults.get("classes", {}) | names, defaults.get("synonyms", {}) | synonyms
    in_order = [_text(names.get(column, column.replace("_", " "))) for column in classes]
    others = [
        [text for text in dict.fromkeys(synonyms.get(column, [])) if text != name]
        for column, name in zip(classes, in_order, strict=True)
    ]
    return Vocabulary(in_order, templates, negative, others, sentences["photo_of"])


def check_templates(templates: list, place: str) -> None:
    """Raise an error unless each template takes a class name; `place` is where they were written."""
    without_place = [template for template in templates if not isinstance(template, str) or template.count("{}") != 1]
    if without_place:
        raise HistoCLIPError(
            f"{place}: each template needs one {{}} for the class name; these do not fit: {shown(without_place, 1000)}."
        )


def _by_column(entries: dict, classes: list[str], path: Path) -> dict[str, object]:
    """Return the entries under the names of their columns; each must be one of the data set's classes."""
    named = {_text(column): entry for column, entry in entries.items()}  # YAML reads 1 as a number
    if unknown := sorted(set(named) - set(classes)):
        raise HistoCLIPError(
            f"{path}: {', '.join(unknown)[:1000]} are not classes of this data set, which has {shown(classes, 1000)}."
        )
    return named


def _text(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def _are_texts(listed: object) -> bool:
    return isinstance(listed, list) and bool(listed) and all(isinstance(text, str) and text.strip() for text in listed)


def _read(path: Path) -> dict:
    try:
        words, repeated = read_yaml(path)
    except HistoCLIPError as error:
        raise HistoCLIPError(f"prompts_file: {error}") from error
    if repeated:
        raise HistoCLIPError(f"prompts_file: {path} has some keys twice. Keep one of each:\n{bullet_list(repeated)}")
    expected = {"classes": dict, "synonyms": dict, "templates": list, "negative_prompt": str, "photo_of": str}
    if not isinstance(words, dict) or any(
        key not in expected or not isinstance(value, expected[key]) for key, value in words.items()
    ):
        raise HistoCLIPError(
            f"prompts_file: {path} may hold `classes` (a mapping from class column to name), `synonyms` (a mapping "
            "from class column to a list), `templates` (a list), `photo_of` and `negative_prompt` (texts), nothing "
            "else."
        )
    return words


class TextEncoder:
    """Encodes each distinct prompt once, whichever strategy asks.

    Attributes
    ----------
    encoded : dict of str to ndarray of shape (d,)
        The unit embedding of every prompt so far.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self.encoded: dict[str, np.ndarray] = {}

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """Return unit embeddings, shape (P, d), float32."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]
        if new:
            self.encoded.update(zip(new, self.clip.encode_text(new).cpu().numpy(), strict=True))
        return np.stack([self.encoded[prompt] for prompt in prompts])

    @property
    def temperature(self) -> float:
        """By which the model divides cosines before a softmax."""
        return 1 / self.clip.model.logit_scale.exp().item()


def class_embeddings(encode: Encode, vocabulary: Vocabulary) -> np.ndarray:
    """Return the class matrix of eq. (2), a unit vector for each class: Norm(mean over templates).

    Returns
    -------
    ndarray of shape (N, d), float32
    """
    prompts = [template.replace("{}", name) for name in vocabulary.names for template in vocabulary.templates]
    embeddings = encode(prompts)  # (N * M, d)
    return unit(embeddings.reshape(len(vocabulary.names), len(vocabulary.templates), -1).mean(axis=1))
