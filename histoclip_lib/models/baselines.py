"""Methods to beat: what looks at no image, and what learns from frozen features without text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from zipfile import BadZipFile

import numpy as np
from scipy.special import expit, logit

from histoclip_lib.common.arrays import nan_mean, unit
from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.executors import n_cores
from histoclip_lib.common.files import replacing
from histoclip_lib.common.predictions import Predictions, cross_entropy, from_probabilities
from histoclip_lib.common.registry import Registry, register_method
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.data.splits import grouped_folds

if TYPE_CHECKING:
    from histoclip_lib.features.store import ImageFeatures

PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FURTHER_STRENGTHS = {min: (1e-5, 1e-6), max: (10.0, 100.0)}  # tried one by one while the best C is at that edge
DEFAULT_STRENGTH = 1e-2  # where cross-validation is impossible, or has too few patches
MIN_PATCHES = 20  # to choose C from: with fewer the default had the lower cross-entropy (CoNSeP, demo)
FOLDS = 5  # fewer where there are fewer groups
NEIGHBOURS = (1, 3, 5, 7, 11, 15, 21, 31, 51, 71, 101)  # odd, so that a vote is never even
CHOOSING = 1000  # training patches, at random, on whose neighbours k is chosen
STORED = ("scores", "decisions", "about", "inside", "directions")  # of each baseline and fold
CHUNK = 256  # patches that are compared with all training examples at once

register_method("all_negative", "All negative", "uninformative")
register_method("all_positive", "All positive", "uninformative")
register_method("majority", "Majority of train", "uninformative", "Majority", in_table_one=True, probabilities=True)
register_method("tissue_prior", "Tissue prior of train", "uninformative", probabilities=True)
register_method("metadata_only", "Metadata only", "uninformative", probabilities=True)


def uninformative(train_labels: np.ndarray, n_patches: int) -> dict[str, Predictions]:
    """Return the methods that look at no image: `all_negative`, `all_positive` and `majority`.

    Parameters
    ----------
    train_labels : ndarray of shape (T, N)
        Labels of the training part; `majority` gives each class the label that most of these have.
    n_patches : int
        Number of patches to predict.

    Examples
    --------
    >>> import numpy as np
    >>> from histoclip_lib.models import uninformative
    >>> uninformative(np.array([[1, 0], [1, 0], [0, 1]]), n_patches=1)["majority"].decisions
    array([[ True, False]])
    """
    prior = np.nan_to_num(nan_mean(train_labels, axis=0))
    prevalence = np.broadcast_to(prior, (n_patches, len(prior)))
    constant = np.zeros_like(prevalence)
    return {
        "all_negative": Predictions(constant, np.zeros(prevalence.shape, dtype=bool)),
        "all_positive": Predictions(constant, np.ones(prevalence.shape, dtype=bool)),
        "majority": from_probabilities(prevalence),
    }


def tissue_prior_method(patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> dict[str, Predictions]:
    """Return `tissue_prior`: for each class its training prevalence in the tissue of the patch.

    A tissue that no training patch has gets the prevalence over all. Nothing is returned where the data set does not
    know its tissues.

    Parameters
    ----------
    patches : PatchDataset
        With labels, and tissues or none.
    train, val : ndarray of int
        The patches to count, and those to predict.
    """
    if patches.tissue is None:
        return {}
    labels, known, tissue = patches.labels[train], patches.tissue[train], patches.tissue[val]
    prior = np.nan_to_num(nan_mean(labels, axis=0))
    scores = np.tile(prior, (len(val), 1))
    for name in np.unique(known):
        own = nan_mean(labels[known == name], axis=0)
        scores[tissue == name] = np.where(np.isnan(own), prior, own)
    return {"tissue_prior": from_probabilities(scores)}


def metadata_method(patches: PatchDataset, train: np.ndarray, val: np.ndarray) -> dict[str, Predictions]:
    """Return `metadata_only`: a logistic regression for each class on the patches' metadata, one column for each value.

    A model that is no better has learned where a patch comes from. A value that no training patch has counts as none.
    Nothing is returned where the data set has no metadata.

    Parameters
    ----------
    patches : PatchDataset
        With labels, and metadata or none.
    train, val : ndarray of int
        The patches to fit on, and those to predict.
    """
    if not patches.meta:
        return {}
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    values, labels = np.stack(list(patches.meta.values()), axis=1), patches.labels[train]
    encoder = OneHotEncoder(handle_unknown="ignore").fit(values[train])
    known, new = (encoder.transform(values[part]) for part in (train, val))
    positives, counted = (labels == 1).sum(axis=0), (~np.isnan(labels)).sum(axis=0)
    scores = np.tile((positives + 1) / (counted + 2), (len(val), 1))
    for k in np.flatnonzero((positives > 0) & (positives < counted)):
        own = ~np.isnan(labels[:, k])
        scores[:, k] = LogisticRegression(max_iter=1000).fit(known[own], labels[own, k]).predict_proba(new)[:, 1]
    return {"metadata_only": from_probabilities(scores)}


class FittedBaseline(Protocol):
    """What fitting a baseline returns."""

    def predict(self, features: ImageFeatures, index: np.ndarray) -> Predictions:
        """Predict the patches at `index` (n,)."""

    def about(self) -> str:
        """Return a sentence of Markdown on what was chosen in fitting."""


FitBaseline = Callable[["ImageFeatures", PatchDataset, np.ndarray, int], FittedBaseline]
BASELINES: Registry[FitBaseline] = Registry("baseline", modules=(__name__,))
WITH_TEXT: set[str] = set()  # baselines that are also given the class embeddings


def baseline(
    name: str,
    label: str,
    short: str = "",
    in_table_one: bool = False,
    probabilities: bool = True,
    with_text: bool = False,
) -> Callable[[FitBaseline], FitBaseline]:
    """Register `fit(features, patches, train, seed) -> FittedBaseline` as a baseline, and as a method of the tables.

    Parameters
    ----------
    name : str
        In files, such as `linear_probe`.
    label, short : str
        In tables, and in narrow ones.
    in_table_one : bool
        Whether Table I has a column for it.
    probabilities : bool
        Whether its scores are probabilities.
    with_text : bool
        Whether `fit` takes the class embeddings (N, d) as a fifth argument.

    Examples
    --------
    >>> from histoclip_lib import baseline
    >>> @baseline("ridge", label="Ridge regression")
    ... def fit_ridge(features, patches, train, seed):
    ...     return Ridge(features.pooled.take(train), patches.labels[train])  # has predict() and about()
    """

    def register(fit: FitBaseline) -> FitBaseline:
        BASELINES.add(name, fit)
        WITH_TEXT.update({name} if with_text else ())
        register_method(name, label, "baseline", short, in_table_one, probabilities=probabilities)
        return fit

    return register


def fit_baseline(
    name: str,
    features: ImageFeatures,
    patches: PatchDataset,
    train: np.ndarray,
    seed: int,
    class_embeddings: np.ndarray,
) -> FittedBaseline:
    """Fit a registered baseline on the patches `train` (T,).

    `seed` is that of its cross-validation; `class_embeddings` (N, d) go to those that were registered `with_text`.
    """
    text = (class_embeddings,) if name in WITH_TEXT else ()
    return BASELINES[name](features, patches, train, seed, *text)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a baseline that was fitted on one part says of another.

    Attributes
    ----------
    predictions : Predictions
        For the patches that were held out.
    about : str
        What was chosen in fitting, in Markdown.
    inside : ndarray of shape (T, N) or None
        Probabilities of the T patches that it was fitted on, by models that had not seen them; None where it has none.
    directions : ndarray of shape (d, N) or None
        In which each class's logit rises; None where the model is not linear in the features.
    """

    predictions: Predictions
    about: str
    inside: np.ndarray | None
    directions: np.ndarray | None


