"""A saved model: a trained head with all that is needed to apply it to new images, in the Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from histoclip_lib import __version__
from histoclip_lib.clip.field import match_field
from histoclip_lib.common.arrays import unit
from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import write_text
from histoclip_lib.features.reader import undo_view, view_of
from histoclip_lib.models.attention import evidence
from histoclip_lib.models.cmm import CMM, load_cmm, save_cmm, write_tensors

if TYPE_CHECKING:
    from histoclip_lib.clip.encoder import CLIP

FORMAT = 1
CONFIG, HEAD, REFERENCE = "config.json", "model.safetensors", "reference.safetensors"
NEIGHBOURS = 5
MOST_REFERENCES = 2000  # training patches that are kept for the out-of-distribution score
OOD_QUANTILE = 0.99  # of held-out training patches lie at or below the threshold
REMEDY = "Copy the folder `model` of the run again, or run it again with --force."


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` holds.

    Attributes
    ----------
    name : str
        Of the run.
    classes, words : list of str
        The N class columns in order, and each in words.
    backbone, pretrained, encoder_digest : str
        The encoder, and a digest of its image tower's weights and preprocessing.
    preprocessing : dict
        Size, mean, standard deviation and interpolation of the encoder, for a reader of the file.
    tokens, token_grid, match_mpp
        As for `load_clip`.
    patch_px : int
        Side of the training patches in pixels; with `mpp` it gives the field in micrometres.
    mpp : float or None
        Micrometres in a pixel of the training patches; None where the data set does not say.
    views : int
        Flips and rotations over which a prediction is averaged.
    temperature : float
        By which logits are divided to calibrate probabilities.
    thresholds : list of float
        Fitted probabilities (N,), before calibration, from which each class is present; 0.5 where nothing was fitted.
    calibrated : bool
        Whether temperature and thresholds were fitted.
    ood_threshold : float
        The out-of-distribution score that OOD_QUANTILE of the held-out training patches do not exceed.
    training, scores : dict
        Data, split and options of the training; metrics on the patches held out.
    digests : dict of str to str
        SHA-256 of the other files.
    format : int
        Of this file.
    software : str
        The version that wrote it.
    """

    name: str
    classes: list[str]
    words: list[str]
    backbone: str
    pretrained: str
    encoder_digest: str
    preprocessing: dict
    tokens: str
    token_grid: int
    match_mpp: bool
    patch_px: int
    mpp: float | None
    views: int
    temperature: float
    thresholds: list[float]
    calibrated: bool
    ood_threshold: float
    training: dict
    scores: dict
    digests: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    software: str = __version__


