"""More models than one: other seeds, folds, splits, designs and numbers of patches, fitted side by side and kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import Predictions, from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.splits import grouped_folds, split_dataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.baselines import BASELINES, fit_baseline
from histoclip_lib.models.cmm import mlp_like
from histoclip_lib.models.training import (
    TrainingOptions,
    feature_names,
    new_head,
    predict_probabilities,
    random_queries,
    source_digest,
    train_head,
)

if TYPE_CHECKING:
    from histoclip_lib.clip.encoder import CLIP
    from histoclip_lib.features.store import ImageFeatures

FRACTIONS = (0.01, 0.03, 0.1, 0.3)  # of the training part, beside the whole of it
HIDDEN = (0.5, 0.8)  # shares of the training labels
FOLDS = 4
SEEDED = ("histoclip_global", "histoclip_patch")
KEYS = ["purpose", "name", "method"]
COMPARED = ("linear_probe", "histoclip_patch")  # under the other split
SIZED = ("gaussian_text", "blended_probe", *COMPARED)  # for each number of patches


@dataclass(frozen=True, eq=False)
class Study:
    """One more model to fit, and the patches to try it on.

    Attributes
    ----------
    purpose : {"method", "seed", "fold", "split", "design", "size", "hidden"}
        Which question it answers.
    name : str
        Such as `2 layers`; unique among the studies of one purpose and method.
    method : str
        What is fitted, such as `histoclip_patch`.
    train, test : ndarray of int
        Indices of the patches to fit on and to predict.
    head, training : dict
        Changes to the head's options and to `TrainingOptions`.
    views : int, optional
        How many views to use, where not all.
    hidden : float
        Share of the training labels that are hidden, at random, as if they were not known.
    """

    purpose: str
    name: str
    method: str
    train: np.ndarray
    test: np.ndarray
    head: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)
    views: int | None = None
    hidden: float = 0.0


@dataclass(frozen=True, eq=False)
class Finished:
    """A study that is done.

    Attributes
    ----------
    purpose, name, method
        As in `Study`.
    n_train : int
        How many patches it was fitted on.
    test : ndarray of int, shape (n,)
        Indices of the patches that it predicted.
    predictions : Predictions
        For these, (n, N).
    identity : str
        What determined it: a study of the same identity gives the same predictions.
    """

    purpose: str
    name: str
    method: str
    n_train: int
    test: np.ndarray
    predictions: Predictions
    identity: str = ""


def plan_studies(
    patches: PatchDataset,
    split: str,
    folds: list[tuple[np.ndarray, np.ndarray]],
    options: TrainingOptions,
    head_options: dict[str, object],
    val_fraction: float,
    seeds: list[int],
    draws: int,
    everything: bool = True,
) -> list[Study]:
    """List the models that the report compares with the two heads.

    The methods of the table are fitted in each fold. Calibration needs predictions from inside the training part of a
    fold: with a single split these are those of FOLDS heads; in a cross-validation, of heads that see neither fold k
    nor fold k + 1, so that each predicts, for either, patches of the other. What other seeds and designs change is left
    to single splits: there a cross-validation would multiply the cost.

    Parameters
    ----------
    patches : PatchDataset
        B patches.
    split : str
        How the parts were made.
    folds : list of (ndarray, ndarray)
        As for `training.train_heads`. Further questions are asked in the first.
    options, head_options
        Of the two heads.
    val_fraction : float
        For the other split.
    seeds : list of int
        Of the training; the split stays.
    draws : int
        Subsets of the training part for each number of patches.
    everything : bool
        False for the methods of the table and the folds alone.
    """
    train, val = folds[0]
    whole = {"train": train, "test": val}
    plan = [
        Study("method", f"fold {number}", method, *fold)
        for method in ("mlp", "histoclip_text_free")
        for number, fold in enumerate(folds, 1)
    ]
    plan += _inner_folds(patches, folds, options.seed)
    if not everything:
        return plan
    if len(folds) == 1:
        for seed in dict.fromkeys(seeds):
            if seed != options.seed:
                for method in SEEDED:
                    plan.append(Study("seed", f"seed {seed}", method, **whole, training={"seed": seed}))
        plan += _designs(head_options, whole)
    plan += _other_split(patches, split, options.seed, val_fraction)
    plan += [
        Study("hidden", f"{share:.0%} hidden", method, **whole, hidden=share) for share in HIDDEN for method in COMPARED
    ]
    draw = np.random.default_rng(options.seed)
    for size in sorted({max(2, round(fraction * len(train))) for fraction in FRACTIONS}):
        for number in range(1, draws + 1):
            subset = np.sort(draw.choice(train, size, replace=False))
            for method in SIZED:
                plan.append(Study("size", f"{size} patches, draw {number}", method, subset, val))
    return plan


def _inner_folds(patches: PatchDataset, folds: list[tuple[np.ndarray, np.ndarray]], seed: int) -> list[Study]:
    """Return the heads by whose predictions the head on patch tokens is calibrated."""
    if len(folds) == 1:
        train = folds[0][0]
        parts = [(train[fit], train[held_out]) for fit, held_out in grouped_folds(patches, train, FOLDS, seed)]
        return [Study("fold", f"fold {n}", "histoclip_patch", *part) for n, part in enumerate(parts, 1)]
    plan = []
    for k, (train, val) in enumerate(folds):
        following = (k + 1) % len(folds)
        beyond = folds[following][1]
        name = f"without folds {k + 1} and {following + 1}"
        plan.append(Study("fold", name, "histoclip_patch", np.setdiff1d(train, beyond), np.union1d(val, beyond)))
    return plan


def _other_split(patches: PatchDataset, split: str, seed: int, val_fraction: float) -> list[Study]:
    """Return the same models under the other way to split: by patch where this run goes by group, and back."""
    other = "random" if split != "random" else "grouped"
    try:
        train, val = split_dataset(patches, other, seed, val_fraction)
    except HistoCLIPError:  # no groups, too few of them, or a class without positives: there is no such split
        return []
    return [Study("split", other, method, train, val) for method in COMPARED]


def _designs(head_options: dict[str, object], whole: dict[str, np.ndarray]) -> list[Study]:
    """Return one study for each choice of the design that could have been another."""
    heads, layers = head_options["heads"], head_options["layers"]
    changes = {
        "post-norm": {"head": {"pre_norm": False}},
        **{f"{n} head{'s' * (n > 1)}": {"head": {"heads": n}} for n in (1, 4) if n != heads},
        **{f"{n} layer{'s' * (n > 1)}": {"head": {"layers": n}} for n in (1, 2) if n != layers},
        "one view": {"views": 1},
        "all tokens in every step": {"training": {"token_dropout": 0.0}},
    }
    return [Study("design", name, "histoclip_patch", **whole, **change) for name, change in changes.items()]


def run_studies(
    plan: list[Study],
    class_embeddings: np.ndarray,
    head_options: dict[str, object],
    features: ImageFeatures,
    patches: PatchDataset,
    options: TrainingOptions,
    clip: CLIP,
    folder: Path,
    progress: bool = True,
    workers: int | None = None,
) -> list[Finished]:
    """Fit every model of a plan, predict its test patches, and write `studies.parquet`.

    A study that stands in that file with the same identity is not fitted again. Each new one is kept in
    `folder/.studies` as soon as it is done, so that a run that was killed continues with the others.

    Parameters
    ----------
    plan : list of Study
        As `plan_studies` returns.
    class_embeddings, head_options, features, patches, options, clip
        As in `train_heads`; each study says what it changes.
    folder : Path
        Of the run.
    progress : bool
        Whether to draw a bar.
    workers : int, optional
        Processes that share the models out among them. By default one for each core, each on one thread, for the models
        are too small for more; on CUDA one.
    """
    path, unsaved = folder / "studies.parquet", folder / ".studies"
    patches = replace(patches, source=None)  # labels and groups are all that is needed of them
    shared = _shared_identity(class_embeddings, features, patches, clip)
    identities = [_identity(study, head_options, options, features.n_views, shared) for study in plan]
    known = {done.identity: done.predictions for done in _earlier(path, patches)}
    files = [unsaved / f"{identity}.npy" for identity in identities]
    missing = [k for k, identity in enumerate(identities) if identity not in known and not files[k].is_file()]
    # The longest first, so that no core is left with one of them at the end.
    missing.sort(key=lambda k: -len(plan[k].train) * plan[k].head.get("layers", 1))
    unsaved.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = n_cores() if clip.device.type == "cpu" else 1
    shared_arguments = (class_embeddings, head_options, features, patches, options, clip.device, clip.amp_dtype)
    tasks = [joblib.delayed(_fit_and_keep)(files[k], plan[k], *shared_arguments, 3 * workers) for k in missing]
    results = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)
    for _ in tqdm(results, total=len(plan), initial=len(plan) - len(missing), desc="studies", disable=not progress):
        pass
    finished = []
    for study, identity, file in zip(plan, identities, files, strict=True):
        found = known[identity] if identity in known else from_probabilities(np.load(file))
        about = (study.purpose, study.name, study.method, len(study.train), study.test)
        finished.append(Finished(*about, found, identity))
    save_studies(path, finished, patches)
    shutil.rmtree(unsaved, ignore_errors=True)
    return finished


def _fit_and_keep(path: Path, study: Study, *arguments: object) -> None:
    probabilities = _fit(study, *arguments)
    with replacing(path) as temporary:
        np.save(temporary, probabilities)


def _fit(
    study: Study,
    class_embeddings: np.ndarray,
    head_options: dict[str, object],
    features: ImageFeatures,
    patches: PatchDataset,
    options: TrainingOptions,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    share: int,
) -> np.ndarray:
    """Return the probabilities (n, N) of a study's test patches."""
    if study.hidden:
        patches = replace(patches, labels=hide_labels(patches.labels, study.train, study.hidden, options.seed))
    if study.method in BASELINES:
        fitted = fit_baseline(study.method, features, patches, study.train, options.seed, class_embeddings)
        return fitted.predict(features, study.test).scores
    options = replace(options, **study.training)
    shards = features.of_kind("global" if study.method in ("mlp", "histoclip_global") else "patch")
    reader = FeatureReader(shards, device, share=share)
    reader.n_views = study.views or reader.n_views
    if study.method == "histoclip_text_free":
        class_embeddings = random_queries(len(class_embeddings), shards.shape[-1], options.seed)
        head_options = {name: value for name, value in head_options.items() if name not in ("queries", "width")}
    head = new_head(class_embeddings, head_options | study.head, shards, study.train, options.seed)
    if study.method == "mlp":
        torch.manual_seed(options.seed)
        head = mlp_like(head)
    train_head(head, reader, patches.labels, study.train, study.train[:0], options, None, amp_dtype, progress=False)
    return predict_probabilities(head, reader, study.test)


