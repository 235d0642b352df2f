"""CnC: outliers made from the training images by CutMix and a corruption, learned as one more class.

Source: Hebbalaguppe, "A Novel Data Augmentation Technique for Out-of-Distribution Sample Detection using Compounded
Corruptions", ECML-PKDD 2022 (arXiv 2207.13916), and its released code. Of training images u, shuffled by themselves:
    u' = corrupt(cutmix(u)),   lam ~ U(low, high) and one box for the batch, a kind and a severity for each image
    loss = mean CE(f(x), y) + mean CE(f(u'), K),   f with K + 1 outputs, one pass through the network for both
The class is the largest of the first K logits, whose softmax is p[:K] / (1 - p[K]); p[K] says how strange an input is.
Limits: severity 0 leaves the CutMix alone, lam = 1 the corruption alone; equal logits have the loss 2 log(K + 1).
Differences from the released code: both kinds of images go through the same geometry and normalisation, by which the
network could tell them apart otherwise, and the constants of the corruptions are those for small images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.auxiliary import augmented, stream_rows
from weathered.core.batch import Batch
from weathered.core.errors import DataError, SpecError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.data.corruptions import check_images, check_kind, corrupt_each
from weathered.mixing.base import draw_partner
from weathered.mixing.cutmix import cutmix, draw_box
from weathered.nn.widened import WidenedNetwork, layer_on_features
from weathered.procedures.base import check_range
from weathered.scores.outlier_class import outlier_log_odds

if TYPE_CHECKING:
    from weathered.core.run import Run

OUTLIERS = "outliers"
"""The name of the outlier logit's layer among the modules of a run."""

STREAM = "cnc outliers"
"""The name of the draws that make outliers."""

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("defocus_blur", "glass_blur", "gaussian_blur", "zoom_blur"),
    *("snow", "fog", "frost", "contrast", "brightness", "saturate", "elastic_transform"),
)
"""The corruptions of the source."""

WITHOUT_COLOUR = ("saturate",)
"""Kinds that change nothing in grey images."""

Mode = Literal["cnc", "cutmix", "corruption"]
"""What makes an outlier: both operations, or one of them alone."""


def draw_different_partner(labels: Int[Tensor, "B"], rng: torch.Generator) -> Int[Tensor, "B"]:
    """For each sample a position drawn evenly from those of other labels, on the CPU; positions may repeat.

    labels (B,): of at least 2 classes. Raises ValueError for one class alone.
    """
    labels = labels.cpu()
    order = labels.argsort(stable=True)
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError(f"different_class needs samples of at least 2 classes in a batch, got {len(counts)}")
    own = counts[place]
    # a draw among the others, then past the block of the own class in the sorted order
    drawn = (torch.rand(len(labels), generator=rng, dtype=torch.float64) * (len(labels) - own)).long()
    return order[drawn + own * (drawn >= (counts.cumsum(0) - counts)[place])]


def make_outliers(
    x: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    rng: torch.Generator,
    mode: Mode = "cnc",
    lam_low: float = 0.0,
    lam_high: float = 1.0,
    different_class: bool = False,
    kinds: Sequence[str] = KINDS,
    min_severity: int = 1,
    max_severity: int = 5,
) -> Float[Tensor, "B C H W"]:
    """Outliers from images of the classes: corrupt(cutmix(x)), with shape and dtype of x, in [0, 1].

    x (B, 1 or 3, H, W): floating, in [0, 1]; it stays as it is. labels (B,): read only for different_class, which
    pastes from images of other labels. mode: `cnc`, or `cutmix` or `corruption` alone. lam_low, lam_high in [0, 1]:
    range of the share of an image outside the box, before the border cuts the box. kinds, min_severity, max_severity
    in 0 to 5: drawn evenly for each image; 0 is no corruption. rng: on the CPU.
    Raises ValueError for images of another kind, arguments out of range, or a single class with different_class,
    SpecError for an unknown kind.
    """
    check_images(x)
    _check_arguments(mode, lam_low, lam_high, kinds, min_severity, max_severity)
    if not len(x):
        return x.clone()
    if mode != "corruption":
        lam = lam_low + (lam_high - lam_low) * float(torch.rand((), generator=rng, dtype=torch.float64))
        partner = draw_different_partner(labels, rng) if different_class else draw_partner(len(x), rng)
        x = cutmix(x, draw_box((x.shape[-2], x.shape[-1]), lam, rng), partner)
    if mode == "cutmix":
        return x
    kind = torch.randint(len(kinds), (len(x),), generator=rng)
    severity = torch.randint(min_severity, max_severity + 1, (len(x),), generator=rng)
    return corrupt_each(x, kinds, kind, severity, rng)