def fit_baselines(
    features: ImageFeatures,
    patches: PatchDataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    seed: int,
    class_embeddings: np.ndarray | None,
    workers: int | None = None,
) -> dict[str, list[HeldOut]]:
    """Fit every registered baseline in each fold, and predict the patches that it holds out.

    `seed` and `class_embeddings` are those of `fit_baseline`, without which baselines with text are left out; `workers`
    is the number of processes that share the folds, by default one for each core.
    """
    import joblib

    names = [name for name in BASELINES.load() if class_embeddings is not None or name not in WITH_TEXT]
    patches = replace(patches, source=None)  # labels and groups are all that is needed of them
    workers = n_cores() if workers is None and len(folds) > 1 else workers or 1
    given = (features, patches, seed, class_embeddings)
    done = joblib.Parallel(n_jobs=workers)(
        joblib.delayed(_held_out)(name, *fold, *given) for fold in folds for name in names
    )
    return {name: done[number :: len(names)] for number, name in enumerate(names)}


def _held_out(
    name: str,
    train: np.ndarray,
    val: np.ndarray,
    features: ImageFeatures,
    patches: PatchDataset,
    seed: int,
    class_embeddings: np.ndarray,
) -> HeldOut:
    fitted = fit_baseline(name, features, patches, train, seed, class_embeddings)
    optional = (getattr(fitted, name, None) for name in ("out_of_fold", "directions"))
    return HeldOut(fitted.predict(features, val), fitted.about(), *optional)