def hide_labels(labels: np.ndarray, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return labels (B, N) in which a random share of those of the patches `train` is NaN, not known; float32."""
    hidden = labels.astype(np.float32)
    chosen = np.random.default_rng(seed).random((len(train), labels.shape[1])) < share
    hidden[train] = np.where(chosen, np.nan, hidden[train])
    return hidden


def _shared_identity(class_embeddings: np.ndarray, features: ImageFeatures, patches: PatchDataset, clip: CLIP) -> str:
    """Return a digest of what all studies of a run share; features are named by their files."""
    digest = hashlib.sha256(np.ascontiguousarray(class_embeddings).tobytes() + patches.labels.tobytes())
    names = feature_names(features.pooled) + feature_names(features.tokens)
    about = [names, patches.classes, clip.device.type, str(clip.amp_dtype), source_digest()]
    if patches.groups is not None:
        about.append([str(group) for group in patches.groups])
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def _identity(
    study: Study, head_options: dict[str, object], options: TrainingOptions, n_views: int, shared: str
) -> str:
    about = {**asdict(options), **study.training, **head_options, **study.head, "method": study.method}
    about |= {"hidden": study.hidden} if study.hidden else {}
    about |= {"views": study.views or n_views, "shared": shared}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(study.train.tobytes() + b"/" + study.test.tobytes())
    return digest.hexdigest()[:32]


def save_studies(path: Path, finished: list[Finished], patches: PatchDataset) -> None:
    """Write studies in long form.

    Columns: `purpose`, `name`, `method`, `n_train`, `identity`, `file`, `class` and `score` (float32).
    """
    n_classes, files = len(patches.classes), np.asarray(patches.files, dtype=object)
    frames = [
        pd.DataFrame(
            {
                **{column: getattr(study, column) for column in (*KEYS, "n_train", "identity")},
                "file": np.repeat(files[study.test], n_classes),
                "class": np.tile(patches.classes, len(study.test)),
                "score": study.predictions.scores.astype(np.float32).ravel(),
            }
        )
        for study in finished
    ]
    table = pd.concat(frames, ignore_index=True)
    table = table.astype({column: "category" for column in (*KEYS, "identity", "file", "class")})
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def load_studies(path: Path, patches: PatchDataset) -> list[Finished]:
    """Read what `save_studies` wrote for the same patches.

    Raises
    ------
    HistoCLIPError
        If the file is absent or was written for other patches or classes, or by another version.
    """
    if not path.is_file():
        raise HistoCLIPError(f"{path} was not found. Run the notebook 03_train of this run first.")
    table = pd.read_parquet(path)
    if not {*KEYS, "n_train", "identity", "file", "class", "score"} <= set(table):
        raise HistoCLIPError(f"{path} was written by another version. Run 03_train again.")
    position = {file: number for number, file in enumerate(patches.files)}
    finished = []
    for key, part in table.groupby(KEYS, observed=True, sort=False):
        classes = list(part["class"][: len(patches.classes)])
        if classes != list(patches.classes) or not set(part["file"]) <= set(position):
            raise HistoCLIPError(f"{path} was written for other patches or classes. Run 03_train again.")
        scores = part["score"].to_numpy(dtype=np.float64).reshape(-1, len(patches.classes))
        test = np.array([position[file] for file in part["file"][:: len(patches.classes)]])
        n_train, identity = int(part["n_train"].iloc[0]), str(part["identity"].iloc[0])
        finished.append(Finished(*key, n_train, test, from_probabilities(scores), identity))
    return finished


def _earlier(path: Path, patches: PatchDataset) -> list[Finished]:
    """Return the studies that a file holds, whatever is wrong with it."""
    try:
        return load_studies(path, patches)
    except (HistoCLIPError, OSError, ValueError, LookupError):  # pyarrow's own errors are among the ValueErrors
        return []
