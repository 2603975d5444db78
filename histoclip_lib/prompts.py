"""Classes as text: names, templates, the negative prompt, and the class matrix of eq. (2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from histoclip_lib.clip import CLIP
from histoclip_lib.errors import HistoCLIPError
from histoclip_lib.files import resolve

FOLDER = Path(__file__).parent / "assets" / "prompts"
NEGATIVE_PROMPT = "a photo with nothing in it."
PHOTO_OF = "a photo of a {}"


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
        words = [f"- {_code(column)} is called {_code(name)}" for column, name in zip(classes, self.names, strict=True)]
        templates = [f"- {_code(template)}" for template in self.templates]
        return "\n".join(["Classes:", "", *words, "", f"The {len(templates)} templates:", "", *templates])


def _code(text: str) -> str:
    """Return text as inline code in Markdown, whatever it contains."""
    return f"`` {' '.join(text.split()).replace('``', '` `')} ``"


def load_vocabulary(dataset: str, classes: list[str], prompts_file: str = "") -> Vocabulary:
    """Return the vocabulary of a data set.

    Parameters
    ----------
    dataset : str
        Its words are in `assets/prompts/<dataset>.yaml`, where there is such a file.
    classes : list of str
        The N class columns; one that has no entry is named after its column, underscores read as spaces.
    prompts_file : str
        Your own YAML file of the same form, with any of the keys `classes` (names for some class columns), `synonyms`
        (a list of other names for some class columns, tried beside the name to see how much the choice of words
        matters), `templates` and `negative_prompt`; what it says goes before what HistoCLIP brings. For example::

            classes: {stroma: stroma}
            synonyms: {stroma: [connective tissue, fibrous stroma]}

    Raises
    ------
    HistoCLIPError
        If `prompts_file` cannot be read, has other keys, names classes that do not exist, leaves a name or a list
        of synonyms empty, or has a template without `{}`.
    """
    shipped = FOLDER / f"{dataset}.yaml"
    path = resolve(prompts_file) if prompts_file else shipped
    words = _read(path) if prompts_file else {}
    brought = _read(shipped) if shipped.is_file() else {}
    names = _by_column(words.get("classes", {}), classes, path)
    if nameless := [column for column, name in names.items() if name is None or not str(name).strip()]:
        raise HistoCLIPError(f"{path}: {', '.join(nameless)} have no name. Write one behind the colon.")
    synonyms = _by_column(words.get("synonyms", {}), classes, path)
    if wrong := [column for column, listed in synonyms.items() if not _are_texts(listed)]:
        raise HistoCLIPError(
            f"{path}: the synonyms of {', '.join(wrong)} are no list of texts. Write them as [one, other], or leave "
            "the class out."
        )
    names, synonyms = brought.get("classes", {}) | names, brought.get("synonyms", {}) | synonyms
    templates = words.get("templates", yaml.safe_load((FOLDER / "templates.yaml").read_text(encoding="utf-8")))
    if not templates:
        raise HistoCLIPError(f"{path}: templates is empty. List at least one, or leave the key out.")
    without_place = [template for template in templates if not isinstance(template, str) or template.count("{}") != 1]
    if without_place:
        raise HistoCLIPError(f"{path}: each template needs one {{}} for the class name; not so: {without_place}.")
    in_order = [str(names.get(column, column.replace("_", " "))) for column in classes]
    others = [
        [text for text in dict.fromkeys(synonyms.get(column, [])) if text != name]
        for column, name in zip(classes, in_order, strict=True)
    ]
    return Vocabulary(in_order, templates, words.get("negative_prompt", NEGATIVE_PROMPT), others)


def _by_column(entries: dict, classes: list[str], path: Path) -> dict[str, object]:
    """Return the entries under the names of their columns; each must be one of the data set's classes."""
    named = {str(column): entry for column, entry in entries.items()}  # YAML reads 1 as a number
    if unknown := sorted(set(named) - set(classes)):
        raise HistoCLIPError(f"{path}: {', '.join(unknown)} are no classes of this data set; it has {classes}.")
    return named


def _are_texts(listed: object) -> bool:
    return isinstance(listed, list) and bool(listed) and all(isinstance(text, str) and text.strip() for text in listed)


def _read(path: Path) -> dict:
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HistoCLIPError(f"prompts_file: {path} cannot be read as YAML ({error}).") from error
    expected = {"classes": dict, "synonyms": dict, "templates": list, "negative_prompt": str}
    if not isinstance(words, dict) or any(
        key not in expected or not isinstance(value, expected[key]) for key, value in words.items()
    ):
        raise HistoCLIPError(
            f"prompts_file: {path} may hold `classes` (a mapping from class column to name), `synonyms` (a mapping "
            "from class column to a list), `templates` (a list) and `negative_prompt` (a text), nothing else."
        )
    return words


class TextEncoder:
    """Encodes each distinct prompt once, whichever strategy asks.

    Attributes
    ----------
    encoded : dict of str to tensor of shape (d,)
        The unit embedding of every prompt so far.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self.encoded: dict[str, torch.Tensor] = {}

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        """Return unit embeddings, shape (P, d), float32."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.encoded]
        if new:
            self.encoded.update(zip(new, self.clip.encode_text(new), strict=True))
        return torch.stack([self.encoded[prompt] for prompt in prompts])


def class_embeddings(encode: TextEncoder, vocabulary: Vocabulary) -> torch.Tensor:
    """Return the class matrix of eq. (2), one unit row for each class: Norm(mean over templates).

    Returns
    -------
    tensor of shape (N, d), float32
    """
    prompts = [template.replace("{}", name) for name in vocabulary.names for template in vocabulary.templates]
    embeddings = encode(prompts).unflatten(0, (len(vocabulary.names), len(vocabulary.templates)))
    return functional.normalize(embeddings.mean(dim=1), dim=-1)
