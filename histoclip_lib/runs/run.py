"""A run as one object: its parameters, and its data, encoder, features, words and predictions, each on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import alone_in, replacing, resolve, run_folder
from histoclip_lib.common.html import as_typed
from histoclip_lib.common.predictions import Predictions, join_folds
from histoclip_lib.runs.record import PLACES, loaded_modules, read_entry, update_record

if TYPE_CHECKING:
    import torch

    from histoclip_lib.clip.encoder import CLIP
    from histoclip_lib.clip.registry import EncoderEntry
    from histoclip_lib.data.base import PatchDataset
    from histoclip_lib.features.store import ImageFeatures
    from histoclip_lib.models.baselines import HeldOut
    from histoclip_lib.models.cmm import CMM
    from histoclip_lib.prompting.vocabulary import TextEncoder, Vocabulary
    from histoclip_lib.runs.chapters import attention, data, errors, results, slides, training, zero_shot

RATE_BATCH = 8  # images by which the speed of an encoder is measured
BASELINES_FILE = "baselines.npz"
HEAD_OPTIONS = ("heads", "layers", "hidden", "dropout")


def open_run(name: str, reports_dir: str | Path = "reports", given: Mapping[str, object] | None = None) -> Run:
    """Open a run by its name; a notebook hands over the parameters that it declares.

    Parameters
    ----------
    name : str
        Of the run, and of its folder below `reports_dir`.
    reports_dir : str or Path
        Where the runs lie.
    given : mapping, optional
        Parameters to set, which `run.json` keeps for later notebooks. A notebook gives its `globals()`: of these, the
        variables that its parameters cell declares with a type are taken.

    Raises
    ------
    HistoCLIPError
        If there is no such run and nothing is given, or another process is executing the run.

    Examples
    --------
    >>> from histoclip_lib import open_run
    >>> data = {"dataset": "synthetic", "n_patches": 20, "split": "random", "seed": 0, "val_fraction": 0.2}
    >>> run = open_run("trial", given=data)
    >>> len(run.train), len(run.val)
    (16, 4)
    """
    if given is None and not (resolve(reports_dir) / name).is_dir():
        raise HistoCLIPError(f"name: the run {shown(name)} was not found in {reports_dir}. Run `histoclip run` first.")
    folder = run_folder(name, str(reports_dir))
    step = _step()
    if given is not None:
        declared = given.get("__annotations__", given)
        parameters = {key: given[key] for key in declared if key in given and key not in PLACES}
        if not step:  # by hand: a run that is being executed is left alone
            with alone_in(folder):
                pass
        update_record(folder, parameters=read_entry(folder, "parameters") | parameters | {"name": name})
    run = Run(folder, read_entry(folder, "parameters"))
    if step:
        run.note_modules_of(step)
    return run


def _step() -> str:
    """Return the step of a run that this process executes; empty in JupyterLab and elsewhere."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return str(shell.config.get("HistoCLIP", {}).get("step", "")) if shell else ""


