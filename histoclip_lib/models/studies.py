"""More models than one: other seeds, folds, splits, designs and numbers of patches, fitted side by side and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm import tqdm

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import Predictions, from_probabilities
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.splits import grouped_folds, split_dataset
from histoclip_lib.features.encode import ImageFeatures
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.baselines import fit_linear_probe, mlp_like
from histoclip_lib.models.training import TrainingOptions, new_head, predict_probabilities, train_head

FRACTIONS = (0.01, 0.03, 0.1, 0.3)  # of the training part, beside the whole of it
FOLDS = 4
SEEDED = ("histoclip_global", "histoclip_patch")


@dataclass(frozen=True, eq=False)
class Study:
    """One more model to fit, and the patches to try it on.

    Attributes
    ----------
    purpose : {"row", "seed", "fold", "split", "design", "size"}
        Which question it answers.
    name : str
        Such as `2 layers`; unique among the studies of one purpose and row.
    row : str
        The row of the table that it belongs to, such as `histoclip_patch`; it says what is fitted.
    train, test : ndarray of int
        Positions of the patches to fit on and to predict.
    head, training : dict
        Changes to the head's options and to `TrainingOptions`.
    views : int, optional
        How many views to use, where not all.
    """

    purpose: str
    name: str
    row: str
    train: np.ndarray
    test: np.ndarray
    head: dict[str, object] = field(default_factory=dict)
    training: dict[str, object] = field(default_factory=dict)
    views: int | None = None


@dataclass(frozen=True, eq=False)
class Finished:
    """What a study found: `purpose`, `name` and `row` as in `Study`, the patches `test` (n,) and their predictions."""

    purpose: str
    name: str
    row: str
    n_train: int
    test: np.ndarray
    predictions: Predictions


def plan_studies(
    patches: PatchDataset,
    split: str,
    train: np.ndarray,
    val: np.ndarray,
    options: TrainingOptions,
    head_options: dict[str, object],
    val_fraction: float,
    seeds: list[int],
    draws: int,
    everything: bool = True,
) -> list[Study]:
    """List the models that the report compares with the two heads.

    Parameters
    ----------
    patches : PatchDataset
        B patches.
    split : str
        How `train` and `val` were made.
    train, val : ndarray of int
        The two parts.
    options, head_options
        Of the two heads.
    val_fraction : float
        For the other split.
    seeds : list of int
        Of the training; the split stays.
    draws : int
        Subsets of the training part for each number of patches.
    everything : bool
        False for the rows of the table and the folds alone.
    """
    whole = {"train": train, "test": val}
    plan = [Study("row", row, row, **whole) for row in ("mlp", "histoclip_text_free")]
    for number, (fit, held_out) in enumerate(grouped_folds(patches, train, FOLDS, options.seed), 1):
        plan.append(Study("fold", f"fold {number}", "histoclip_patch", train[fit], train[held_out]))
    if not everything:
        return plan
    for seed in dict.fromkeys(seeds):
        if seed != options.seed:
            for row in SEEDED:
                plan.append(Study("seed", f"seed {seed}", row, **whole, training={"seed": seed}))
    plan += _other_split(patches, split, options.seed, val_fraction)
    plan += _designs(head_options, whole)
    draw = np.random.default_rng(options.seed)
    for size in sorted({max(2, round(fraction * len(train))) for fraction in FRACTIONS}):
        for number in range(1, draws + 1):
            subset = np.sort(draw.choice(train, size, replace=False))
            for row in ("linear_probe", "histoclip_patch"):
                plan.append(Study("size", f"{size} patches, draw {number}", row, subset, val))
    return plan


def _other_split(patches: PatchDataset, split: str, seed: int, val_fraction: float) -> list[Study]:
    """Return the same models under the other way to split: by patch where this run goes by group, and back."""
    other = "random" if split != "random" else "grouped"
    try:
        train, val = split_dataset(patches, other, seed, val_fraction)
    except HistoCLIPError:  # no groups, too few of them, or a class without positives: there is no such split
        return []
    return [Study("split", other, row, train, val) for row in ("linear_probe", "histoclip_patch")]


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
    class_embeddings: torch.Tensor,
    head_options: dict[str, object],
    features: ImageFeatures,
    patches: PatchDataset,
    options: TrainingOptions,
    clip: CLIP,
    folder: Path,
    progress: bool = True,
    workers: int | None = None,
) -> list[Finished]:
    """Fit every model of a plan and predict its test patches.

    Each is kept in `folder` as soon as it is done, so that a killed run goes on with the others.

    Parameters
    ----------
    plan : list of Study
        As `plan_studies` returns.
    class_embeddings : tensor of shape (N, d)
        The class matrix of eq. (2).
    head_options, options
        Of the two heads; each study says what it changes.
    features : ImageFeatures
        Of B patches.
    patches : PatchDataset
        The same.
    clip : CLIP
        Gives device and precision.
    folder : Path
        Where finished studies lie until all are done.
    progress : bool
        Whether to draw a bar.
    workers : int, optional
        Processes that share the models out among them. By default one for each core, each on one thread, for the models
        are too small for more; on CUDA one.
    """
    class_embeddings = class_embeddings.cpu()
    patches = replace(patches, source=None)  # labels and groups are all that is needed of them
    content = _content(class_embeddings, features, patches.labels)
    paths = [folder / f"{_identity(study, head_options, options, features.n_views, content)}.npy" for study in plan]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = (os.cpu_count() or 1) if clip.device.type == "cpu" else 1
    # The longest first, so that no core is left with one of them at the end.
    missing.sort(key=lambda number: -len(plan[number].train) * plan[number].head.get("layers", 1))
    tasks = [
        joblib.delayed(_fit_and_keep)(
            paths[number], plan[number], class_embeddings, head_options, features, patches, options, clip.device,
            clip.amp_dtype, 3 * workers,
        )
        for number in missing
    ]  # fmt: skip
    results = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)
    for _ in tqdm(results, total=len(plan), initial=len(plan) - len(missing), desc="studies", disable=not progress):
        pass
    return [
        Finished(study.purpose, study.name, study.row, len(study.train), study.test, from_probabilities(np.load(path)))
        for study, path in zip(plan, paths, strict=True)
    ]


def _fit_and_keep(path: Path, study: Study, *arguments: object) -> None:
    probabilities = _fit(study, *arguments)
    with replacing(path) as temporary:
        np.save(temporary, probabilities)


def _fit(
    study: Study,
    class_embeddings: torch.Tensor,
    head_options: dict[str, object],
    features: ImageFeatures,
    patches: PatchDataset,
    options: TrainingOptions,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    share: int,
) -> np.ndarray:
    """Return the probabilities (n, N) of a study's test patches."""
    if study.row == "linear_probe":
        return fit_linear_probe(features, patches, study.train, options.seed).predict(features, study.test).scores
    options = replace(options, **study.training)
    kind = "global" if study.row in ("mlp", "histoclip_global") else "patch"
    reader = FeatureReader(features.of_kind(kind), device, share=share)
    reader.n_views = study.views or reader.n_views
    if study.row == "histoclip_text_free":
        generator = torch.Generator().manual_seed(options.seed)
        class_embeddings = functional.normalize(torch.randn(class_embeddings.shape, generator=generator), dim=-1)
    head = new_head(class_embeddings, head_options | study.head, reader, study.train, options.seed)
    if study.row == "mlp":
        torch.manual_seed(options.seed)
        scaled, head = head, mlp_like(head)
        head.token_mean, head.token_scale = scaled.token_mean, scaled.token_scale
    train_head(head, reader, patches.labels, study.train, study.train[:0], options, None, amp_dtype, progress=False)
    return predict_probabilities(head, reader, study.test)


