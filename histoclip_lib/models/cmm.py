"""Cross-Modal Matching, eqs. (3) and (4): class embeddings are the queries, image features the keys and values.

And a perceptron of the same size to compare it with.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from histoclip_lib.common.errors import HistoCLIPError, shown
from histoclip_lib.common.files import replacing
from histoclip_lib.common.html import element, html, table

QUERY_SCALE = 2.0
UNIT_MARGIN = 2.0  # how far a hidden unit starts above 0 for its own class, and below 0 for the others
RIDGE = 0.01  # keeps the hidden weights small where two class embeddings are nearly the same
COUNTS, OTHERS = ("heads", "layers", "hidden"), ("dropout", "pre_norm", "queries", "width")
FIXED, LEARNED, MAPPED = "fixed", "learned", "mapped"  # what the queries are; see `CMM`


def dropout(values: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """Set values to 0 with probability p and divide the others by 1 - p, as `torch.nn.functional.dropout`.

    On a CPU PyTorch draws its mask number by number, which takes longer than the products around it. Here one random
    byte decides on each value, so p is rounded to a 256th; the expectation stays what it was.

    Parameters
    ----------
    values : tensor
        Of any shape.
    p : float
        From 0 to 1, exclusive.
    training : bool
        Otherwise the values are returned as they are.
    """
    dropped = min(round(256 * p), 255)
    if not training or not dropped:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, p)
    words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
    return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop some of the values in training."""
        return dropout(values, self.p, self.training)