@dataclass(eq=False)
class Run:
    """A run: what it was made with, and what it works on.

    Attributes
    ----------
    folder : Path
        Where its files lie.
    parameters : dict of str to object
        Those that its notebooks have declared so far.
    """

    folder: Path
    parameters: dict[str, object]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    def __getitem__(self, parameter: str) -> object:
        """Return a parameter.

        Raises
        ------
        HistoCLIPError
            If no notebook of this run has declared it yet.
        """
        if parameter not in self.parameters:
            raise HistoCLIPError(
                f"{self.folder}: the parameter {parameter} is not set. Run the earlier notebooks of this run first, or "
                "open a finished run by its name."
            )
        return self.parameters[parameter]

    def note_modules_of(self, step: str) -> None:
        """Record after each cell which modules of the library a step has imported: those that it depends on."""
        known: list[str] = []

        def note(_: object = None) -> None:
            nonlocal known
            if (found := loaded_modules(list(sys.modules))) != known:
                known = found
                update_record(self.folder, modules=read_entry(self.folder, "modules") | {step: found})

        sys.modules["IPython"].get_ipython().events.register("post_run_cell", note)

    # Data

    @cached_property
    def patches(self) -> PatchDataset:
        """The data set."""
        from histoclip_lib.data.registry import load_dataset_from

        self["dataset"]
        return load_dataset_from(self.parameters)

    @cached_property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each fold the patches to fit on and those held out; a single one where `protocol` is `split`."""
        from histoclip_lib.data.splits import make_folds

        protocol, n_folds = (self.parameters.get(*default) for default in (("protocol", "split"), ("folds", 5)))
        return make_folds(self.patches, protocol, self["split"], self["seed"], self["val_fraction"], n_folds)

    @property
    def is_cross_validated(self) -> bool:
        """Whether there are several folds."""
        return len(self.folds) > 1

    @property
    def train(self) -> np.ndarray:
        """Indices of the patches that the final heads are fitted on, shape (T,): the training set, or all folds."""
        return self.val if self.is_cross_validated else self.folds[0][0]

    @cached_property
    def val(self) -> np.ndarray:
        """Indices of the patches that are scored, ascending, shape (B,): the validation set, or those of all folds."""
        return np.sort(np.concatenate([val for _, val in self.folds]))

    @cached_property
    def fold_of(self) -> np.ndarray:
        """The number of the fold, from 0, that holds out each patch of `val`, shape (B,)."""
        fold = np.empty(len(self.patches), dtype=int)
        for number, (_, val) in enumerate(self.folds):
            fold[val] = number
        return fold[self.val]

    @property
    def out_of_folds(self) -> np.ndarray:
        """The order that brings what was computed fold after fold into that of `val`, shape (B,)."""
        return np.argsort(np.concatenate([val for _, val in self.folds]))

    def by_fold(
        self, predict: Callable[[int, np.ndarray, np.ndarray], dict[str, Predictions]]
    ) -> dict[str, Predictions]:
        """Join what `predict(k, train, held_out)` says of the patches held out by each fold, in the order of `val`."""
        parts = [predict(k, *fold) for k, fold in enumerate(self.folds)]
        held_out = [val for _, val in self.folds]
        return {name: join_folds(held_out, [part[name] for part in parts]) for name in parts[0]}

    # Encoder and features

    @cached_property
    def encoder(self) -> CLIP:
        """The frozen encoder."""
        from histoclip_lib.clip.encoder import load_clip
        from histoclip_lib.features.remote import ENCODER_NAMES

        return load_clip(*(self[name] for name in ENCODER_NAMES))

    @cached_property
    def compute(self) -> Compute:
        """Device and precision, known without loading the encoder."""
        from histoclip_lib.clip.compute import choose_compute

        device, amp_dtype = choose_compute(str(self["device"]), str(self["precision"]))
        return Compute(str(self["backbone"]), device, amp_dtype, bool(self["compiled"]))

    @property
    def encoder_facts(self) -> dict[str, object]:
        """Which encoder this is, as `describe_encoder` says it: noted by `encode`, so that none need be loaded."""
        from histoclip_lib.models.bundle import describe_encoder

        return read_entry(self.folder, "encoder") or describe_encoder(self.encoder)

    def encode(self) -> ImageFeatures:
        """Encode what the cache lacks, check all features against their checksums, and note where they lie."""
        from histoclip_lib.features.encode import encode_dataset
        from histoclip_lib.models.bundle import describe_encoder

        features = encode_dataset(self.encoder, self.patches, self["views"], self["encode_batch_size"])
        noted = {"folder": str(features.folder), "names": features.names}
        update_record(self.folder, features=noted, encoder=describe_encoder(self.encoder))
        self._note_cost(features)
        self.__dict__["features"] = features
        return features

    def _note_cost(self, features: ImageFeatures) -> None:
        """Note what the encoder costs: parameters, bytes of its features, and images in a second, measured once."""
        import torch
        from PIL import Image

        from histoclip_lib.clip.encoder import images_per_second, parameters_of

        encoder, known = self.encoder, read_entry(self.folder, "cost")
        about = {"backbone": encoder.backbone, "pretrained": encoder.pretrained, "precision": str(encoder.amp_dtype)}
        about |= {"device": encoder.device.type, "bytes": features.pooled.nbytes + features.tokens.nbytes}
        if about.items() <= known.items():
            return
        images = [Image.fromarray(self.patches.image(int(index))) for index in self.train[:RATE_BATCH]]
        rate = images_per_second(encoder, torch.stack([encoder.resize(image) for image in images]))
        update_record(self.folder, cost=about | parameters_of(encoder) | {"images_per_second": rate})

    @cached_property
    def features(self) -> ImageFeatures:
        """The features of all patches: mapped as 02_zero_shot checked them, or encoded again where they are gone."""
        from histoclip_lib.features.store import open_features

        noted = read_entry(self.folder, "features")
        try:
            return open_features(Path(noted["folder"]), noted["names"], len(self.patches), int(self["views"]))
        except (KeyError, TypeError, HistoCLIPError):
            return self.encode()

    # Words

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes in words."""
        return self.words(self.prompts)

    def words(self, prompts: str) -> Vocabulary:
        """Return the classes in words, with the prompts of a set (`vocabulary.prompt_sets`)."""
        from histoclip_lib.prompting.vocabulary import load_vocabulary

        return load_vocabulary(str(self["dataset"]), self.patches.classes, str(self["prompts_file"]), prompts)

    @property
    def prompts(self) -> str:
        """The set of prompts that `prompts` names."""
        from histoclip_lib.prompting.vocabulary import prompts_of_encoder

        return prompts_of_encoder(str(self["prompts"]), self._text_entry.templates)

    @property
    def other_prompts(self) -> str:
        """The set of prompts to compare with: the paper's, or where those are used the encoder's."""
        from histoclip_lib.prompting.vocabulary import OF_ENCODER, PAPER, prompts_of_encoder

        return PAPER if self.prompts != PAPER else prompts_of_encoder(OF_ENCODER, self._text_entry.templates)

    @property
    def _text_entry(self) -> EncoderEntry:
        from histoclip_lib.clip.registry import encoder_entry

        kind = ("backbone", "pretrained") if self.has_text else ("text_encoder", "text_pretrained")
        return encoder_entry(*(str(self[name]) for name in kind))

    @property
    def has_text(self) -> bool:
        """Whether the encoder has a text tower, without which the zero-shot methods do not apply."""
        return self.encoder_entry.has_text

    @property
    def encoder_entry(self) -> EncoderEntry:
        """What is registered of the encoder."""
        from histoclip_lib.clip.registry import encoder_entry

        return encoder_entry(str(self["backbone"]), str(self["pretrained"]))

    @property
    def _encoder_side(self) -> int:
        from histoclip_lib.clip.field import shorter_side

        return shorter_side(self.encoder_facts["preprocessing"]["size"])

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        """Encodes each distinct prompt once: with the encoder's text tower, or with that of `text_encoder`.

        None where there is neither.

        Raises
        ------
        HistoCLIPError
            If `text_encoder` is given beside an encoder with a text tower, or has none itself.
        """
        from histoclip_lib.clip.encoder import load_clip
        from histoclip_lib.clip.registry import encoder_entry
        from histoclip_lib.prompting.vocabulary import TextEncoder

        named, weights = str(self["text_encoder"]), str(self["text_pretrained"])
        if self.has_text:
            if named:
                raise HistoCLIPError(
                    f"text_encoder: {shown(named)} is not needed: {self['backbone']} has a text tower of its own. "
                    "Leave it empty."
                )
            return TextEncoder(self.encoder)
        if not named:
            return None
        if not encoder_entry(named, weights).has_text:
            raise HistoCLIPError(f"text_encoder: {shown(named)} has no text tower. Name an encoder of images and text.")
        return TextEncoder(load_clip(named, weights, str(self["device"]), str(self["precision"])))

    @cached_property
    def class_matrix(self) -> np.ndarray:
        """The class matrix of eq. (2), shape (N, d), from `class_matrix.npy`: later notebooks load no encoder."""
        path = self.folder / "class_matrix.npy"
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise HistoCLIPError(f"{path} cannot be read ({error}). Run the notebook 02_zero_shot first.") from error
        if matrix.ndim != 2 or len(matrix) != len(self.patches.classes):
            raise HistoCLIPError(f"{path} was written for other classes. Run the notebook 02_zero_shot again.")
        return matrix

    def embed_classes(self) -> np.ndarray:
        """Compute the class matrix of eq. (2) and keep it; without any text tower, random unit vectors."""
        from histoclip_lib.prompting.vocabulary import class_embeddings

        if self.text_encoder is not None:
            matrix = class_embeddings(self.text_encoder, self.vocabulary)
        else:
            from histoclip_lib.models.training import random_queries

            width = self.features.pooled.shape[2]
            matrix = random_queries(len(self.patches.classes), width, int(self["seed"])).numpy()
        with replacing(self.folder / "class_matrix.npy") as temporary:
            np.save(temporary, matrix)
        self.__dict__["class_matrix"] = matrix
        return matrix

    # Models and predictions

    def head(self, kind: str, fold: int | None = None) -> CMM:
        """Return the trained head on the global embedding (`global`) or on the patch tokens (`patch`).

        That of a fold, from 0, has not seen the patches that the fold holds out; by default the final one is returned.
        """
        from histoclip_lib.models.cmm import load_cmm
        from histoclip_lib.models.training import head_path

        path = head_path(self.folder, kind, fold if self.is_cross_validated else None)
        return load_cmm(path, self.patches.classes, str(self["backbone"]))

    @property
    def head_options(self) -> dict[str, object]:
        """Options of the head, with what its queries are where they are not the encoder's own class embeddings."""
        options = {name: self[name] for name in HEAD_OPTIONS}
        if self.has_text:
            return options
        if not self["text_encoder"]:
            return options | {"queries": "learned"}
        return options | {"queries": "mapped", "width": self.features.pooled.shape[2]}

    def field_note(self) -> str:
        """Say in Markdown how the field and resolution of the patches compare with those of the encoder's training."""
        from histoclip_lib.clip.field import field_note

        entry, size, side = self.encoder_entry, self._encoder_side, self.patch_side
        return field_note(entry, str(self["backbone"]), size, side, self.patches.patch_mpp, bool(self["match_mpp"]))

    @property
    def patch_side(self) -> int:
        """Pixels of the shorter side of a patch."""
        return min(self.patches.image(int(self.train[0])).shape[:2])

    @property
    def inner_fraction(self) -> np.ndarray:
        """Part of the side of the encoder's image that each patch fills, shape (B,): 1 unless `match_mpp` shrank it."""
        from histoclip_lib.clip.field import matched_side

        if not self["match_mpp"]:
            return np.ones(len(self.patches))
        entry, size, side = self.encoder_entry, self._encoder_side, self.patch_side
        return np.array([matched_side(side, mpp, entry.mpp, size) / size for mpp in self.patches.patch_mpp])

    def queries_note(self) -> str:
        """Say in Markdown what the queries of the head are and why zero-shot methods are absent; nothing with text."""
        if self.has_text:
            return ""
        note = (
            f"**{as_typed(str(self['backbone']))} encodes images alone.** It has no text tower, so no prompt can be "
            "compared with an image, and the zero-shot methods are absent from all tables. "
        )
        if named := str(self["text_encoder"]):
            return note + (
                f"The queries of HistoCLIP are the class embeddings of {as_typed(named)}, through a linear map that is "
                "trained with the head."
            )
        return note + (
            "The queries of HistoCLIP are vectors that are trained with the head from random ones: no word is used. "
            "With `text_encoder` they would be another model's class embeddings through a trained linear map."
        )

    @cached_property
    def baselines(self) -> dict[str, list[HeldOut]]:
        """What every registered baseline says of the patches that each fold holds out: 03_train fitted them."""
        from histoclip_lib.models.baselines import load_baselines

        return load_baselines(self.folder / BASELINES_FILE)

    def fit_baselines(self) -> dict[str, list[HeldOut]]:
        """Fit every registered baseline in each fold, and keep what they say."""
        from histoclip_lib.models.baselines import fit_baselines, save_baselines

        text = self.class_matrix if self.has_text else None
        found = fit_baselines(self.features, self.patches, self.folds, int(self["seed"]), text)
        save_baselines(self.folder / BASELINES_FILE, found)
        self.__dict__["baselines"] = found
        return found

    @property
    def baseline_predictions(self) -> dict[str, Predictions]:
        """What every registered baseline says of the patches `val`."""
        return {
            name: join_folds([val for _, val in self.folds], [part.predictions for part in parts])
            for name, parts in self.baselines.items()
        }

    def head_predictions(self, heads: dict[str, list[CMM]]) -> dict[str, Predictions]:
        """Return what the heads of all folds, by kind, say of the patches `val`."""
        from histoclip_lib.models.training import predict

        def by_heads(k: int, _: np.ndarray, val: np.ndarray) -> dict[str, Predictions]:
            return {
                f"histoclip_{kind}": predict(own[k], self.features, kind, val, self.compute.device)
                for kind, own in heads.items()
            }

        return self.by_fold(by_heads)

    @cached_property
    def without_images(self) -> dict[str, Predictions]:
        """What the methods that look at no image say of the patches `val`."""
        from histoclip_lib.models.baselines import metadata_method, tissue_prior_method, uninformative

        def predict(_: int, train: np.ndarray, val: np.ndarray) -> dict[str, Predictions]:
            constant = uninformative(self.patches.labels[train], len(val))
            prior = tissue_prior_method(self.patches, train, val)
            return constant | prior | metadata_method(self.patches, train, val)

        found = self.by_fold(predict)
        # One prior for all patches ranks none above another. Those of the folds would rank by fold, each lowest where
        # the class is most common, since it is rarer in the rest.
        prior = found["majority"].scores.mean(axis=0)
        scores = np.broadcast_to(prior, found["majority"].scores.shape)
        return found | {"majority": Predictions(scores, found["majority"].decisions)}

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """What every method says of the validation patches, from `predictions.parquet`."""
        from histoclip_lib.evaluation.artifacts import load_predictions

        return load_predictions(self.folder / "predictions.parquet", self.patches, self.val)

    # Chapters

    def describe_data(self) -> data.Data:
        """Check every image, write `split.csv`, and return what the notebook 01_data shows."""
        from histoclip_lib.runs.chapters.data import Data

        return Data.of(self)

    def score_zero_shot(self) -> zero_shot.ZeroShot:
        """Run the zero-shot strategies on all patches, and return what the notebook 02_zero_shot shows."""
        from histoclip_lib.runs.chapters.zero_shot import ZeroShot

        return ZeroShot.of(self)

    def train_heads(self) -> training.Training:
        """Train both heads, and return what the notebook 03_train shows."""
        from histoclip_lib.runs.chapters.training import Training

        return Training.of(self)

    def evaluate(self) -> results.Results:
        """Score every method on the validation patches, write the results, and return what 04_results shows."""
        from histoclip_lib.runs.chapters.results import Results

        return Results.of(self)

    def find_errors(self) -> errors.Errors:
        """Return what the notebook 05_errors shows."""
        from histoclip_lib.runs.chapters.errors import Errors

        return Errors.of(self)

    def map_attention(self) -> attention.Attention:
        """Compute the attention of the validation patches, and return what the notebook 06_attention shows."""
        from histoclip_lib.runs.chapters.attention import Attention

        return Attention.of(self)

    def predict_slides(self) -> slides.Slides:
        """Predict the slides of the run with its model, and return what the notebook 07_slides shows."""
        from histoclip_lib.runs.chapters.slides import Slides

        return Slides.of(self)


@dataclass(frozen=True, eq=False)
class Compute:
    """Where and in which precision models are applied; what training needs to know of an encoder."""

    backbone: str
    device: torch.device
    amp_dtype: torch.dtype | None
    compiled: bool
