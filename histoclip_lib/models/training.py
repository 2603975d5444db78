"""Fitting a head on cached features: eq. (5), AdamW, warm-up and cosine decay, exact resumption."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.predictions import Predictions, cross_entropy, from_probabilities, mean_accuracy
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.features.store import Shards
from histoclip_lib.models.cmm import CMM, load_cmm, read_metadata, require_shapes, save_cmm, shapes_of, write_tensors

if TYPE_CHECKING:
    from histoclip_lib.clip.encoder import CLIP
    from histoclip_lib.features.store import ImageFeatures
    from histoclip_lib.models.cmm import MLP

EVALUATION_BATCH = 512
EVALUATIONS = 40  # of the validation part, along the way
CHECKPOINT_EVERY = 25  # epochs
KINDS = ("global", "patch")
HISTORY = ["epoch", "learning_rate", "loss", "val_loss", "val_mAcc"]
SCALE_PATCHES = 512  # of the training part, at even distances, for mean and scale of the features


@dataclass(frozen=True)
class TrainingOptions:
    """How a head is fitted; the fields are parameters of the notebook 03_train.

    Attributes
    ----------
    epochs, warmup_epochs : int
        Passes over the training part, and how many of them raise the learning rate linearly from zero.
    learning_rate : float
        Its highest value; after the warm-up it falls to zero along a cosine.
    weight_decay : float
        Of AdamW, on matrices only, normalised: applied is `weight_decay * sqrt(batch_size / (T * epochs))` for T
        training patches, so that one value serves few patches and many (Loshchilov and Hutter 2019, appendix B.1).
    batch_size : int
        Patches in one step.
    token_dropout : float
        Fraction of the patch tokens that a step leaves out, drawn anew for each patch: the head must find each class
        wherever it appears, and a step costs less. Prediction sees all tokens.
    mixup : float
        Patches are mixed in pairs, tokens and labels alike, by a weight drawn from Beta(mixup, mixup) for each step
        (Zhang et al. 2018), against overfitting to a few hundred patches. 0 for none.
    seed : int
        Of the initial weights, the order of patches, the views and tokens drawn, the mixing and dropout.
    """

    epochs: int = 100
    warmup_epochs: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 25.0
    batch_size: int = 64
    token_dropout: float = 0.75
    mixup: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values with which nothing can be trained."""
        if not 0 <= self.token_dropout < 1:
            raise HistoCLIPError(f"token_dropout: {self.token_dropout} must be at least 0 and below 1.")
        if not self.mixup >= 0:
            raise HistoCLIPError(f"mixup: {self.mixup} must be at least 0.")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise HistoCLIPError(f"{name}: {getattr(self, name)} must be above 0.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise HistoCLIPError(
                f"warmup_epochs: {self.warmup_epochs} must be at least 0 and below epochs ({self.epochs})."
            )

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a point of the training, counted in epochs."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@cache
def source_digest() -> str:
    """Return a digest of the code that determines what a training gives: this room, and the reader of features."""
    room = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (*sorted(room.glob("*.py")), room.parent / "features" / "reader.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def feature_names(features: Shards) -> list[str]:
    """Return the names of the files that hold features, which follow from encoder and patches; empty in memory."""
    return [Path(getattr(piece, "filename", None) or "").name for piece in features.pieces]


def training_identity(
    head: CMM | MLP, features: Shards, n_views: int, labels: np.ndarray, train: np.ndarray, options: TrainingOptions
) -> str:
    """Return as JSON what two trainings must agree in to give the same weights.

    That is the options, labels and split, the class matrix, the features and their number of views, and the code.
    """
    digest = hashlib.sha256(train.tobytes() + labels[train].tobytes() + "/".join(feature_names(features)).encode())
    for buffer in head.buffers():  # the class matrix, and the mean and scale of the features
        digest.update(buffer.cpu().numpy().tobytes())
    about = {**asdict(options), **head.options, "views": n_views, "data": digest.hexdigest()}
    return json.dumps(about | {"source": source_digest()}, sort_keys=True)


def save_checkpoint(
    path: Path,
    identity: str,
    head: CMM | MLP,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    history: list[dict],
) -> None:
    """Write the state of a training as safetensors: weights, optimiser, loss scaling, and what each epoch gave."""
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    about = {"identity": identity, "history": json.dumps(history), "scaler": json.dumps(scaler.state_dict())}
    write_tensors(path, state, about)


def load_checkpoint(
    path: Path, identity: str, head: CMM | MLP, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler
) -> list[dict]:
    """Load an interrupted training of the same identity and return its history.

    A file that is missing, damaged or of another training changes nothing and gives an empty history: training then
    starts from the beginning.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("identity") != identity:
                return []
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        history, scales = json.loads(about["history"]), json.loads(about["scaler"])
        if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
            return []
        weights = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
        require_shapes(shapes_of(weights), shapes_of(head.state_dict()))
        moments = optimizer.state_dict()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                expected = () if key == "step" else tuple(parameters[int(number)].shape)
                require_shapes({name: tuple(value.shape)}, {name: expected})
                moments["state"].setdefault(int(number), {})[key] = value
        scaler.load_state_dict(scales)
        optimizer.load_state_dict(moments)
        head.load_state_dict(weights)
    except (FileNotFoundError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
        return []
    return history


class TrainingStep:
    """Updates a head, batch by batch.

    The head maps tokens (B, L, d) to a pair whose first is the logits (B, N). `scaler` scales the loss for float16.
    Where `compiled`, the loss runs through `torch.compile`, on CUDA as a captured graph.
    """

    def __init__(
        self,
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        amp_dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.head, self.optimizer, self.scaler, self.amp_dtype = head, optimizer, scaler, amp_dtype
        self.parts = 1
        self.loss = bce_loss
        if compiled:
            on_cuda = next(head.parameters()).device.type == "cuda"
            self.loss = torch.compile(bce_loss, mode="reduce-overhead" if on_cuda else None, dynamic=False)

    def __call__(self, tokens: torch.Tensor, truth: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Update the head on tokens (B, L, d) and labels (B, N) from 0 to 1; return the loss, a scalar.

        `known` (B, N) weighs each label, 0 for one that is not known; by default all count alike.

        When the device's memory does not suffice, this batch and all later ones are taken in two halves whose gradients
        are added: the update is that of the whole batch, dropout aside, which is drawn for each half.

        Raises
        ------
        HistoCLIPError
            If the memory does not suffice for half a batch either; the head has not been changed.
        """
        try:
            loss = self._gradient(tokens, truth, known)
        except torch.OutOfMemoryError as error:
            if self.parts > 1 or len(tokens) == 1:
                raise HistoCLIPError(
                    f"batch_size: half a batch of {len(tokens)} patches with {tokens.shape[1]} tokens each does not "
                    "fit in the device's memory. Lower batch_size, raise token_dropout, or set device: cpu."
                ) from error
            self.parts = 2
            loss = None
        if loss is None:  # out of the handler, whose traceback holds the tensors of the first try
            warnings.warn(
                f"A batch of {len(tokens)} patches does not fit in the device's memory: batches are taken in two "
                "halves from here on. The result is the same; a smaller batch_size would be another training.",
                stacklevel=2,
            )
            torch.cuda.empty_cache()
            return self(tokens, truth, known)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _gradient(self, tokens: torch.Tensor, truth: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        if known is not None:  # so that the loss is a mean over these
            known = known / known.mean().clamp_min(torch.finfo(known.dtype).tiny)
        total = 0
        weights = [None] * self.parts if known is None else known.chunk(self.parts)
        for part, labels, weight in zip(tokens.chunk(self.parts), truth.chunk(self.parts), weights, strict=True):
            loss = self.loss(self.head, part, labels, self.amp_dtype, weight) * (len(part) / len(tokens))
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total


def bce_loss(
    head: nn.Module,
    tokens: torch.Tensor,
    truth: torch.Tensor,
    amp_dtype: torch.dtype | None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return eq. (5), the binary cross-entropy of sigma(logit), as a scalar; `weight` (B, N) is that of each label."""
    with torch.autocast(tokens.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits, _ = head(tokens)
    return functional.binary_cross_entropy_with_logits(logits.float(), truth, weight)


def some_tokens(tokens: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return a random part of the tokens (B, L, d) of each patch; at least one."""
    length, width = tokens.shape[1:]
    kept = max(1, round(length * (1 - dropout)))
    if kept == length:
        return tokens
    chosen = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)[:, :kept]
    chosen += length * torch.arange(len(tokens), device=tokens.device)[:, None]  # counted over all patches
    return tokens.flatten(0, 1).index_select(0, chosen.flatten()).view(-1, kept, width)


def not_finite(head: nn.Module) -> list[str]:
    """Return the names of the parameters that hold a value which is not finite."""
    found = torch.stack([parameter.detach().isfinite().all() for parameter in head.parameters()]).tolist()
    return [name for (name, _), finite in zip(head.named_parameters(), found, strict=True) if not finite]


def train_head(
    head: CMM | MLP,
    reader: FeatureReader,
    labels: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    options: TrainingOptions,
    checkpoint: Path | None = None,
    amp_dtype: torch.dtype | None = None,
    progress: bool = True,
    compiled: bool = False,
) -> pd.DataFrame:
    """Fit a head, in place.

    The validation part is scored along the way for the curves and is never used to choose anything.

    Parameters
    ----------
    head : CMM or MLP
        Freshly made; moved to the reader's device.
    reader : FeatureReader
        Features of the B patches.
    labels : ndarray of shape (B, N)
        0, 1, or NaN where not known: these do not count in the loss.
    train, val : ndarray of int
        Indices of the patches of the two parts; `val` may be empty.
    options : TrainingOptions
        How to train.
    checkpoint : Path, optional
        File in which the state is kept every 25 epochs and from which an interrupted training with the same options
        continues, with the weights of one that was not interrupted at the end. Removed then.
    amp_dtype : torch.dtype, optional
        Autocast type; float16 brings loss scaling.
    progress : bool
        Whether to draw a bar with the loss and the validation mAcc.
    compiled : bool
        Run the step through `torch.compile`, on CUDA as a captured graph. Dropout is then drawn differently, so the
        weights are not those of an uncompiled training.

    Returns
    -------
    DataFrame
        A line for each epoch: `epoch`, `learning_rate`, `loss`, and `val_loss`, `val_mAcc` about forty times (NaN
        between).

    Raises
    ------
    HistoCLIPError
        If the loss or a weight is not finite; the message names epoch, batch and parameters, and the last checkpoint,
        which is kept. If half a batch does not fit in the device's memory.

    Examples
    --------
    >>> from histoclip_lib import CMM, encode_dataset, load_clip, load_dataset, train_head
    >>> patches, clip = load_dataset("synthetic", n_patches=8), load_clip(device="cpu")
    >>> features = encode_dataset(clip, patches, progress=False)
    >>> head = CMM(clip.encode_text(patches.classes).numpy(), heads=4)
    >>> from histoclip_lib.features import FeatureReader
    >>> from histoclip_lib.models import TrainingOptions
    >>> reader, options = FeatureReader(features.tokens, clip.device), TrainingOptions(epochs=2, warmup_epochs=1)
    >>> history = train_head(head, reader, patches.labels, np.arange(6), np.arange(6, 8), options, progress=False)
    >>> len(history)
    2
    """
    device = reader.device
    head.to(device).train()
    optimizer = _optimizer(head, options, len(train))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    targets = torch.from_numpy(np.nan_to_num(labels.astype(np.float32))).to(device)
    incomplete = bool(np.isnan(labels[train]).any())
    all_known = torch.from_numpy((~np.isnan(labels)).astype(np.float32)).to(device)
    identity = training_identity(head, reader.features, reader.n_views, labels, train, options)
    history = load_checkpoint(checkpoint, identity, head, optimizer, scaler) if checkpoint else []
    batches_per_epoch = math.ceil(len(train) / options.batch_size)
    evaluate_every = max(1, options.epochs // EVALUATIONS)
    step = TrainingStep(head, optimizer, scaler, amp_dtype, compiled)

    bar = tqdm(range(options.epochs), initial=len(history), desc="training", unit="epoch", disable=not progress)
    for epoch in range(len(history), options.epochs):
        # Everything random in an epoch follows from (seed, epoch), so that a resumed training draws the same.
        draw = np.random.default_rng([options.seed, epoch])
        order = draw.permutation(train)
        views = draw.integers(reader.n_views, size=len(train))
        torch.manual_seed(int(draw.integers(2**62)))
        losses = []
        batches = list(zip(*(np.array_split(array, batches_per_epoch) for array in (order, views)), strict=True))
        for number, ((index, _), tokens) in enumerate(zip(batches, reader.batches(batches), strict=True), 1):
            for group in optimizer.param_groups:
                group["lr"] = options.rate(epoch + number / batches_per_epoch)
            tokens, truth, known = some_tokens(tokens, options.token_dropout), targets[index], all_known[index]
            if options.mixup:
                weight, partner = draw.beta(options.mixup, options.mixup), draw.permutation(len(index))
                tokens, truth, known = (
                    values.float().lerp(values[partner].float(), weight) for values in (tokens, truth, known)
                )
            if incomplete:  # a mixed label of which a half is not known is the other half, with the weight of that
                losses.append(step(tokens, truth / known.clamp_min(1e-6), known))
            else:
                losses.append(step(tokens, truth))
        losses = torch.stack(losses).cpu().numpy()
        _require_finite(head, losses, epoch, options.learning_rate, checkpoint)
        mean_loss = float(np.average(losses, weights=[len(index) for index, _ in batches]))
        record = {"epoch": epoch + 1, "learning_rate": options.rate(epoch + 1), "loss": mean_loss}
        if len(val) and ((epoch + 1) % evaluate_every == 0 or epoch + 1 == options.epochs):
            probabilities = predict_probabilities(head, reader, val)
            record["val_loss"] = cross_entropy(labels[val], probabilities)
            record["val_mAcc"] = mean_accuracy(labels[val], from_probabilities(probabilities).decisions)
            bar.set_postfix(loss=f"{mean_loss:.3f}", val_mAcc=f"{record['val_mAcc']:.4f}")
        history.append(record)
        bar.update()
        if checkpoint and (epoch + 1) % CHECKPOINT_EVERY == 0 and epoch + 1 < options.epochs:
            save_checkpoint(checkpoint, identity, head, optimizer, scaler, history)
    bar.close()
    head.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return pd.DataFrame(history, columns=HISTORY)


def _require_finite(head: CMM | MLP, losses: np.ndarray, epoch: int, rate: float, checkpoint: Path | None) -> None:
    """Stop a training that has diverged, before its state is kept."""
    damaged, wrong = not_finite(head), np.flatnonzero(~np.isfinite(losses))
    if not damaged and not len(wrong):
        return
    batch = wrong[0] if len(wrong) else len(losses) - 1
    kept = epoch // CHECKPOINT_EVERY * CHECKPOINT_EVERY if checkpoint and checkpoint.is_file() else 0
    raise HistoCLIPError(
        f"epoch {epoch + 1}, batch {batch + 1} of {len(losses)}: the loss is {losses[batch]:g}; parameters that are "
        f"not finite: {', '.join(damaged[:5]) or 'none, so check the features'}"
        f"{f' and {len(damaged) - 5} more' * (len(damaged) > 5)}. Lower learning_rate ({rate:g}), or "
        f"use precision: fp32.{f' The state after epoch {kept} is kept in {checkpoint}.' * (kept > 0)}"
    )


def new_head(
    class_embeddings: np.ndarray, head_options: dict[str, object], features: Shards, train: np.ndarray, seed: int
) -> CMM:
    """Return a head as it is before training: its weights drawn by `seed`, its scale fitted to the training features.

    Parameters
    ----------
    class_embeddings : ndarray or tensor of shape (N, d)
        The class matrix of eq. (2).
    head_options : dict
        `heads`, `layers`, `hidden`, `dropout` and so on of `CMM`.
    features : Shards
        What the head is to attend to, for B patches.
    train : ndarray of int
        The training part.
    seed : int
        Of the weights.
    """
    torch.manual_seed(seed)
    head = CMM(class_embeddings, **head_options)
    spread = np.linspace(0, len(train) - 1, min(SCALE_PATCHES, len(train))).astype(int)
    head.fit_scale(torch.from_numpy(features.take(train[spread])))
    return head


def random_queries(n_classes: int, width: int, seed: int) -> torch.Tensor:
    """Return a random unit vector for each class, shape (N, d): queries that know nothing of the classes' words."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn((n_classes, width), generator=generator), dim=-1)


def head_path(folder: Path, kind: str, fold: int | None = None) -> Path:
    """Return where a run keeps the head on `global` or `patch` features: that of a fold, by default the final one."""
    return folder / (f"cmm_{kind}.safetensors" if fold is None else f"folds/{kind}_{fold + 1}.safetensors")


def train_heads(
    class_embeddings: np.ndarray,
    head_options: dict[str, object],
    features: ImageFeatures,
    patches: PatchDataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    options: TrainingOptions,
    clip: CLIP,
    folder: Path,
    workers: int | None = None,
) -> tuple[dict[str, list[CMM]], pd.DataFrame]:
    """Fit the head on the global embedding and on the patch tokens, or load those that the same training left.

    Parameters
    ----------
    class_embeddings, head_options
        As in `new_head`.
    features, patches
        Features, labels and classes of B patches.
    folds : list of (ndarray, ndarray)
        For each fold the patches to fit on and those to hold out, as `splits.make_folds` returns. With several, a final
        head of each kind is fitted on the patches of all of them.
    options
        As in `train_head`.
    clip : CLIP
        Gives backbone, device and precision, and whether steps are compiled.
    folder : Path
        Of the run. Heads are written to `head_path` as soon as each is trained, with the history and with what
        determined the training: a head for which all of that is the same is loaded.
    workers : int, optional
        Processes that share the heads of several folds out among them. By default one for each core, each on one
        thread; on CUDA one.

    Returns
    -------
    heads : dict of str to list of CMM
        `global` and `patch`, of each fold.
    history : DataFrame
        Of both in the first fold, with a column `head`.
    """
    if workers is None:
        workers = n_cores() if len(folds) > 1 and clip.device.type == "cpu" else 1
    everything = np.unique(np.concatenate([val for _, val in folds]))
    nothing = everything[:0]
    numbers = [None] if len(folds) == 1 else [*range(len(folds))]
    parts = [(numbers[0], *folds[0])]  # the one with a curve
    if len(folds) > 1:
        parts += [*((k, train, nothing) for k, (train, _) in enumerate(folds[1:], 1)), (None, everything, nothing)]
    (folder / "folds").mkdir(exist_ok=True)
    compute = (clip.backbone, clip.device, clip.amp_dtype, clip.compiled)
    shared = (class_embeddings, head_options, features, patches.labels, patches.classes, options, compute, 3 * workers)
    trainings = {head_path(folder, kind, k): (kind, train, val) for kind in KINDS for k, train, val in parts}
    for old in set((folder / "folds").glob("*.safetensors")) - trainings.keys():
        old.unlink()
    tasks = [joblib.delayed(_train_or_find)(path, *part, *shared, workers == 1) for path, part in trainings.items()]
    done = joblib.Parallel(n_jobs=workers, return_as="generator")(tasks)
    bar = tqdm(done, total=len(tasks), desc="heads", disable=workers == 1)
    histories = dict(zip(trainings, bar, strict=True))

    history = pd.concat([histories[head_path(folder, kind, numbers[0])].assign(head=kind) for kind in KINDS])
    heads = {
        kind: [load_cmm(head_path(folder, kind, k), patches.classes, clip.backbone).to(clip.device) for k in numbers]
        for kind in KINDS
    }
    return heads, history.reset_index(drop=True)


def _train_or_find(
    path: Path,
    kind: str,
    train: np.ndarray,
    val: np.ndarray,
    class_embeddings: np.ndarray,
    head_options: dict[str, object],
    features: ImageFeatures,
    labels: np.ndarray,
    classes: list[str],
    options: TrainingOptions,
    compute: tuple[str, torch.device, torch.dtype | None, bool],
    share: int,
    progress: bool,
) -> pd.DataFrame:
    """Write one head, unless the file holds it already, and return its history."""
    backbone, device, amp_dtype, compiled = compute
    shards = features.of_kind(kind)
    head = new_head(class_embeddings, head_options, shards, train, options.seed)
    identity = json.dumps(
        [
            training_identity(head, shards, features.n_views, labels, train, options),
            hashlib.sha256(val.tobytes() + labels[val].tobytes()).hexdigest(),
            *(device.type, str(amp_dtype), compiled),
        ]
    )
    found = _finished_head(path, identity, classes, backbone)
    if found is not None:
        return found
    history = train_head(
        *(head, FeatureReader(shards, device, share=share), labels, train, val, options),
        checkpoint=path.with_name(f".{path.stem}.checkpoint.safetensors"),
        amp_dtype=amp_dtype,
        progress=progress,
        compiled=compiled,
    )
    save_cmm(head, path, classes, backbone, identity, json.dumps(history.to_dict("records")))
    return history


def _finished_head(path: Path, identity: str, classes: list[str], backbone: str) -> pd.DataFrame | None:
    """Return the history of the head in a file, or None where it is of another training or damaged."""
    about = read_metadata(path)
    if about.get("identity") != identity:
        return None
    try:
        load_cmm(path, classes, backbone)
        return pd.DataFrame(json.loads(about["history"]), columns=HISTORY)
    except (HistoCLIPError, LookupError, TypeError, ValueError, RuntimeError):
        return None


@torch.inference_mode()
def predict_probabilities(head: CMM | MLP, reader: FeatureReader, index: np.ndarray) -> np.ndarray:
    """Return sigma of the logits, the mean over the views, of some patches, with the head in eval mode.

    Parameters
    ----------
    head : CMM or MLP
        Moved to the reader's device; its mode is restored.
    reader : FeatureReader
        Features of the B patches in V views.
    index : ndarray of int, shape (n,)
        Which patches.

    Returns
    -------
    ndarray of shape (n, N), float32
    """
    was_training = head.training
    head.to(reader.device).eval()
    batches = np.array_split(index, max(1, math.ceil(len(index) / EVALUATION_BATCH)))
    views = range(reader.n_views)
    probabilities = [
        torch.stack([head(reader.take(batch, view))[0].float().sigmoid() for view in views]).mean(dim=0)
        for batch in batches
    ]
    head.train(was_training)
    return torch.cat(probabilities).cpu().numpy()


def predict(head: CMM, features: ImageFeatures, kind: str, index: np.ndarray, device: torch.device) -> Predictions:
    """Return the predictions of a head for the patches at `index` (n,); `kind` is `global` or `patch`.

    Examples
    --------
    >>> from histoclip_lib import CMM, encode_dataset, load_clip, load_dataset, predict
    >>> patches, clip = load_dataset("synthetic", n_patches=8), load_clip(device="cpu")
    >>> features = encode_dataset(clip, patches, progress=False)
    >>> head = CMM(clip.encode_text(patches.classes).numpy(), heads=4)
    >>> predict(head, features, "patch", np.arange(3), clip.device).scores.shape
    (3, 4)
    """
    return from_probabilities(predict_probabilities(head, FeatureReader(features.of_kind(kind), device), index))


def _optimizer(head: CMM | MLP, options: TrainingOptions, n_train: int) -> torch.optim.AdamW:
    decay = options.weight_decay * math.sqrt(options.batch_size / (n_train * options.epochs))
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
