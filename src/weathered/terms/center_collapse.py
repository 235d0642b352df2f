"""Centre collapse (CeCo): pull the mean feature of each class in a batch towards its vertex of a fixed simplex.

Source: Zhong et al., "Understanding Imbalanced Semantic Segmentation Through Neural Collapse", CVPR 2023.
M (D, K) is a simplex equiangular tight frame: columns of length 1 with products -1 / (K - 1) between each other. With
z_k the mean feature of class k over the whole batch, for the classes P that are in it:
    loss = mean over k in P of cross entropy(scale * M^T z_k / |z_k|, k)
Each centre counts once, however many samples or pixels it has: the pull on one of n is 1 / n of that on the centre.
Limits: at least log(1 + (K - 1) exp(-scale K / (K - 1))), where each centre is its vertex; at least log K where all
centres coincide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.pixels import IGNORE, MASK
from weathered.core.rng import generator
from weathered.core.roles import Output, Part

if TYPE_CHECKING:
    from weathered.core.run import Run

LEAST_FREQUENCY = 1e-12
"""Added to frequencies before their logarithm, so that a class in no image has one."""

Resize = Literal["features", "labels"]
"""What is brought to the other's size: feature maps to that of the labels, or labels to that of the maps."""


class Projector(NamedTuple):
    """Frozen weights in front of the simplex: reduce (R, D), expand (W, R) and its bias (W,)."""

    reduce: Float[Tensor, "R D"]
    expand: Float[Tensor, "W R"]
    bias: Float[Tensor, "W"]


def simplex_etf(num_classes: int, dimension: int, rng: torch.Generator) -> Float[Tensor, "D K"]:
    """A simplex equiangular tight frame in a random orientation, (D, K) float32: M^T M = (K I - 1 1^T) / (K - 1).

    num_classes K >= 2, dimension D >= K. The columns sum to 0. Raises ValueError for others: K - 1 dimensions would
    hold a simplex, but not by this construction.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if dimension < num_classes:
        raise ValueError(
            f"a simplex of {num_classes} classes needs as many features or more, got {dimension}; use a wider network "
            "or projector=true"
        )
    drawn = torch.randn(dimension, num_classes, generator=rng, dtype=torch.float64, device=rng.device)
    basis, triangle = torch.linalg.qr(drawn)
    # signs that make the orientation uniform, whatever the solver
    basis = basis * triangle.diagonal().sign()
    frame = basis - basis.mean(1, keepdim=True)
    return (math.sqrt(num_classes / (num_classes - 1)) * frame).float()


def random_projector(dimension: int, rng: torch.Generator, reduced: int = 128, expanded: int = 512) -> Projector:
    """Weights drawn as torch's layers draw theirs: uniform within one over the root of the inputs; float32."""

    def draw(*size: int, inputs: int) -> Tensor:
        return (2 * torch.rand(size, generator=rng, device=rng.device) - 1) / math.sqrt(inputs)

    return Projector(
        draw(reduced, dimension, inputs=dimension),
        draw(expanded, reduced, inputs=reduced),
        draw(expanded, inputs=reduced),
    )


def image_frequency(labels: Int[Tensor, "N ..."], num_classes: int, ignore_index: int = IGNORE) -> Float[Tensor, "K"]:
    """Shares of the images that hold a class, scaled to sum to 1, (K,) float64.

    labels: one for each image (N,), or maps (N, H, W). Raises ValueError for a label that is neither a class nor
    `ignore_index`, or where no image holds any class.
    """
    _check_labels(labels, num_classes, ignore_index)
    flat = labels.reshape(len(labels), -1).long()
    seen = torch.zeros(len(labels), num_classes + 1, dtype=torch.float64, device=labels.device)
    seen.scatter_(1, flat.where(flat != ignore_index, num_classes), 1)
    counts = seen[:, :num_classes].sum(0)
    if not bool(counts.any()):
        raise ValueError("no image holds any class, so classes have no frequency")
    return counts / counts.sum()