@dataclass(frozen=True, eq=False)
class ImagePredictions:
    """What a saved model says of B images.

    Attributes
    ----------
    probabilities : ndarray of shape (B, N), float32
        sigma(logit), the mean over the views.
    decisions : ndarray of shape (B, N), bool
        At 0.5, eq. (6).
    fitted : ndarray of shape (B, N), bool
        At the fitted thresholds.
    ood : ndarray of shape (B,), float32
        Out-of-distribution score: the mean cosine distance to the NEIGHBOURS nearest training patches.
    attention : ndarray of shape (B, N, g, g), float16
        Evidence for each class, as `attention_maps` returns it.
    """

    probabilities: np.ndarray
    decisions: np.ndarray
    fitted: np.ndarray
    ood: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained head with its encoder; made by `load_model`."""

    folder: Path
    config: ModelConfig
    head: CMM
    reference: np.ndarray
    device: str = "auto"
    precision: str = "auto"

    @property
    def classes(self) -> list[str]:
        """The N classes."""
        return self.config.classes

    @property
    def thresholds(self) -> np.ndarray:
        """Fitted probabilities from which each class is present, shape (N,)."""
        return np.array(self.config.thresholds)

    @property
    def patch_px(self) -> int:
        """Side of the training patches in pixels."""
        return self.config.patch_px

    @property
    def mpp(self) -> float:
        """Micrometres in a pixel of the training patches.

        Raises
        ------
        HistoCLIPError
            If the data set did not say.
        """
        if self.config.mpp is None:
            raise HistoCLIPError(
                f"{self.folder}: the micrometres per pixel of the training patches are not known. Give --patch-mpp, or "
                "train on data with a column mpp."
            )
        return self.config.mpp

    @property
    def pixels(self) -> int:
        """Side S of the encoder's input."""
        return self.encoder.side

    @property
    def ood_threshold(self) -> float:
        """Out-of-distribution score above which an image is unlike the training patches."""
        return self.config.ood_threshold

    @property
    def identity(self) -> str:
        """A digest of all that determines a prediction."""
        return hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def encoder(self) -> CLIP:
        """The frozen encoder, loaded on first use.

        Raises
        ------
        HistoCLIPError
            If its weights or preprocessing are not those that the head was trained with.
        """
        from histoclip_lib.clip.encoder import load_clip

        clip = load_clip(
            self.config.backbone, self.config.pretrained, self.device, self.precision,
            tokens=self.config.tokens, token_grid=self.config.token_grid,
        )  # fmt: skip
        if clip.digest() != self.config.encoder_digest:
            raise HistoCLIPError(
                f"{self.folder}: the encoder {shown(self.config.backbone)} here has other weights or another "
                "preprocessing than the one this head was trained with. Install the weights that the model card names."
            )
        self.head.to(clip.device)
        return clip

    def prepare(self, image: np.ndarray | Image.Image) -> torch.Tensor:
        """Return an RGB image (H, W, 3), uint8, in the encoder's size: a tensor (3, S, S), uint8."""
        if self.config.match_mpp:
            image = match_field(np.asarray(image), self.mpp, self.encoder.entry.mpp, self.encoder.side)
        return self.encoder.resize(image if isinstance(image, Image.Image) else Image.fromarray(image))

    def predict_tensor(self, images: torch.Tensor, views: int = 1) -> ImagePredictions:
        """Predict a batch.

        Parameters
        ----------
        images : tensor of shape (B, 3, S, S), uint8
            As `prepare` makes them.
        views : int
            Flips and rotations to average over, 1 to 8.
        """
        pooled, found = None, []
        for view in range(views):
            features, tokens = self.encoder.encode_images(view_of(images, view))
            pooled = features if pooled is None else pooled
            # In 16 bits, as training had them; outside of inference mode, since attention needs a gradient.
            tokens = tokens.half().float().to(self.encoder.device)
            maps = evidence(self.head, tokens)
            side = round(maps.shape[-1] ** 0.5)
            with torch.no_grad():
                probabilities = self.head(tokens)[0].float().sigmoid()
            found.append((probabilities, undo_view(maps.unflatten(-1, (side, side)), view)))
        probabilities, maps = (torch.stack(each).mean(dim=0).cpu().numpy() for each in zip(*found, strict=True))
        return ImagePredictions(
            probabilities,
            probabilities >= 0.5,
            probabilities >= self.thresholds,
            ood_scores(pooled.cpu().numpy(), self.reference),
            maps.astype(np.float16),
        )

    def predict(
        self, images: Iterable[np.ndarray | Image.Image], batch_size: int = 32, views: int | None = None
    ) -> ImagePredictions:
        """Predict RGB images of any size; of each the centre square is seen, as in training.

        Parameters
        ----------
        images : iterable of PIL images, or of ndarrays of shape (H, W, 3), uint8
            At the resolution of the training patches.
        batch_size : int
            Images in one forward pass.
        views : int, optional
            Flips and rotations to average over; by default as many as in training.

        Raises
        ------
        HistoCLIPError
            If no image is given.

        Examples
        --------
        >>> from histoclip_lib import load_dataset, load_model
        >>> model = load_model("reports/demo/model")  # doctest: +SKIP
        >>> patches = load_dataset("synthetic", n_patches=3)  # doctest: +SKIP
        >>> model.predict(patches.image(i) for i in range(3)).probabilities.shape  # doctest: +SKIP
        (3, 4)
        """
        remaining = iter(images)
        parts = [
            self.predict_tensor(torch.stack([self.prepare(image) for image in batch]), views or self.config.views)
            for batch in iter(lambda: list(islice(remaining, batch_size)), [])
        ]
        if not parts:
            raise HistoCLIPError("images: none were given. Give at least one.")
        return ImagePredictions(
            *(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(ImagePredictions))
        )