class CMMLayer(nn.TransformerDecoderLayer):
    """A decoder layer that computes what its parent computes, for few queries and many tokens.

    The parent projects every token to a key and a value. Here the key projection is folded into the queries,
    `W_k[h]^T q[n, h]`, and the values are projected after they have been averaged, so no token is ever projected:
    there are N x heads queries, far fewer than tokens. The key bias adds the same to all scores of a query and drops
    out of the softmax. Parameters and their names are the parent's.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, pre_norm: bool = True) -> None:
        super().__init__(width, heads, hidden, dropout, "gelu", batch_first=True, norm_first=pre_norm)
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (Dropout(dropout) for _ in range(4))

    @torch.no_grad()
    def start_from_similarity(self) -> None:
        """Make the projections of the cross-attention the identity, so that training starts from eq. (3) as written.

        There the class embeddings are the queries and the image features the keys and values, with no projection
        between: attention begins as the similarity of class and token in CLIP's joint space.
        """
        identity = torch.eye(self.multihead_attn.embed_dim)
        self.multihead_attn.in_proj_weight.copy_(identity.repeat(3, 1))
        self.multihead_attn.out_proj.weight.copy_(identity)

    @torch.no_grad()
    def assign_units(self, queries: torch.Tensor) -> None:
        """Give each class its own hidden units of the feed-forward network to start with.

        All classes share the network and eq. (4) pools them alike, so only the units that are active distinguish one
        class from another. Here unit j starts active for class j mod N and inactive for the others: each class has a
        nearly linear map of the image of its own, as in a linear probe, and training can mix them from there.

        Parameters
        ----------
        queries : tensor of shape (N, d)
            What the first layer is given; the attention output that is added to them has about unit variance.
        """
        n_classes, width = queries.shape
        inputs = queries / (queries.square().mean(dim=1, keepdim=True) + 1).sqrt()  # (N, d), as LayerNorm scales them
        centre = inputs.mean(dim=0) if n_classes > 1 else torch.zeros(width)
        apart = (inputs - centre) / width**0.5
        # Vectors whose product is 1 - 1/N with their own class and -1/N with the others.
        dual = torch.linalg.solve(apart @ apart.T + RIDGE * torch.eye(n_classes), apart) / width**0.5  # (N, d)
        owner = torch.arange(self.linear1.out_features) % n_classes  # (hidden,)
        self.linear1.weight.add_(2 * UNIT_MARGIN * dual[owner])
        constant = 2 * UNIT_MARGIN / n_classes if n_classes > 1 else 0.0
        self.linear1.bias.copy_(constant - UNIT_MARGIN - self.linear1.weight @ centre)

    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        mean: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the layer.

        Parameters
        ----------
        queries : tensor of shape (1 or B, N, d)
            The first dimension is 1 where the queries are the same for every image, as in the first layer:
            self-attention is then computed once and not B times.
        tokens : tensor of shape (B, L, d)
            Keys and values; L = 1 for the global embedding.
        mean : tensor of shape (d,), optional
            Subtracted from every token; done on the weights, where it costs nothing.
        scale : tensor of shape (), optional
            By which the tokens are then divided, likewise.

        Returns
        -------
        queries : tensor of shape (B, N, d)
        attention : tensor of shape (B, heads, N, L)
            Sums to 1 over L (in training, before dropout).
        """
        if self.norm_first:
            queries = queries + self._sa_block(self.norm1(queries), None, None)
            output, attention = self._cross_attention(self.norm2(queries), tokens, mean, scale)
            queries = queries + self.dropout2(output)  # (B, N, d)
            return queries + self._ff_block(self.norm3(queries)), attention
        queries = self.norm1(queries + self._sa_block(queries, None, None))
        output, attention = self._cross_attention(queries, tokens, mean, scale)
        queries = self.norm2(queries + self.dropout2(output))
        return self.norm3(queries + self._ff_block(queries)), attention

    def _cross_attention(
        self, queries: torch.Tensor, tokens: torch.Tensor, mean: torch.Tensor | None, scale: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return softmax(Q K^T / sqrt(d)) V of eq. (3), shape (B, N, d), and the weights (B, heads, N, L)."""
        mha = self.multihead_attn
        heads, c, n_classes = mha.num_heads, mha.head_dim, queries.shape[1]  # c = d / heads
        w_q, w_k, w_v = mha.in_proj_weight.unflatten(0, (3, heads, c))  # (heads, c, d) each
        b_q, _, b_v = mha.in_proj_bias.unflatten(0, (3, heads, c))  # (heads, c) each
        if scale is not None:
            w_k, w_v = w_k / scale, w_v / scale
        if mean is not None:  # it changes all scores of a query alike, and drops out of the softmax
            b_v = b_v - w_v @ mean

        one_key = tokens.shape[1] == 1  # then the softmax is 1, whatever the query
        if one_key:
            attention = tokens.new_ones(len(tokens), heads, n_classes, 1)
        else:
            q = (torch.einsum("bnd,hcd->bhnc", queries, w_q) + b_q[:, None]) / c**0.5  # (1 or B, heads, N, c)
            folded = torch.einsum("bhnc,hcd->bhnd", q, w_k).flatten(1, 2)  # (1 or B, heads * N, d)
            scores = functional.linear(tokens, folded[0]) if len(folded) == 1 else tokens @ folded.transpose(1, 2)
            attention = scores.softmax(dim=1).transpose(1, 2)  # (B, heads * N, L)
            attention = attention.unflatten(1, (heads, n_classes))  # (B, heads, N, L)
        weights = dropout(attention, mha.dropout, self.training)
        total = weights.sum(dim=3, keepdim=True)  # (B, heads, N, 1), 1 without dropout
        if one_key:
            values = torch.einsum("bld,hcd->bhlc", tokens, w_v) * total  # the same value for all classes
        else:
            averages = (weights.flatten(1, 2) @ tokens).unflatten(1, (heads, n_classes))  # (B, heads, N, d)
            values = torch.einsum("bhnd,hcd->bhnc", averages, w_v)
        values = values + total * b_v[:, None]  # (B, heads, N, c)
        return mha.out_proj(values.transpose(1, 2).flatten(2)), attention  # (B, N, d), (B, heads, N, L)


class ScaledHead(nn.Module):
    """A head that centres its features of width d and divides them by one number.

    One number for all dimensions: dividing each by its own deviation would raise those that hardly vary.

    Attributes
    ----------
    token_mean : tensor of shape (d,)
        Subtracted from the features.
    token_scale : tensor of shape ()
        By which they are then divided; `fit_scale` sets both from training features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("token_mean", torch.zeros(width))
        self.register_buffer("token_scale", torch.ones(()))

    def fit_scale(self, features: torch.Tensor) -> None:
        """Centre training features (..., d) and give them unit variance over all dimensions together."""
        flat = features.float().flatten(0, -2)
        self.token_mean.copy_(flat.mean(dim=0))
        self.token_scale.copy_((flat - self.token_mean).square().mean().sqrt().clamp_min(1e-6))


class CMM(ScaledHead):
    """The head of HistoCLIP: from frozen image features to one logit for each class.

    Pre-norm, and no LayerNorm between the last residual and the pooling: with one, as in the post-norm layer of the
    first Transformer, every initial logit is the mean of a normalised vector, which is 0 whatever the image.

    Parameters
    ----------
    class_embeddings : tensor or ndarray of shape (N, d)
        The class matrix C of eq. (2), unit vectors; what becomes of them `queries` says.
    heads : int
        Attention heads; must divide d.
    layers : int
        Decoder layers.
    hidden : int
        Width of the feed-forward network.
    dropout : float
        Dropout of attention weights, residuals and feed-forward network.
    pre_norm : bool
        False for the post-norm layer, which the ablations compare.
    queries : {"fixed", "learned", "mapped"}
        `fixed`: the class embeddings, kept with the head and not trained. Without a text tower in the space of the
        images there are none: `learned` trains unit vectors that start where `class_embeddings` are, and `mapped`
        trains a linear map to the space of the images from that of another model's class embeddings, of any width.
    width : int
        d of the image features for `mapped`; otherwise that of the class embeddings.

    Raises
    ------
    HistoCLIPError
        If `heads` does not divide d.

    Examples
    --------
    >>> import torch
    >>> from histoclip_lib.models import CMM
    >>> head = CMM(torch.nn.functional.normalize(torch.randn(3, 16), dim=-1), heads=2)
    >>> logits, attention = head(torch.randn(5, 49, 16))
    >>> logits.shape, attention.shape
    (torch.Size([5, 3]), torch.Size([5, 2, 3, 49]))
    """

    def __init__(
        self,
        class_embeddings: torch.Tensor | np.ndarray,
        heads: int = 8,
        layers: int = 1,
        hidden: int = 256,
        dropout: float = 0.3,
        pre_norm: bool = True,
        queries: str = FIXED,
        width: int = 0,
    ) -> None:
        width = width if queries == MAPPED else class_embeddings.shape[1]
        super().__init__(width)
        if width % heads:
            raise HistoCLIPError(f"heads: {heads} does not divide the embedding width {width}. Use a divisor.")
        self.options = {"heads": heads, "layers": layers, "hidden": hidden, "dropout": dropout, "pre_norm": pre_norm}
        embeddings = torch.as_tensor(class_embeddings).detach().clone().float()
        if queries == LEARNED:
            self.class_embeddings = nn.Parameter(embeddings)
        else:
            self.register_buffer("class_embeddings", embeddings)
        if queries == MAPPED:
            self.options |= {"width": width}
            self.map = nn.Linear(embeddings.shape[1], width, bias=False)
            nn.init.orthogonal_(self.map.weight)  # angles between classes are kept to start with, where there is room
        if queries != FIXED:
            self.options |= {"queries": queries}
        self.layers = nn.ModuleList(CMMLayer(width, heads, hidden, dropout, pre_norm) for _ in range(layers))
        for layer in self.layers:
            layer.start_from_similarity()
            layer.assign_units(self.queries().detach().squeeze(0))

    @property
    def unit_queries(self) -> torch.Tensor:
        """One unit vector for each class, shape (N, d)."""
        kind = self.options.get("queries", FIXED)
        if kind == FIXED:
            return self.class_embeddings
        return functional.normalize(
            self.class_embeddings if kind == LEARNED else self.map(self.class_embeddings), dim=-1
        )

    def queries(self) -> torch.Tensor:
        """Return the queries of the first layer, shape (1, N, d): the same for every image.

        Class embeddings are unit vectors, whose entries would vanish beside those of the image in every residual. A
        Transformer scales its embeddings by sqrt(d) (Vaswani et al. 2017, section 3.4); QUERY_SCALE times that lets the
        class outweigh the image where the feed-forward network must distinguish the classes.
        """
        unit = self.unit_queries
        return unit.unsqueeze(0) * (QUERY_SCALE * unit.shape[1] ** 0.5)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images.

        Parameters
        ----------
        tokens : tensor of shape (B, L, d)
            Patch tokens, or the pooled features as (B, 1, d).

        Returns
        -------
        logits : tensor of shape (B, N)
        attention : tensor of shape (B, heads, N, L)
            Of the last layer.
        """
        queries, tokens = self.queries(), tokens.to(self.token_mean.dtype)
        for layer in self.layers:  # queries (1, N, d) at first, then (B, N, d)
            queries, attention = layer(queries, tokens, self.token_mean, self.token_scale)
        return queries.mean(dim=-1), attention  # eq. (4): adaptive average pooling over the features

    def _repr_html_(self) -> str:
        """Show in a notebook the options of the head and how many parameters each part of it has."""
        n_classes, width = self.unit_queries.shape
        facts = [["classes", str(n_classes)], ["width", str(width)]]
        facts += [[name.replace("_", " "), str(value)] for name, value in self.options.items()]
        parts = {
            f"layer {number}, {name}": sum(parameter.numel() for parameter in part.parameters())
            for number, layer in enumerate(self.layers, 1)
            for name, part in (
                ("self-attention", layer.self_attn),
                ("cross-attention", layer.multihead_attn),
                ("feed-forward network", nn.ModuleList([layer.linear1, layer.linear2])),
                ("norms", nn.ModuleList([layer.norm1, layer.norm2, layer.norm3])),
            )
        }
        lines = [[name, f"{count:,}"] for name, count in (parts | {"together": sum(parts.values())}).items()]
        return html(
            element("p", element("strong", "Cross-Modal Matching head")),
            table([], facts),
            table(["part", "parameters"], lines),
        )


class MLP(ScaledHead):
    """A two-layer perceptron of the head's size: what the same number of parameters does without text or attention.

    Linear, GELU, dropout, linear, on centred pooled features; `training.train_head` fits it like a CMM.

    Parameters
    ----------
    width : int
        Features d.
    n_classes : int
        N.
    n_parameters : int
        About how many to have: the hidden width is (n_parameters - N) / (d + 1 + N), rounded.
    dropout : float
        Dropout of the hidden layer.

    Raises
    ------
    HistoCLIPError
        If so few parameters leave no hidden unit.
    """

    def __init__(self, width: int, n_classes: int, n_parameters: int, dropout: float = 0.3) -> None:
        super().__init__(width)
        hidden = round((n_parameters - n_classes) / (width + 1 + n_classes))
        if hidden < 1:
            raise HistoCLIPError(
                f"n_parameters: {n_parameters} are too few for {width} features and {n_classes} classes. Use at least "
                f"{width + 1 + 2 * n_classes}."
            )
        self.options = {"width": width, "n_classes": n_classes, "n_parameters": n_parameters, "dropout": dropout}
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Score images: from pooled features (B, 1, d) to logits (B, N); there is no attention."""
        features = (tokens.squeeze(1).to(self.token_mean.dtype) - self.token_mean) / self.token_scale  # (B, d)
        return self.layers(features), None


def mlp_like(head: CMM) -> MLP:
    """Return a fresh MLP with the number of parameters, classes, features, dropout and feature scale of a head."""
    n_classes, width = head.unit_queries.shape
    mlp = MLP(width, n_classes, sum(p.numel() for p in head.parameters()), head.options["dropout"])
    mlp.token_mean.copy_(head.token_mean)
    mlp.token_scale.copy_(head.token_scale)
    return mlp


def _options_and_classes(metadata: dict[str, str]) -> tuple[dict[str, object], list[str]]:
    """Return with what options to build the head of a file, and for which classes it was trained.

    Raises LookupError, ValueError or RecursionError if something is missing or is not what `save_cmm` writes.
    """
    options, classes = json.loads(metadata["options"]), json.loads(metadata["classes"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes: {shown(classes)} is not a list of names")
    if not isinstance(options, dict) or not {*COUNTS, "dropout"} <= set(options) <= {*COUNTS, *OTHERS}:
        raise ValueError(f"options: {shown(options)}, expected are {', '.join((*COUNTS, *OTHERS))}")
    wrong = [name for name in COUNTS if type(options[name]) is not int or options[name] < 1]
    wrong += ["dropout"] if type(options["dropout"]) not in (int, float) or not 0 <= options["dropout"] < 1 else []
    wrong += ["queries"] if options.get("queries", FIXED) not in (FIXED, LEARNED, MAPPED) else []
    wrong += ["width"] if type(options.get("width", 1)) is not int or options.get("width", 1) < 1 else []
    wrong += ["width"] if ("width" in options) != (options.get("queries") == MAPPED) else []
    wrong += ["pre_norm"] if type(options.get("pre_norm", True)) is not bool else []
    if wrong:
        raise ValueError("; ".join(f"the option {name} is {shown(options.get(name))}" for name in wrong))
    return options, classes


def require_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming both sides, where the tensors of a file are not those that are expected."""
    wrong = [
        f"{name}: {found.get(name, 'nothing')} in the file, {expected.get(name, 'nothing')} expected"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


def save_cmm(head: CMM, path: Path, classes: list[str], backbone: str, identity: str = "", history: str = "") -> None:
    """Write a head as safetensors, with what is needed to build it again.

    Parameters
    ----------
    head : CMM
        The head.
    path : Path
        The file.
    classes : list of str
        The N class columns.
    backbone : str
        Whose features it was trained on.
    identity, history : str
        What determined its training, by which `training.train_heads` finds it again, and its history as JSON.
    """
    about = {"options": json.dumps(head.options), "classes": json.dumps(classes), "backbone": backbone}
    write_tensors(path, head.state_dict(), about | {"identity": identity, "history": history})


def write_tensors(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata as safetensors, whole or not at all, and the same always as the same bytes."""
    data = save({name: value.detach().cpu().contiguous() for name, value in state.items()}, metadata)
    end = 8 + int.from_bytes(data[:8], "little")  # of the header, whose length stands before it
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()  # the library writes metadata in any order
    header += b" " * (-len(header) % 8)
    with replacing(path) as temporary:
        temporary.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; none where it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def load_cmm(path: Path, classes: list[str], backbone: str) -> CMM:
    """Read a head that `save_cmm` wrote, in eval mode.

    Nothing is unpickled, and no tensor is read before the metadata has been checked and all shapes fit together.

    Raises
    ------
    HistoCLIPError
        If there is no such file, it is not a head, or it was trained for other classes or another backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise HistoCLIPError(f"{path} was not found. Run the notebook 03_train of this run first.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            options, trained_for = _options_and_classes(metadata)
            is_ours = (trained_for, metadata["backbone"]) == (list(classes), backbone)
            if is_ours:
                head = _read_head(file, options, len(classes))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise HistoCLIPError(
            f"{path} is not a HistoCLIP head ({str(error)[:500] or type(error).__name__}). Delete it and train again."
        ) from error
    if not is_ours:
        raise HistoCLIPError(
            f"{path} was trained for the classes {shown(trained_for, 500)} on {shown(metadata['backbone'])}, this run "
            f"has {shown(list(classes), 500)} on {shown(backbone)}. Delete it or give the run another name."
        )
    return head.eval()


def _read_head(file: safe_open, options: dict[str, object], n_classes: int) -> CMM:
    """Build the head of an open file; raise ValueError where its tensors are not those of the options."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    stored = shapes.get("class_embeddings", ())
    if len(stored) != 2 or stored[0] != n_classes:
        raise ValueError(f"class_embeddings has the shape {stored}, for {n_classes} classes")
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    if len(layers) != options["layers"]:  # looked at first: to plan a billion layers would take for ever
        raise ValueError(f"{len(layers)} layers are stored, the option layers is {options['layers']}")
    width = options.get("width", stored[1])
    largest = {"layers.0.linear1.weight": (options["hidden"], width)}
    largest |= {"layers.0.multihead_attn.in_proj_weight": (3 * width, width)}
    largest |= {"map.weight": (width, stored[1])} if "width" in options else {}
    # First, so that a head takes no more memory than its file, whatever size that claims.
    require_shapes({name: shapes.get(name) for name in largest}, largest)
    state = {name: file.get_tensor(name) for name in shapes}
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{', '.join(broken)}: not all numbers are finite")
    head = CMM(state["class_embeddings"], **options)
    require_shapes(shapes, shapes_of(head.state_dict()))
    head.load_state_dict(state)
    return head