def labelled(
    features: Float[Tensor, "B D ..."],
    labels: Int[Tensor, "B ..."],
    num_classes: int,
    ignore_index: int = IGNORE,
    resize: Resize = "features",
) -> tuple[Float[Tensor, "M D"], Int[Tensor, "M"]]:
    """The features and labels of all samples or pixels that have a class, one a row.

    features (B, D) with labels (B,), or maps (B, D, h, w) with labels (B, H, W). Where the sizes differ, `resize` says
    what follows: `features` interpolates the maps, `labels` takes the label of the nearest pixel, which needs less
    memory and may lose small objects. Raises ValueError for shapes that do not fit, or a label that is neither a class
    nor `ignore_index`.
    """
    if resize not in ("features", "labels"):
        raise ValueError(f"resize must be 'features' or 'labels', got '{resize}'")
    if (features.ndim, labels.ndim) not in ((2, 1), (4, 3)) or len(features) != len(labels):
        raise ValueError(
            f"expected features (B, D) with labels (B,), or (B, D, h, w) with (B, H, W), got {tuple(features.shape)} "
            f"and {tuple(labels.shape)}"
        )
    _check_labels(labels, num_classes, ignore_index)
    if features.ndim == 4:
        if resize == "labels":
            labels = F.interpolate(labels[:, None].double(), features.shape[-2:], mode="nearest")[:, 0].long()
        elif features.shape[-2:] != labels.shape[-2:]:
            features = F.interpolate(features, labels.shape[-2:], mode="bilinear", align_corners=True)
        features, labels = features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    kept = labels != ignore_index
    return features[kept], labels[kept]


def class_centres(
    features: Float[Tensor, "M D"], labels: Int[Tensor, "M"]
) -> tuple[Float[Tensor, "P D"], Int[Tensor, "P"]]:
    """The mean feature of each class that is present, float32 or float64, and these classes in ascending order."""
    classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
    # half precision would lose small classes among many pixels
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    total = wide.new_zeros(len(classes), features.shape[1]).index_add_(0, place, wide)
    return total / counts[:, None], classes


def center_collapse(
    features: Float[Tensor, "B D ..."],
    labels: Int[Tensor, "B ..."],
    frame: Float[Tensor, "D K"],
    scale: float = 5.0,
    log_prior: Float[Tensor, "K"] | None = None,
    projector: Projector | None = None,
    ignore_index: int = IGNORE,
    resize: Resize = "features",
) -> Float[Tensor, ""]:
    """Cross entropy of the class centres of a batch against the vertices of a simplex, in nats; mean over classes.

    features (B, D), labels (B,); or maps (B, D, h, w), labels (B, H, W) with `ignore_index` where there is none.
    frame: see `simplex_etf`; (W, K) with a projector. scale > 0: of the cosines. log_prior: added to the logits.
    projector: frozen layers, see `projected`. Without any class the loss is 0, with a gradient of 0.
    Raises ValueError for a scale out of range, shapes or labels that do not fit, or features that are not finite.
    """
    _check_scale(scale)
    if projector is None:
        narrow, source, width = features, "the features have", features.shape[1]
    else:
        if projector.reduce.shape[1] != features.shape[1]:
            raise ValueError(f"the projector takes {projector.reduce.shape[1]} features, got {features.shape[1]}")
        # before the maps grow: a linear layer and interpolation can change places
        narrow = torch.einsum("rd,bd...->br...", projector.reduce.to(features), features)
        source, width = "the projector gives", len(projector.expand)
    if width != frame.shape[0]:
        raise ValueError(f"the simplex has {frame.shape[0]} dimensions, {source} {width}")
    rows, kept = labelled(narrow, labels, frame.shape[1], ignore_index, resize)
    if not len(kept):
        # of no row: a sum of all features may overflow, and 0 times infinity is NaN
        return features[:0].float().sum()
    centres, classes = class_centres(rows, kept)
    if not bool(torch.isfinite(centres.detach()).all()):
        raise ValueError("features must be finite, but some are not; lower the learning rate or check the data")
    if projector is not None:
        centres = projected(rows, centres, projector)
    logits = scale * F.normalize(centres, dim=1) @ frame.to(centres)
    return F.cross_entropy(logits if log_prior is None else logits + log_prior.to(logits), classes)


