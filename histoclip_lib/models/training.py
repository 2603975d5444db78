"""Fitting a head on cached features: eq. (5), AdamW, warm-up and cosine decay, exact resumption."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from histoclip_lib.clip.encoder import CLIP
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import Predictions, from_probabilities, mean_accuracy
from histoclip_lib.features.encode import ImageFeatures
from histoclip_lib.features.reader import FeatureReader
from histoclip_lib.models.baselines import MLP
from histoclip_lib.models.cmm import CMM, require_shapes


def training_identity(
    head: torch.nn.Module, n_views: int, labels: np.ndarray, train: np.ndarray, options: dict[str, object]
) -> str:
    """Return what a checkpoint must agree in to be gone on with: options, labels, split, class matrix and features."""
    digest = hashlib.sha256(train.tobytes() + labels[train].tobytes())
    for buffer in head.buffers():  # the class matrix, and the mean and scale of the features
        digest.update(buffer.cpu().numpy().tobytes())
    return json.dumps({**options, **head.options, "views": n_views, "data": digest.hexdigest()}, sort_keys=True)


def save_checkpoint(
    path: Path,
    identity: str,
    head: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    history: list[dict],
) -> None:
    """Write the state of a training as safetensors: weights, optimiser, loss scaling and history.

    Parameters
    ----------
    path : Path
        The file.
    identity : str
        As `training_identity` returns.
    head : Module
        What is trained.
    optimizer : AdamW
        Its optimiser.
    scaler : GradScaler
        Its loss scaling.
    history : list of dict
        One entry for each finished epoch.
    """
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    about = {"identity": identity, "history": json.dumps(history), "scaler": json.dumps(scaler.state_dict())}
    with replacing(path) as temporary:
        save_file(state, temporary, about)


def load_checkpoint(
    path: Path, identity: str, head: torch.nn.Module, optimizer: torch.optim.AdamW, scaler: torch.amp.GradScaler
) -> list[dict]:
    """Load an interrupted training of the same identity and return its history.

    A file that is missing, damaged or of another training leaves all as it is and gives an empty history: training then
    starts anew.
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
        require_shapes(_shapes(weights), _shapes(head.state_dict()))
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


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