def outlier_class_losses(
    logits: Float[Tensor, "B C+1"], labels: Int[Tensor, "B"], outlier_logits: Float[Tensor, "M C+1"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross entropy of images against their classes, and of outliers against the last output; in nats.

    logits (B, C + 1), labels (B,) in [0, C). outlier_logits (M, C + 1). The method minimises the sum.
    Raises ValueError for shapes that do not fit, or the label of the outliers, as where a network has C outputs only.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or outlier_logits.shape[1:] != logits.shape[1:]:
        raise ValueError(
            f"expected logits (B, C + 1) of images and (M, C + 1) of outliers and labels (B,), got "
            f"{tuple(logits.shape)}, {tuple(outlier_logits.shape)} and {tuple(labels.shape)}"
        )
    last = logits.shape[1] - 1
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < last):
        wrong = int(((labels < 0) | (labels >= last)).nonzero()[0])
        raise ValueError(
            f"labels must be in [0, {last - 1}] for {last + 1} outputs, the last of which is that of the outliers, "
            f"got {int(labels[wrong])} at position {wrong}"
        )
    outside = torch.full((len(outlier_logits),), last, device=outlier_logits.device)
    return F.cross_entropy(logits, labels), F.cross_entropy(outlier_logits, outside)


class OutlierNetwork(WidenedNetwork):
    """A network of C classes beside one more logit for outliers; it behaves like the network, and scores strangeness.

    network: with forward_features, forward_head and get_classifier. outliers: (B, D) -> (B, 1).
    """

    def __init__(self, network: nn.Module, outliers: nn.Module):
        super().__init__(network)
        self.outliers = outliers

    @property
    def extra_layer(self) -> nn.Module:
        return self.outliers

    def outlier_logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """The logit of the outliers, from features."""
        return self.outliers(features)[:, 0]

    def outlier_score(self, x: Tensor) -> Float[Tensor, "B"]:
        """The log-odds of the outliers in float64, higher = more out-of-distribution."""
        logits = self.all_logits(x)
        return outlier_log_odds(logits[:, :-1], logits[:, -1])

    def outlier_probability(self, x: Tensor) -> Float[Tensor, "B"]:
        """p[K] in [0, 1], in float64: accept an input where it is below a threshold."""
        return self.outlier_score(x).sigmoid()


class CnC(Procedure):
    """Train a classifier with one more class, whose images are made from the others by CutMix and a corruption.

    mode: `cnc`, or `cutmix` or `corruption` alone. lam_low <= lam_high in [0, 1]: range of the share of an image
    outside the pasted box; the source takes all of it, and near both ends outliers look like images of a class.
    different_class: paste from images of other classes; the source says so, its code pastes from any. kinds: names
    of corruptions, the source's 15 by default, without `saturate` in grey images. min_severity <= max_severity in
    0 to 5: drawn evenly for each image; 0 is no corruption.

    Each step takes as many outliers as images, from a second order of the training rows, and passes both through the
    network at once. Crops and flips act on both. The loss is part of the method, so no loss part is called; the loss
    recorded is that of the images alone. The predictor gives the logits of the classes, and offers `outlier_score(x)`.
    Raises ValueError for arguments out of range, and in `setup` SpecError for images of other than 1 or 3 channels or
    for kinds that change nothing in grey ones, DataError where different_class meets a single class.
    """

    traits = Traits(
        needs={
            "image": "it cuts and corrupts images",
            "range01": "corruptions are made for values in [0, 1]",
            "hard_target": "mixed images are its outliers, so they cannot be of its classes as well",
            "num_classes": "outliers are one class more",
            "features": "adds a logit on the features",
            "linear_head": "adds an output to the linear classifier",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
    )

    def __init__(
        self,
        mode: Mode = "cnc",
        lam_low: float = 0.0,
        lam_high: float = 1.0,
        different_class: bool = False,
        kinds: tuple[str, ...] | None = None,
        min_severity: int = 1,
        max_severity: int = 5,
    ):
        _check_arguments(mode, lam_low, lam_high, KINDS if kinds is None else kinds, min_severity, max_severity)
        if mode == "cutmix" and (kinds is not None or (min_severity, max_severity) != (1, 5)):
            raise ValueError("mode 'cutmix' corrupts nothing; leave kinds, min_severity and max_severity out")
        if mode == "corruption" and (different_class or (lam_low, lam_high) != (0, 1)):
            raise ValueError("mode 'corruption' pastes nothing; leave lam_low, lam_high and different_class out")
        self.mode: Mode = mode
        self.lam_low, self.lam_high, self.different_class = lam_low, lam_high, different_class
        self.kinds = None if kinds is None else tuple(kinds)
        self.min_severity, self.max_severity = min_severity, max_severity

    def setup(self, run: Run) -> dict[str, nn.Module]:
        channels = run.train.inputs.shape[0]
        if channels not in (1, 3):
            raise SpecError(f"cnc-ood corrupts images of 1 or 3 channels, {run.train.name} has {channels}.")
        self.drawn_kinds = self.kinds or tuple(k for k in KINDS if channels == 3 or k not in WITHOUT_COLOUR)
        if channels == 1 and (idle := [kind for kind in self.drawn_kinds if kind in WITHOUT_COLOUR]):
            raise SpecError(f"cnc-ood: {idle[0]} changes nothing in grey images; leave it out of kinds.")
        self._check_classes(run.train.labels, run.train.name)
        return {OUTLIERS: layer_on_features(run.model, run.in_layout(run.train.floats(torch.arange(1)).to(run.device)))}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        labels, outliers = batch.target.single(), self.outliers(run, len(batch))
        with run.autocast():
            logits = self.predictor(run).all_logits(run.in_layout(torch.cat([batch.x, outliers])))
        run.check_finite(logits)
        own, strange = outlier_class_losses(logits[: len(batch)], labels, logits[len(batch) :])
        # curves then compare with those of runs without outliers
        run.task_loss = own.detach()
        return own + strange

    def outliers(self, run: Run, size: int) -> Float[Tensor, "size C H W"]:
        """This process's outliers of the present step, the same whenever it is repeated."""
        first = (run.step * run.fabric.world_size + run.fabric.global_rank) * size
        rows = stream_rows(len(run.train), first, size, run.seed, STREAM)
        x = augmented(run, run.train.inputs.fetch(rows), rows, STREAM)
        self._check_classes(labels := run.train.labels[rows], f"the outliers' batch of step {run.step}")
        return make_outliers(
            x,
            labels,
            run.generator(STREAM),
            self.mode,
            self.lam_low,
            self.lam_high,
            self.different_class,
            self.drawn_kinds,
            self.min_severity,
            self.max_severity,
        )

    def predictor(self, run: Run) -> OutlierNetwork:
        return OutlierNetwork(run.model, run.modules[OUTLIERS])

    def _check_classes(self, labels: Tensor, where: str) -> None:
        if self.different_class and int(labels.min()) == int(labels.max()):
            raise DataError(
                f"cnc-ood: {where} holds samples of one class alone, and different_class pastes from others; raise "
                "--batch-size or leave different_class out."
            )


def _check_arguments(
    mode: str, lam_low: float, lam_high: float, kinds: Sequence[str], min_severity: int, max_severity: int
) -> None:
    if mode not in ("cnc", "cutmix", "corruption"):
        raise ValueError(f"mode must be 'cnc', 'cutmix' or 'corruption', got '{mode}'")
    if not 0 <= lam_low <= lam_high <= 1:
        raise ValueError(f"expected 0 <= lam_low <= lam_high <= 1, got {lam_low} and {lam_high}")
    check_range("min_severity", min_severity, 0 <= min_severity <= 5, "[0, 5]")
    check_range("max_severity", max_severity, min_severity <= max_severity <= 5, f"[{min_severity}, 5]")
    if not kinds:
        raise ValueError("kinds must name at least one corruption")
    for kind in kinds:
        check_kind(kind)