def _content(class_embeddings: torch.Tensor, features: ImageFeatures, labels: np.ndarray) -> str:
    """Return a digest of what all studies of a run share; features are named by their content."""
    digest = hashlib.sha256(class_embeddings.numpy().tobytes() + labels.tobytes())
    for piece in (*features.pooled.pieces, *features.tokens.pieces):
        digest.update(str(getattr(piece, "filename", "")).encode())
    return digest.hexdigest()


def _identity(
    study: Study, head_options: dict[str, object], options: TrainingOptions, n_views: int, content: str
) -> str:
    about = {**asdict(options), **study.training, **head_options, **study.head, "row": study.row}
    about |= {"views": study.views or n_views, "content": content}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(study.train.tobytes() + b"/" + study.test.tobytes())
    return digest.hexdigest()[:32]


def save_studies(path: Path, finished: list[Finished], patches: PatchDataset, folder: Path) -> None:
    """Write studies in long form, and remove the folder in which `run_studies` kept them one by one.

    Columns: `purpose`, `name`, `row`, `n_train`, `file`, `class` and `score` (float32).
    """
    n_classes, files = len(patches.classes), np.asarray(patches.files, dtype=object)
    frames = [
        pd.DataFrame(
            {
                "purpose": study.purpose,
                "name": study.name,
                "row": study.row,
                "n_train": study.n_train,
                "file": np.repeat(files[study.test], n_classes),
                "class": np.tile(patches.classes, len(study.test)),
                "score": study.predictions.scores.astype(np.float32).ravel(),
            }
        )
        for study in finished
    ]
    table = pd.concat(frames, ignore_index=True)
    table = table.astype({c: "category" for c in ("purpose", "name", "row", "file", "class")})
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
    shutil.rmtree(folder, ignore_errors=True)


def load_studies(path: Path, patches: PatchDataset) -> list[Finished]:
    """Read what `save_studies` wrote for the same patches.

    Raises
    ------
    HistoCLIPError
        If the file is absent or was written for other patches or classes.
    """
    if not path.is_file():
        raise HistoCLIPError(f"{path} was not found. Run the notebook 03_train of this run first.")
    table = pd.read_parquet(path)
    position = {file: number for number, file in enumerate(patches.files)}
    finished = []
    for (purpose, name, row), part in table.groupby(["purpose", "name", "row"], observed=True, sort=False):
        classes = list(part["class"][: len(patches.classes)])
        if classes != list(patches.classes) or not set(part["file"]) <= set(position):
            raise HistoCLIPError(f"{path} was written for other patches or classes. Run 03_train again.")
        scores = part["score"].to_numpy(dtype=np.float64).reshape(-1, len(patches.classes))
        test = np.array([position[file] for file in part["file"][:: len(patches.classes)]])
        n_train = int(part["n_train"].iloc[0])
        finished.append(Finished(purpose, name, row, n_train, test, from_probabilities(scores)))
    return finished