def projected(rows: Float[Tensor, "M R"], centres: Float[Tensor, "P R"], projector: Projector) -> Float[Tensor, "P W"]:
    """Reduced centres, normalised by mean and deviation of all reduced rows, expanded and cut at 0."""
    wide = rows.to(centres)
    deviation = (wide.var(0, correction=0) + 1e-5).sqrt()
    scaled = (centres - wide.mean(0)) / deviation
    return F.linear(scaled, projector.expand.to(centres), projector.bias.to(centres)).relu()


class CenterCollapse(Part):
    """Pull the class means of each batch towards the vertices of a fixed simplex.

    num_classes K >= 2. weight >= 0: of the term; 0 trains as without it. The source takes 0.2 to 0.8 for large
    networks, 0.1 does less harm to small ones. scale > 0: of the cosines. prior: add the log of the share of training
    images that hold a class, as the source's code does. projector: frozen random layers of 128 and 512 units between
    the centres and the simplex, as there; their ReLU keeps centres from reaching the vertices. resize: see `labelled`.

    Takes features (B, D) and one label each, or maps (B, D, h, w) and label maps in which 255 is no class. Centres are
    those of a batch, on several devices of each one's share. The classifier stays free, and the network as it is.
    Raises ValueError for arguments out of range, and where a network has fewer features than there are classes.
    """

    traits = Traits(
        needs={
            "features": "pulls the class means of the features",
            "hard_target": "takes a mean over the samples of each one label",
            "num_classes": "gives each class a vertex",
        },
        per_pixel=True,
    )

    def __init__(
        self,
        num_classes: int,
        weight: float = 0.1,
        scale: float = 5.0,
        prior: bool = False,
        projector: bool = False,
        resize: Resize = "features",
    ):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be >= 0 and finite, got {weight}")
        if resize not in ("features", "labels"):
            raise ValueError(f"resize must be 'features' or 'labels', got '{resize}'")
        _check_scale(scale)
        self.num_classes, self.weight, self.scale = num_classes, weight, scale
        self.prior, self.with_projector = prior, projector
        self.resize: Resize = resize
        self.frame: Float[Tensor, "D K"] | None = None
        self.projector: Projector | None = None
        self.log_prior: Float[Tensor, "K"] | None = None

    def before_epoch(self, run: Run) -> None:
        if run.step == 0:
            self.frame = self.projector = self.log_prior = None

    def _begin(self, run: Run, dimension: int) -> None:
        rng = generator(run.seed, "center-collapse")
        if self.with_projector:
            self.projector = Projector(*(part.to(run.device) for part in random_projector(dimension, rng)))
            dimension = len(self.projector.expand)
        self.frame = simplex_etf(self.num_classes, dimension, rng).to(run.device)
        if self.prior:
            shares = image_frequency(run.train.extra.get(MASK, run.train.labels), self.num_classes)
            self.log_prior = (shares + LEAST_FREQUENCY).log().float().to(run.device)

    def __call__(self, run: Run, batch: Batch, output: Output) -> Float[Tensor, ""]:
        features = cast(Tensor, output.features)
        if not self.weight:
            return features.new_zeros(())
        if self.frame is None:
            self._begin(run, features.shape[1])
        labels = batch.extra[MASK].long() if MASK in batch.extra else batch.target.single()
        frame = cast(Tensor, self.frame)
        return self.weight * center_collapse(
            features, labels, frame, self.scale, self.log_prior, self.projector, IGNORE, self.resize
        )

    def state_dict(self) -> dict[str, Any]:
        named = {"frame": self.frame, "log_prior": self.log_prior}
        layers = self.projector._asdict() if self.projector is not None else {}
        return {name: tensor for name, tensor in (named | layers).items() if tensor is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frame, self.log_prior = state.get("frame"), state.get("log_prior")
        self.projector = Projector(*(state[name] for name in Projector._fields)) if "reduce" in state else None


def _check_scale(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be > 0 and finite, got {scale}")


def _check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"labels must be in [0, {num_classes - 1}], or {ignore_index} where there is none, got "
            f"{int(labels[wrong][0])}"
        )