def save_baselines(path: Path, baselines: dict[str, list[HeldOut]]) -> None:
    """Write what `fit_baselines` returned, as arrays."""
    arrays = {}
    for name, folds in baselines.items():
        for k, own in enumerate(folds):
            values = vars(own) | vars(own.predictions)
            arrays |= {f"{name}/{k}/{key}": values[key] for key in STORED if values[key] is not None}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_baselines(path: Path) -> dict[str, list[HeldOut]]:
    """Read what `save_baselines` wrote.

    Raises
    ------
    HistoCLIPError
        If the file is missing or damaged.
    """
    found: dict[str, list[dict]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                name, k, part = key.rsplit("/", 2)
                folds = found.setdefault(name, [])
                folds += [dict.fromkeys(STORED)] if int(k) == len(folds) else []
                folds[int(k)][part] = arrays[key]
        return {name: [_restored(**own) for own in folds] for name, folds in found.items()}
    except (OSError, EOFError, ValueError, LookupError, BadZipFile) as error:
        raise HistoCLIPError(f"{path} cannot be read ({error}). Run the notebook 03_train again.") from error


def _restored(scores: np.ndarray, decisions: np.ndarray, about: np.ndarray, **optional: np.ndarray | None) -> HeldOut:
    return HeldOut(Predictions(scores, decisions), str(about), **optional)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regressions, one for each class, on standardised frozen features.

    Attributes
    ----------
    mean, scale : ndarray of shape (d,)
        Standardisation.
    weights : ndarray of shape (d, N)
        Of the standardised features.
    intercepts : ndarray of shape (N,)
        A class that has one value in the training part has no weights, only the log-odds of (positives + 1) / (T + 2).
    strength : float
        The inverse regularisation C that was chosen.
    losses : dict of float to float
        Cross-validated binary cross-entropy of each C that was tried, in rising order; empty where none could be.
    out_of_fold : ndarray of shape (T, N) or None
        Probabilities of the training patches from regressions of the chosen C that were not fitted on them: the mean
        over the views, clipped to [1e-6, 1 - 1e-6]. None without cross-validation.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    strength: float
    losses: dict[float, float]
    out_of_fold: np.ndarray | None

    def predict(self, features: ImageFeatures, index: np.ndarray) -> Predictions:
        """Predict the patches at `index` (n,), by the mean over their views as the heads do."""
        return from_probabilities(self.probabilities(_all_views(features, index)))

    def probabilities(self, views: np.ndarray) -> np.ndarray:
        """Return the mean over the views of the probabilities (B, N), for pooled features (B, V, d)."""
        return expit((views - self.mean) / self.scale @ self.weights + self.intercepts).mean(axis=1)

    @property
    def directions(self) -> np.ndarray:
        """In which each class's logit rises in the space of the features, shape (d, N)."""
        return self.weights / self.scale[:, None]

    def about(self) -> str:
        """Return a sentence of Markdown on the choice of C."""
        return _choice(f"The linear probe's C = {self.strength:g}", self.losses)


@baseline("linear_probe", "Linear probe", in_table_one=True)
def fit_linear_probe(features: ImageFeatures, patches: PatchDataset, train: np.ndarray, seed: int) -> LinearProbe:
    """Fit a linear probe on the pooled features, its C chosen by cross-validation inside the training part.

    It sees what the heads see: every view of a patch is a training example, inside the folds too, and a patch is
    predicted by the mean over its views. With view 0 alone in the folds, the lowest cross-entropy was higher on CoNSeP
    (0.453, not 0.433) and on the demo (0.327, not 0.298). scikit-learn's C weighs the sum over examples, so it is
    divided by V.

    Parameters
    ----------
    features : ImageFeatures
        Of B patches in V views.
    patches : PatchDataset
        Labels, and groups, which the cross-validation keeps together.
    train : ndarray of int, shape (T,)
        The training part; any size. With fewer than MIN_PATCHES, with a single group, or where no class has both
        values in any fold's training part, C is DEFAULT_STRENGTH.
    seed : int
        Of the folds.
    """
    views, labels = _all_views(features, train), patches.labels[train]
    parts = _folds(patches, train, seed)
    if not parts or len(train) < MIN_PATCHES:
        return _fit_regressions(views, labels, DEFAULT_STRENGTH)
    tried: dict[float, np.ndarray] = {}
    losses: dict[float, float] = {}

    def try_out(strength: float) -> None:
        tried[strength] = np.empty(labels.shape)
        for inside, outside in parts:
            probe = _fit_regressions(views[inside], labels[inside], strength)
            tried[strength][outside] = np.clip(probe.probabilities(views[outside]), 1e-6, 1 - 1e-6)
        losses[strength] = cross_entropy(labels, tried[strength])

    for strength in PROBE_STRENGTHS:
        try_out(strength)
    for edge, further in FURTHER_STRENGTHS.items():
        for strength in further:
            if min(losses, key=losses.get) == edge(losses):
                try_out(strength)
    best = min(losses, key=losses.get)
    fitted = _fit_regressions(views, labels, best)
    return replace(fitted, losses=dict(sorted(losses.items())), out_of_fold=tried[best])


def _fit_regressions(views: np.ndarray, labels: np.ndarray, strength: float, boost: float = 1.0) -> LinearProbe:
    """Fit one regression for each class; the last feature is multiplied by `boost` once it is standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    _, n_views, width = views.shape
    scaler = StandardScaler().fit(views.reshape(-1, width))
    scaler.scale_[-1] /= boost
    examples, labels = scaler.transform(views.reshape(-1, width)), np.repeat(labels, n_views, axis=0)
    positives, known = ((values.sum(axis=0) / n_views) for values in (labels == 1, ~np.isnan(labels)))
    weights, intercepts = np.zeros((width, labels.shape[1]), dtype=np.float32), logit((positives + 1) / (known + 2))
    for k in np.flatnonzero((positives > 0) & (positives < known)):
        own = slice(None) if known[k] == len(views) else ~np.isnan(labels[:, k])
        with threadpool_limits(1):  # L-BFGS takes many small products: two threads were 30 times slower than one
            model = LogisticRegression(C=strength / n_views, max_iter=2000).fit(examples[own], labels[own, k])
        weights[:, k], intercepts[k] = model.coef_[0], model.intercept_[0]
    mean, scale = scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32)
    return LinearProbe(mean, scale, weights, intercepts, strength, {}, None)


@dataclass(frozen=True, eq=False)
class KNearest:
    """The labels of the k most similar training patches, by the cosine of centred features.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Of all views of the training patches; taken away before the cosine.
    examples : ndarray of shape (T, V, d)
        Training patches, centred, of unit length.
    labels : ndarray of shape (T, N)
        0, 1, or NaN where not known; such a neighbour has no vote.
    k : int
        Number of neighbours that vote.
    losses : dict of int to float
        Cross-validated binary cross-entropy of each k that was tried; empty where none could be.
    """

    mean: np.ndarray
    examples: np.ndarray
    labels: np.ndarray
    k: int
    losses: dict[int, float]

    def predict(self, features: ImageFeatures, index: np.ndarray) -> Predictions:
        """Predict the patches at `index` (n,) by (positive neighbours + 1) / (k + 2), the mean over their views."""
        queries = unit(_all_views(features, index) - self.mean)
        return from_probabilities(_votes(queries, self.examples, self.labels, (self.k,))[0])

    def about(self) -> str:
        """Return a sentence of Markdown on the choice of k."""
        return _choice(f"The number of nearest neighbours, k = {self.k},", self.losses)


@baseline("knn", "k-nearest neighbours")
def fit_knn(features: ImageFeatures, patches: PatchDataset, train: np.ndarray, seed: int) -> KNearest:
    """Keep the training patches as neighbours, their number k chosen by cross-validation inside the training part.

    k counts patches, not views: a training patch is as near as the nearest of its views, and votes once. Were each
    view a neighbour of its own, those of one patch would crowd out the others. On CoNSeP and on the demo this gave a
    lower cross-validated loss than V k neighbours among all views, than view 0 alone and than the mean of the views.
    The probability is (positive neighbours + 1) / (k + 2), Laplace's rule of succession, so its logarithm is finite.

    Parameters
    ----------
    features : ImageFeatures
        Of B patches in V views.
    patches : PatchDataset
        Labels, and groups, which the cross-validation keeps together.
    train : ndarray of int, shape (T,)
        The training part; any size. k is one of NEIGHBOURS, at most the number of patches in the smallest training
        part of a fold, and is chosen on CHOOSING of the patches; where no choice is possible it is the greatest of
        NEIGHBOURS up to sqrt(T).
    seed : int
        Of the folds, and of the patches that k is chosen on.
    """
    views, labels = _all_views(features, train), patches.labels[train]
    mean = views.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    examples = unit(views - mean)
    parts = _folds(patches, train, seed)
    if not parts:
        return KNearest(mean, examples, labels, max(k for k in NEIGHBOURS if k * k <= len(train)), {})
    asked = np.random.default_rng(seed).permutation(len(train))[:CHOOSING]
    candidates = tuple(k for k in NEIGHBOURS if k <= min(len(inside) for inside, _ in parts))
    probabilities = np.empty((len(candidates), *labels.shape))
    for inside, outside in parts:
        outside = np.intersect1d(outside, asked)
        probabilities[:, outside] = _votes(examples[outside], examples[inside], labels[inside], candidates)
    losses = {k: cross_entropy(labels[asked], p[asked]) for k, p in zip(candidates, probabilities, strict=True)}
    return KNearest(mean, examples, labels, min(losses, key=losses.get), losses)


TEXT_WEIGHTS = (0.0, 0.3, 1.0, 3.0)  # of the standardised text score, in log-odds
GAUSSIAN_WEIGHTS = (0.03, 0.1, 0.3, 1.0)  # of the log-odds of the Gaussians, which are overconfident in many dimensions
DEFAULT_WEIGHTS = (0.03, 0.3)  # of Gaussians and text, where no choice is possible
LEAST_WITHIN = 0.1  # of the variance of all patches: one patch of each kind has none within its kind
BLENDED_STRENGTHS = (1e-3, 1e-2, 1e-1)
TEXT_SCALE = 10.0  # of the text score as a feature: it is hardly regularised


@dataclass(frozen=True, eq=False)
class TextScores:
    """Cosines with the class embeddings, standardised over the training patches.

    Attributes
    ----------
    classes : ndarray of shape (N, d)
        Unit vectors.
    mean, scale : ndarray of shape (N,)
        Of the cosines of the training patches.
    """

    classes: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, classes: np.ndarray, embeddings: np.ndarray) -> TextScores:
        """Standardise over unit embeddings (T, d)."""
        cosines = embeddings @ classes.T
        return cls(classes, cosines.mean(axis=0), cosines.std(axis=0) + 1e-6)

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the scores (B, N) of unit embeddings (B, d)."""
        return (embeddings @ self.classes.T - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class GaussianWithText:
    """A linear discriminant for each class, in closed form, and the text score beside it.

    Attributes
    ----------
    weights, intercepts : ndarray of shape (d, N) and (N,)
        Log-odds of the Gaussians for unit embeddings; 0 for a class of one value.
    prior : ndarray of shape (N,)
        Log-odds of (positives + 1) / (T + 2).
    text : TextScores
        Of the same classes.
    chosen : tuple of float
        Weights of Gaussians and text.
    losses : dict of tuple to float
        Cross-validated cross-entropy of each pair of weights; empty where none could be.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    prior: np.ndarray
    text: TextScores
    chosen: tuple[float, float]
    losses: dict[tuple[float, float], float]

    def predict(self, features: ImageFeatures, index: np.ndarray) -> Predictions:
        """Predict the patches at `index` (n,) from the mean embedding of their views."""
        return from_probabilities(self.probabilities(_mean_embeddings(features, index), *self.chosen))

    def probabilities(self, embeddings: np.ndarray, gaussian: float, text: float) -> np.ndarray:
        """Return probabilities (B, N) of unit embeddings (B, d) with such weights of Gaussians and text."""
        odds = embeddings @ self.weights + self.intercepts
        return expit(gaussian * odds + text * self.text(embeddings) + self.prior)

    def about(self) -> str:
        """Return a sentence of Markdown on the choice of the weights."""
        gaussian, text = self.chosen
        how = "by cross-validation within the training set" if self.losses else "by default"
        unused = ": the class names are not used" if not text else ""
        return f"The Gaussian score has weight {gaussian:g} and the text score {text:g}{unused}, chosen {how}."


@baseline("gaussian_text", "Gaussian discriminant, text", with_text=True)
def fit_gaussian_with_text(
    features: ImageFeatures, patches: PatchDataset, train: np.ndarray, seed: int, class_embeddings: np.ndarray
) -> GaussianWithText:
    """Fit a Gaussian discriminant for each class and add the text score: few patches are enough.

    Patches with and without a class have Gaussians of one covariance, whose inverse is estimated as
    d ((T - 1) S + tr(S) I)^-1, so that fewer patches than dimensions do. Both parts are weighted; the weights are
    chosen by cross-validation among GAUSSIAN_WEIGHTS and TEXT_WEIGHTS, or DEFAULT_WEIGHTS with fewer than MIN_PATCHES.

    Parameters
    ----------
    features, patches, train, seed
        As for `fit_linear_probe`.
    class_embeddings : ndarray of shape (N, d)
        Unit vectors.

    References
    ----------
    Wang et al., A hard-to-beat baseline for training-free CLIP-based adaptation, ICLR 2024, eqs. (5) to (8); there the
    classes exclude each other, here each has a discriminant of its own.
    """
    embeddings, labels = _mean_embeddings(features, train), patches.labels[train]
    fitted = _fit_gaussians(embeddings, labels, class_embeddings)
    parts = _folds(patches, train, seed)
    if not parts or len(train) < MIN_PATCHES:
        return fitted
    pairs = [(gaussian, text) for gaussian in GAUSSIAN_WEIGHTS for text in TEXT_WEIGHTS]
    found = np.empty((len(pairs), *labels.shape))
    for inside, outside in parts:
        model = _fit_gaussians(embeddings[inside], labels[inside], class_embeddings)
        for number, pair in enumerate(pairs):
            found[number, outside] = model.probabilities(embeddings[outside], *pair)
    losses = {pair: cross_entropy(labels, probabilities) for pair, probabilities in zip(pairs, found, strict=True)}
    return replace(fitted, chosen=min(losses, key=losses.get), losses=losses)


def _fit_gaussians(embeddings: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> GaussianWithText:
    width = embeddings.shape[1]
    positives, known = (labels == 1).sum(axis=0), (~np.isnan(labels)).sum(axis=0)
    weights, intercepts = np.zeros((width, labels.shape[1])), np.zeros(labels.shape[1])
    for k in np.flatnonzero((positives > 0) & (positives < known)):
        own = embeddings[~np.isnan(labels[:, k])]
        present = labels[~np.isnan(labels[:, k]), k] == 1
        means = np.stack([own[present].mean(axis=0), own[~present].mean(axis=0)]).astype(float)
        within = own - means[np.where(present, 0, 1)]
        spread = within.T @ within / max(known[k] - 1, 1)
        trace = max(np.trace(spread), LEAST_WITHIN * own.var(axis=0).sum(), 1e-12)
        shrunk = (known[k] - 1) * spread + trace * np.eye(width)
        weights[:, k] = width * np.linalg.solve(shrunk, means[0] - means[1])
        intercepts[k] = -means.mean(axis=0) @ weights[:, k]
    prior = logit((positives + 1) / (known + 2))
    return GaussianWithText(weights, intercepts, prior, TextScores.of(classes, embeddings), DEFAULT_WEIGHTS, {})


@dataclass(frozen=True, eq=False)
class BlendedProbe:
    """A linear probe for each class, one of whose features is the text score of that class.

    Attributes
    ----------
    probes : list of LinearProbe
        One for each of the N classes, of d + 1 features.
    text : TextScores
        Of the same classes.
    strength : float
        The inverse regularisation C that was chosen.
    losses : dict of float to float
        As of `LinearProbe`.
    """

    probes: list[LinearProbe]
    text: TextScores
    strength: float
    losses: dict[float, float]

    def predict(self, features: ImageFeatures, index: np.ndarray) -> Predictions:
        """Predict the patches at `index` (n,) from the mean embedding of their views."""
        return from_probabilities(self.probabilities(_mean_embeddings(features, index)))

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Return probabilities (B, N) of unit embeddings (B, d)."""
        blended = _with_text(embeddings, self.text)
        return np.stack([probe.probabilities(x)[:, 0] for probe, x in zip(self.probes, blended, strict=True)], axis=1)

    def about(self) -> str:
        """Return a sentence of Markdown on the choice of C."""
        return _choice(f"The text-blended probe's C = {self.strength:g}", self.losses)


@baseline("blended_probe", "Text-blended probe", with_text=True)
def fit_blended_probe(
    features: ImageFeatures, patches: PatchDataset, train: np.ndarray, seed: int, class_embeddings: np.ndarray
) -> BlendedProbe:
    """Fit a linear probe whose weights start from the text: w + a t, with t the class embedding and a learned too.

    That is a logistic regression with the text score as one more feature, hardly regularised. C is chosen among
    BLENDED_STRENGTHS as for `fit_linear_probe`; arguments as for `fit_gaussian_with_text`.

    References
    ----------
    Huang et al., LP++: a surprisingly strong linear probe for few-shot CLIP, CVPR 2024, eq. (3); there fitted with a
    softmax over the classes.
    """
    embeddings, labels = _mean_embeddings(features, train), patches.labels[train]
    parts, losses = _folds(patches, train, seed), {}
    if parts and len(train) >= MIN_PATCHES:
        for strength in BLENDED_STRENGTHS:
            found = np.empty(labels.shape)
            for inside, outside in parts:
                probe = _fit_blended(embeddings[inside], labels[inside], class_embeddings, strength)
                found[outside] = probe.probabilities(embeddings[outside])
            losses[strength] = cross_entropy(labels, found)
    strength = min(losses, key=losses.get) if losses else DEFAULT_STRENGTH
    return replace(_fit_blended(embeddings, labels, class_embeddings, strength), losses=losses)


def _fit_blended(embeddings: np.ndarray, labels: np.ndarray, classes: np.ndarray, strength: float) -> BlendedProbe:
    text = TextScores.of(classes, embeddings)
    probes = [
        _fit_regressions(views, labels[:, [k]], strength, boost=TEXT_SCALE)
        for k, views in enumerate(_with_text(embeddings, text))
    ]
    return BlendedProbe(probes, text, strength, {})


def _with_text(embeddings: np.ndarray, text: TextScores) -> list[np.ndarray]:
    """Return for each class the embeddings with its text score as one more feature, (B, 1, d + 1)."""
    return [np.concatenate([embeddings, scores[:, None]], axis=1)[:, None] for scores in text(embeddings).T]


def _mean_embeddings(features: ImageFeatures, index: np.ndarray) -> np.ndarray:
    """Return the mean over the views of the unit embeddings of some patches, brought to unit length, (n, d)."""
    return unit(unit(_all_views(features, index)).mean(axis=1))


def _votes(queries: np.ndarray, examples: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Return (positive neighbours + 1) / (k + 2), the mean over the views, shape (len(ks), B, N).

    Parameters
    ----------
    queries, examples : ndarray of shape (B, V, d) and (T, V, d)
        Unit vectors.
    labels : ndarray of shape (T, N)
        Of the examples.
    ks : tuple of int
        Rising numbers of neighbours.
    """
    n_views, most = examples.shape[1], ks[-1]
    flat = examples.reshape(-1, examples.shape[2])
    result = np.zeros((len(ks), len(queries), labels.shape[1]))
    for start in range(0, len(queries), CHUNK):
        chunk = slice(start, start + CHUNK)
        for view in range(queries.shape[1]):
            cosines = (queries[chunk, view] @ flat.T).reshape(-1, len(examples), n_views).max(axis=2)
            nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
            order = np.argsort(-np.take_along_axis(cosines, nearest, axis=1), axis=1, kind="stable")
            votes = labels[np.take_along_axis(nearest, order, axis=1)]
            positives, known = (np.cumsum(part, axis=1, dtype=np.int64) for part in (votes == 1, ~np.isnan(votes)))
            for number, k in enumerate(ks):
                result[number, chunk] += (positives[:, k - 1] + 1) / (known[:, k - 1] + 2)
    return result / queries.shape[1]


def _folds(patches: PatchDataset, train: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return positions inside and outside of each fold's training part; none where nothing could be chosen by them."""
    parts, labels = grouped_folds(patches, train, FOLDS, seed), patches.labels[train]
    teaches = any(((labels[inside] == 0).any(axis=0) & (labels[inside] == 1).any(axis=0)).any() for inside, _ in parts)
    return parts if teaches else []


def _all_views(features: ImageFeatures, index: np.ndarray) -> np.ndarray:
    """Return the pooled features of some patches in all views, shape (n, V, d), float32."""
    return np.stack([features.pooled.take(index, view) for view in range(features.n_views)], axis=1)


def _choice(chosen: str, losses: dict[float, float]) -> str:
    """Say in Markdown how a number was chosen."""
    if not losses:
        return (
            f"{chosen} is the default: the training set has too few patches, groups or labels of each kind for a "
            "choice by cross-validation."
        )
    listed = ", ".join(f"{value:g}: {loss:.3f}" for value, loss in losses.items())
    return f"{chosen} was chosen by cross-validation within the training set (cross-entropy of each: {listed})."


register_method("mlp", "Two-layer MLP", "baseline", probabilities=True)
register_method("histoclip_text_free", "HistoCLIP, random queries", "histoclip", probabilities=True)
register_method("histoclip_ensemble", "Mean of HistoCLIP and probe", "histoclip", probabilities=True)
register_method(
    "histoclip_global", "HistoCLIP, global embedding", "histoclip", "HistoCLIP global", True, "histoclip", True
)
register_method("histoclip_patch", "HistoCLIP, patch tokens", "histoclip", "HistoCLIP patch", True, "histoclip", True)


def ensemble(methods: dict[str, Predictions]) -> dict[str, Predictions]:
    """Return `histoclip_ensemble`: the mean of the probabilities of `linear_probe` and `histoclip_patch`."""
    members = (methods[name].scores for name in ("linear_probe", "histoclip_patch"))
    return {"histoclip_ensemble": from_probabilities(sum(members) / 2)}
