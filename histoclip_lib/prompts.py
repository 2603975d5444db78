"""Classes as text: names, templates, the negative prompt, and the class matrix of eq. (2)."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    names: list[str]
    templates: list[str]
    negative_prompt: str = NEGATIVE_PROMPT

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
        Your own YAML file of the same form, with any of the keys `classes` (names for some class columns), `templates`
        and `negative_prompt`; what it says goes before what HistoCLIP brings.

    Raises
    ------
    HistoCLIPError
        If `prompts_file` cannot be read, has other keys, names classes that do not exist, leaves a name empty, or
        has a template without `{}`.
    """
    shipped = FOLDER / f"{dataset}.yaml"
    path = resolve(prompts_file) if prompts_file else shipped
    words = _read(path) if prompts_file else {}
    names = {str(column): name for column, name in words.get("classes", {}).items()}  # YAML reads 1 as a number
    if unknown := sorted(set(names) - set(classes)):
        raise HistoCLIPError(f"{path}: {', '.join(unknown)} are no classes of this data set; it has {classes}.")
    if nameless := [column for column, name in names.items() if name is None or not str(name).strip()]:
        raise HistoCLIPError(f"{path}: {', '.join(nameless)} have no name. Write one behind the colon.")
    names = (_read(shipped)["classes"] if shipped.is_file() else {}) | names
    templates = words.get("templates", yaml.safe_load((FOLDER / "templates.yaml").read_text(encoding="utf-8")))
    if not templates:
        raise HistoCLIPError(f"{path}: templates is empty. List at least one, or leave the key out.")
    without_place = [template for template in templates if not isinstance(template, str) or template.count("{}") != 1]
    if without_place:
        raise HistoCLIPError(f"{path}: each template needs one {{}} for the class name; not so: {without_place}.")
    in_order = [str(names.get(column, column.replace("_", " "))) for column in classes]
    return Vocabulary(in_order, templates, words.get("negative_prompt", NEGATIVE_PROMPT))


def _read(path: Path) -> dict:
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HistoCLIPError(f"prompts_file: {path} cannot be read as YAML ({error}).") from error
    expected = {"classes": dict, "templates": list, "negative_prompt": str}
    if not isinstance(words, dict) or any(
        key not in expected or not isinstance(value, expected[key]) for key, value in words.items()
    ):
        raise HistoCLIPError(
            f"prompts_file: {path} may hold `classes` (a mapping from class column to name), `templates` (a list) and "
            "`negative_prompt` (a text), nothing else."
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