def ood_scores(pooled: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return how unlike the training patches images are, shape (B,), float32.

    The mean cosine distance of the pooled embedding to its NEIGHBOURS nearest training patches (Sun et al.,
    Out-of-distribution detection with deep nearest neighbors, ICML 2022). Of the Mahalanobis distance, one and five
    neighbours, on plain and on standardised features, five on plain ones were the only score that set glass, pen marks
    and blank tiles of real slides apart from their tissue, whether the training patches were CoNSeP's or the demo's.

    Parameters
    ----------
    pooled : ndarray of shape (B, d)
        Global embeddings.
    reference : ndarray of shape (R, d), float32
        Those of training patches, unit rows; where there are fewer than NEIGHBOURS, all count.
    """
    k = min(NEIGHBOURS, len(reference))
    cosines = unit(pooled.astype(np.float32)) @ reference.T
    return 1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1)


def fit_ood(pooled: np.ndarray, folds: Iterable[tuple[np.ndarray, np.ndarray]], seed: int) -> tuple[np.ndarray, float]:
    """Return the reference of the out-of-distribution score and its threshold.

    Held-out patches are compared with those of the reference alone: with more, their nearest ones would be nearer.

    Parameters
    ----------
    pooled : ndarray of shape (T, d)
        Global embeddings of the training patches, in their first view.
    folds : iterable of pairs of index arrays
        Fitted on the first, scored on the second: patches of one group are never in both. None for no folds: then a
        patch is compared with all others.
    seed : int
        Of the draw where there are more than MOST_REFERENCES patches.
    """
    rows = unit(pooled.astype(np.float32))
    kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_REFERENCES])
    reference = rows[kept]
    held_out = [ood_scores(rows[there], rows[here[np.isin(here, kept)]]) for here, there in folds]
    if not held_out and len(kept) > 1:
        held_out = [ood_scores(reference[[k]], np.delete(reference, k, axis=0)) for k in range(len(kept))]
    threshold = float(np.quantile(np.concatenate(held_out), OOD_QUANTILE)) if held_out else 0.0
    return reference, threshold


def describe_encoder(clip: CLIP) -> dict[str, object]:
    """Return the fields of `ModelConfig` that say which encoder a head was trained with."""
    return {
        "backbone": clip.backbone,
        "pretrained": clip.pretrained,
        "encoder_digest": clip.digest(),
        "preprocessing": asdict(clip.preprocess_cfg),
        "tokens": clip.tokens,
        "token_grid": clip.token_grid,
        "match_mpp": clip.match_mpp,
    }


def save_model(folder: Path, head: CMM, reference: np.ndarray, config: ModelConfig, card: str) -> None:
    """Write a model: head, reference, config with the digests of both, and its card as README.md.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    head : CMM
        Trained on patch tokens.
    reference : ndarray of shape (R, d), float32
        As `fit_ood` returns it.
    config : ModelConfig
        Its `digests` are filled in.
    card : str
        Markdown.
    """
    save_cmm(head, folder / HEAD, config.classes, config.backbone)
    write_tensors(folder / REFERENCE, {"pooled": torch.from_numpy(reference)}, {})
    digests = {name: _digest(folder / name) for name in (HEAD, REFERENCE)}
    write_text(folder / "README.md", card)
    write_text(folder / CONFIG, json.dumps(asdict(config) | {"digests": digests}, indent=1, allow_nan=False))


def load_model(path: str | Path, device: str = "auto", precision: str = "auto") -> SavedModel:
    """Load a model that a run saved, to apply it to new images.

    Parameters
    ----------
    path : str or Path
        The folder `model` of a run, or the run's own folder.
    device, precision : str
        As for `load_clip`.

    Raises
    ------
    HistoCLIPError
        If the model is not found, a file was changed or is missing, or a newer version wrote it. Nothing is unpickled.

    Examples
    --------
    >>> from histoclip_lib import load_dataset, load_model
    >>> patches = load_dataset("synthetic", n_patches=2)
    >>> model = load_model("reports/demo", device="cpu")  # of a finished run
    >>> model.predict([patches.image(0), patches.image(1)]).probabilities.shape
    (2, 4)
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    config = read_config(folder)
    for name, digest in config.digests.items():
        if not (folder / name).is_file():
            raise HistoCLIPError(f"{folder / name} is missing. {REMEDY}")
        if _digest(folder / name) != digest:
            raise HistoCLIPError(f"{folder / name} is not the file that {CONFIG} names: its digest differs. {REMEDY}")
    head = load_cmm(folder / HEAD, config.classes, config.backbone)
    try:
        with safe_open(folder / REFERENCE, "np") as file:
            reference = file.get_tensor("pooled")
    except (OSError, SafetensorError) as error:
        raise HistoCLIPError(f"{folder / REFERENCE} cannot be read ({error}). {REMEDY}") from error
    return SavedModel(folder, config, head, reference, device, precision)


def read_config(folder: Path) -> ModelConfig:
    """Read the `config.json` of a model.

    Raises
    ------
    HistoCLIPError
        If it is missing, damaged, or has fields or a format that this version does not know.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise HistoCLIPError(f"{folder} holds no saved model: {CONFIG} is missing. Give the folder `model` of a run.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__} instead of an object")
    except (OSError, ValueError, TypeError) as error:
        raise HistoCLIPError(f"{path} cannot be read ({error}). {REMEDY}") from error
    unknown = sorted(found.keys() - {each.name for each in fields(ModelConfig)})
    if unknown or found.get("format", 0) not in range(FORMAT + 1):
        raise HistoCLIPError(
            f"{path} was written by histoclip {shown(found.get('software'))}, this is {__version__}: "
            f"{'unknown fields ' + ', '.join(unknown) if unknown else 'format ' + str(found['format'])}. Update "
            "histoclip."
        )
    try:
        config = ModelConfig(**found)
        if not len(config.classes) == len(config.words) == len(config.thresholds) or config.digests.keys() != {
            HEAD, REFERENCE,
        }:  # fmt: skip
            raise TypeError("classes, words, thresholds and digests do not fit together")
    except (TypeError, AttributeError) as error:
        raise HistoCLIPError(f"{path} is incomplete ({error}). {REMEDY}") from error
    return config


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