class TrainingStep:
    """Takes batches and updates a head.

    Parameters
    ----------
    head : Module
        From tokens (B, L, d) to a pair whose first is the logits (B, N).
    optimizer : Optimizer
        Of its parameters.
    scaler : GradScaler
        Scales the loss for float16; may be disabled.
    amp_dtype : torch.dtype or None
        Autocast type.
    compiled : bool
        Run the loss through `torch.compile`, on CUDA as a captured graph.
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

    def __call__(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Update the head on tokens (B, L, d) and labels (B, N) from 0 to 1; return the loss, a scalar.

        When the device's memory does not suffice, this batch and all later ones are taken in two halves whose gradients
        are added: the update is that of the whole batch, dropout aside, which is drawn for each half.

        Raises
        ------
        HistoCLIPError
            If the memory does not suffice for half a batch either; the head has not been changed.
        """
        try:
            loss = self._gradient(tokens, truth)
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
            return self(tokens, truth)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _gradient(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = 0
        for part, labels in zip(tokens.chunk(self.parts), truth.chunk(self.parts), strict=True):
            loss = self.loss(self.head, part, labels, self.amp_dtype) * (len(part) / len(tokens))
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total


def bce_loss(head: nn.Module, tokens: torch.Tensor, truth: torch.Tensor, amp_dtype: torch.dtype | None) -> torch.Tensor:
    """Return eq. (5), the binary cross-entropy of sigma(logit), as a scalar."""
    with torch.autocast(tokens.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits, _ = head(tokens)
    return functional.binary_cross_entropy_with_logits(logits.float(), truth)


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


EVALUATION_BATCH = 512
EVALUATIONS = 40  # of the validation part, along the way
CHECKPOINT_EVERY = 25  # epochs
KINDS = ("global", "patch")
SCALE_ROWS = 512  # training patches, spread over all, from which mean and scale of the features are taken


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
        wherever it shows, and a step costs so much less. Prediction sees all tokens.
    mixup : float
        Patches are mixed in pairs, tokens and labels alike, by a weight drawn from Beta(mixup, mixup) for each step
        (Zhang et al. 2018): a few hundred patches are not learned by heart so soon. 0 for none.
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
        0 or 1.
    train, val : ndarray of int
        Positions of the two parts; `val` may be empty.
    options : TrainingOptions
        How to train.
    checkpoint : Path, optional
        File in which the state is kept every 25 epochs and from which an interrupted training with the same options
        goes on: it ends with the weights of one that was not interrupted. Removed at the end.
    amp_dtype : torch.dtype, optional
        Autocast type; float16 brings loss scaling.
    progress : bool
        Whether to draw a bar with the loss and the validation mAcc.
    compiled : bool
        Run the step through `torch.compile`, on CUDA as a captured graph. Dropout is then drawn otherwise, so the
        weights are not those of an uncompiled training.

    Returns
    -------
    DataFrame
        One row for each epoch: `epoch`, `learning_rate`, `loss`, and `val_loss`, `val_mAcc` about forty times (NaN
        between).

    Raises
    ------
    HistoCLIPError
        If the loss or a weight is not finite; the message names epoch, batch and parameters, and the last checkpoint,
        which is kept. If half a batch does not fit in the device's memory.
    """
    device = reader.device
    head.to(device).train()
    optimizer = _optimizer(head, options, len(train))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    targets = torch.from_numpy(labels.astype(np.float32)).to(device)
    identity = training_identity(head, reader.n_views, labels, train, asdict(options))
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
        for number, ((rows, _), tokens) in enumerate(zip(batches, reader.batches(batches), strict=True), 1):
            for group in optimizer.param_groups:
                group["lr"] = options.rate(epoch + number / batches_per_epoch)
            tokens, truth = some_tokens(tokens, options.token_dropout), targets[rows]
            if options.mixup:
                weight, partner = draw.beta(options.mixup, options.mixup), draw.permutation(len(rows))
                tokens, truth = (values.float().lerp(values[partner].float(), weight) for values in (tokens, truth))
            losses.append(step(tokens, truth))
        losses = torch.stack(losses).cpu().numpy()
        _require_finite(head, losses, epoch, options, history, checkpoint)
        mean_loss = float(np.average(losses, weights=[len(rows) for rows, _ in batches]))
        record = {"epoch": epoch + 1, "learning_rate": options.rate(epoch + 1), "loss": mean_loss}
        if len(val) and ((epoch + 1) % evaluate_every == 0 or epoch + 1 == options.epochs):
            record |= _validation(head, reader, labels, val)
            bar.set_postfix(loss=f"{mean_loss:.3f}", val_mAcc=f"{record['val_mAcc']:.4f}")
        history.append(record)
        bar.update()
        if checkpoint and (epoch + 1) % CHECKPOINT_EVERY == 0 and epoch + 1 < options.epochs:
            save_checkpoint(checkpoint, identity, head, optimizer, scaler, history)
    bar.close()
    head.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return pd.DataFrame(history, columns=["epoch", "learning_rate", "loss", "val_loss", "val_mAcc"])


def _require_finite(
    head: CMM | MLP,
    losses: np.ndarray,
    epoch: int,
    options: TrainingOptions,
    history: list[dict],
    checkpoint: Path | None,
) -> None:
    """Stop a training that has run away, before its state is kept."""
    damaged, wrong = not_finite(head), np.flatnonzero(~np.isfinite(losses))
    if not damaged and not len(wrong):
        return
    batch = wrong[0] if len(wrong) else len(losses) - 1
    kept = len(history) // CHECKPOINT_EVERY * CHECKPOINT_EVERY if checkpoint and checkpoint.is_file() else 0
    raise HistoCLIPError(
        f"epoch {epoch + 1}, batch {batch + 1} of {len(losses)}: the loss is {losses[batch]:g}, and not finite are "
        f"{', '.join(damaged[:5]) or 'no parameters, so look at the features'}"
        f"{f' and {len(damaged) - 5} more' * (len(damaged) > 5)}. Lower learning_rate ({options.learning_rate:g}), or "
        f"use precision: fp32.{f' The state after epoch {kept} is kept in {checkpoint}.' * (kept > 0)}"
    )


def new_head(
    class_embeddings: torch.Tensor,
    head_options: dict[str, object],
    reader: FeatureReader,
    train: np.ndarray,
    seed: int,
) -> CMM:
    """Return a head as it is before training: its weights drawn by `seed`, its scale fitted to the training features.

    Parameters
    ----------
    class_embeddings : tensor of shape (N, d)
        The class matrix of eq. (2).
    head_options : dict
        `heads`, `layers`, `hidden`, `dropout` and so on of `CMM`.
    reader : FeatureReader
        Features of the B patches.
    train : ndarray of int
        The training part.
    seed : int
        Of the weights.
    """
    torch.manual_seed(seed)
    head = CMM(class_embeddings, **head_options)
    spread = np.linspace(0, len(train) - 1, min(SCALE_ROWS, len(train))).astype(int)
    head.fit_scale(reader.take(train[spread]))
    return head


def train_both(
    class_embeddings: torch.Tensor,
    head_options: dict[str, float],
    features: ImageFeatures,
    labels: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    options: TrainingOptions,
    clip: CLIP,
    folder: Path,
) -> tuple[dict[str, CMM], pd.DataFrame]:
    """Fit the head on the global embedding and on the patch tokens.

    Parameters
    ----------
    class_embeddings : tensor of shape (N, d)
        The class matrix of eq. (2).
    head_options : dict
        `heads`, `layers`, `hidden` and `dropout` of `CMM`.
    features : ImageFeatures
        Of B patches.
    labels, train, val, options
        As in `train_head`.
    clip : CLIP
        Gives device and precision, and whether steps are compiled.
    folder : Path
        Where checkpoints lie while a head is trained.

    Returns
    -------
    heads : dict of str to CMM
        `global` and `patch`.
    history : DataFrame
        Of both, with a column `head`.
    """
    heads, histories = {}, []
    for kind in KINDS:
        reader = FeatureReader(features.of_kind(kind), clip.device)
        head = new_head(class_embeddings, head_options, reader, train, options.seed)
        history = train_head(
            *(head, reader, labels, train, val, options, folder / f".cmm_{kind}.checkpoint.safetensors"),
            amp_dtype=clip.amp_dtype,
            compiled=clip.compiled,
        )
        heads[kind] = head
        histories.append(history.assign(head=kind))
    return heads, pd.concat(histories, ignore_index=True)


@torch.inference_mode()
def predict_probabilities(head: CMM | MLP, reader: FeatureReader, rows: np.ndarray) -> np.ndarray:
    """Return sigma of the logits, the mean over the views, of some patches, with the head in eval mode.

    Parameters
    ----------
    head : CMM or MLP
        Moved to the reader's device; its mode is restored.
    reader : FeatureReader
        Features of the B patches in V views.
    rows : ndarray of int, shape (n,)
        Which patches.

    Returns
    -------
    ndarray of shape (n, N), float32
    """
    was_training = head.training
    head.to(reader.device).eval()
    batches = np.array_split(rows, max(1, math.ceil(len(rows) / EVALUATION_BATCH)))
    views = range(reader.n_views)
    probabilities = [
        torch.stack([head(reader.take(batch, view))[0].float().sigmoid() for view in views]).mean(dim=0)
        for batch in batches
    ]
    head.train(was_training)
    return torch.cat(probabilities).cpu().numpy()


def predict(head: CMM, features: ImageFeatures, kind: str, rows: np.ndarray, device: torch.device) -> Predictions:
    """Return the predictions of a head for some patches; `kind` is `global` or `patch`."""
    return from_probabilities(predict_probabilities(head, FeatureReader(features.of_kind(kind), device), rows))


def _validation(head: CMM | MLP, reader: FeatureReader, labels: np.ndarray, val: np.ndarray) -> dict[str, float]:
    probabilities = predict_probabilities(head, reader, val)
    loss = functional.binary_cross_entropy(
        torch.from_numpy(probabilities), torch.from_numpy(labels[val].astype(np.float32))
    )
    return {
        "val_loss": loss.item(),
        "val_mAcc": mean_accuracy(labels[val], from_probabilities(probabilities).decisions),
    }


def _optimizer(head: CMM | MLP, options: TrainingOptions, n_train: int) -> torch.optim.AdamW:
    decay = options.weight_decay * math.sqrt(options.batch_size / (n_train * options.epochs))
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
