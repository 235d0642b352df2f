"""LADC: the classifier trained again on features drawn for rare classes, from Gaussians blended with frequent ones.

A reconstruction after Wang et al., "Label-Aware Distribution Calibration for Long-tailed Classification",
arXiv 2111.04901, 2021. It follows the abstract; the paper's equations and settings were not at hand, nor was code.
Frequent classes, the head, are those with at least as many rows as the ceil(0.4 C)-th largest. For any other class c,
with the m head classes N whose mean features are nearest to its own, and a_j = n_j / sum over N of n:
    mu*_c = delta mu_c + (1 - delta) sum_j a_j mu_j,   S*_c = sum_j a_j S_j + eps I
Features are drawn from N(mu*_c, S*_c) until each class has as many as the largest; head classes draw from their own.
Before `start` a step is plain training; then features stand still and the classifier learns from the balanced set.
Limits: classes of one size draw nothing; delta = 1 keeps the mean; delta = 0 with m = 1 takes the neighbour's mean;
delta = 1 and own_covariance = 1 draw from the Gaussian of the class itself; start = 1 is plain training.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.class_statistics import check_covariance
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.roles import Output
from weathered.core.target import Target
from weathered.procedures.base import check_range, training_features

if TYPE_CHECKING:
    from weathered.core.run import Run

HEAD_SHARE = 0.4
"""The share of classes that count as frequent where no number of rows is given."""


class ClassGaussians(NamedTuple):
    """Means (C, D) and covariances (C, D, D) float64 of the features of each class, and its rows, counts (C,) int64."""

    means: Float[Tensor, "C D"]
    covariances: Float[Tensor, "C D D"]
    counts: Int[Tensor, "C"]


def class_gaussians(
    features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], num_classes: int | None = None
) -> ClassGaussians:
    """The mean and the unbiased covariance of each class, in float64 on the CPU; that of a single row is 0.

    num_classes: the largest label plus 1 by default. Raises ValueError for features that are not finite, labels that
    do not fit, a class without a row, or covariances that would take too much memory.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"expected features (N, D) and labels (N,), got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    if bool((broken := ~torch.isfinite(features).all(1)).any()):
        raise ValueError(f"features must be finite, row {int(broken.nonzero()[0])} is not")
    size = int(labels.max()) + 1 if num_classes is None else num_classes
    check_covariance("full", size, features.shape[1], "use a network with fewer features")
    z, y = features.detach().double().cpu(), labels.cpu()
    if int(y.min()) < 0 or int(y.max()) >= size:
        raise ValueError(f"labels must be in [0, {size - 1}], got {int(y.min())} to {int(y.max())}")
    counts = y.bincount(minlength=size)
    if bool((counts == 0).any()):
        raise ValueError(f"each class needs a row, classes without one: {(counts == 0).nonzero()[:, 0].tolist()}")
    means = z.new_zeros(size, z.shape[1]).index_add_(0, y, z) / counts[:, None]
    centred = (z - means[y])[y.argsort(stable=True)].split(counts.tolist())
    covariances = torch.stack([rows.T @ rows / max(len(rows) - 1, 1) for rows in centred])
    return ClassGaussians(means, covariances, counts)


def head_classes(counts: Int[Tensor, "C"], head_count: int | None = None) -> Bool[Tensor, "C"]:
    """Which classes are frequent: those with at least `head_count` rows, by default as many as the ceil(0.4 C)-th.

    Raises ValueError if none is.
    """
    if head_count is None:
        head_count = int(counts.sort(descending=True).values[math.ceil(HEAD_SHARE * len(counts)) - 1])
    if not bool((counts >= head_count).any()):
        raise ValueError(f"no class has head_count={head_count} rows, the largest has {int(counts.max())}; lower it")
    return counts >= head_count


class FeatureCalibration:
    """Gaussians of features by class, those of rare classes blended with their nearest frequent ones; draws from them.

    neighbours >= 1: m, head classes that a rare class borrows from; all of them, with a warning, where there are fewer.
    delta in [0, 1]: weight of a rare class's own mean. ridge > 0: eps in units of the mean variance within classes.
    head_count: rows from which a class is frequent, see `head_classes`. own_covariance in [0, 1]: weight of a rare
    class's own covariance. power: z^power, or log(z + 1e-6) for 0, of features >= 0 before all else, as Tukey's ladder
    has it; then give test features to `transform`. clamp: drawn features are at least 0 if all given ones are.

    After `fit`: means_, covariances_ as they are drawn from, counts_, head_ (C,), neighbours_ (C, m), the class itself
    for frequent ones. A reconstruction, see the module. Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        neighbours: int = 2,
        delta: float = 0.8,
        ridge: float = 1e-3,
        head_count: int | None = None,
        own_covariance: float = 0.0,
        power: float = 1.0,
        clamp: bool = True,
    ):
        check_range("neighbours", neighbours, neighbours >= 1, "[1, infinity)")
        check_range("delta", delta, 0 <= delta <= 1, "[0, 1]")
        check_range("ridge", ridge, 0 < ridge < math.inf, "(0, infinity)")
        check_range("own_covariance", own_covariance, 0 <= own_covariance <= 1, "[0, 1]")
        check_range("power", power, math.isfinite(power), "(-infinity, infinity)")
        self.neighbours, self.delta, self.ridge, self.head_count = neighbours, delta, ridge, head_count
        self.own_covariance, self.power, self.clamp = own_covariance, power, clamp
        self.counts_: Int[Tensor, "C"] | None = None

    def transform(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Features in the space of the Gaussians; as they are for power = 1. Raises ValueError for one below 0."""
        if self.power == 1:
            return features
        if not bool((features >= 0).all()):
            raise ValueError(f"power={self.power:g} takes features >= 0, got {float(features.min())}; leave it at 1")
        return (features + 1e-6).log() if self.power == 0 else features**self.power

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], num_classes: int | None = None) -> Self:
        """Measure and blend; arguments and errors as for `class_gaussians`, `head_classes` and `transform`."""
        z = self.transform(features)
        found = class_gaussians(z, labels, num_classes)
        means, covariances, counts = found
        head = head_classes(counts, self.head_count)
        frequent, m = head.nonzero()[:, 0], self.neighbours
        if m > len(frequent) and not bool(head.all()):
            warnings.warn(f"{m} neighbours were asked for, but only {len(frequent)} classes are frequent", stacklevel=2)
            m = len(frequent)
        # by differences, so that a large offset of all features takes nothing from the distances
        distance = torch.cdist(means, means[frequent], compute_mode="donot_use_mm_for_euclid_dist")
        nearest = frequent[distance.argsort(stable=True, dim=1)[:, :m]]
        share = counts[nearest].double()
        share = share / share.sum(1, keepdim=True)
        own = means.new_full((len(counts), 1), self.delta).masked_fill(head[:, None], 1)
        self.means_ = own * means + (1 - own) * (share[:, :, None] * means[nearest]).sum(1)
        borrowed = torch.einsum("cm,cmij->cij", share, covariances[nearest])
        own = means.new_full((len(counts), 1, 1), self.own_covariance).masked_fill(head[:, None, None], 1)
        blended = own * covariances + (1 - own) * borrowed
        within = (covariances.diagonal(dim1=1, dim2=2).mean(1) * (counts - 1)).sum() / max(len(labels) - len(counts), 1)
        eye = torch.eye(means.shape[1], dtype=torch.float64)
        self.covariances_ = (blended + blended.mT) / 2 + self.ridge * within * eye
        self.counts_, self.head_ = counts, head
        self.neighbours_ = torch.where(head[:, None], torch.arange(len(counts))[:, None], nearest)
        self._floor = 0.0 if self.clamp and bool((z >= 0).all()) else -math.inf
        return self

    def sample(
        self, rng: torch.Generator, missing: Int[Tensor, "C"] | None = None
    ) -> tuple[Float[Tensor, "M D"], Int[Tensor, "M"]]:
        """Drawn features (M, D) float64 and their labels (M,), in the order of classes.

        rng: on the CPU. missing (C,): how many of each class; by default as many as it lacks to the largest class.
        Raises ValueError before `fit`, or where a covariance is not positive definite.
        """
        if self.counts_ is None:
            raise ValueError("call fit(features, labels) before sample")
        missing = self.counts_.max() - self.counts_ if missing is None else missing
        drawn = [self.means_.new_zeros(0, self.means_.shape[1])]
        for c in missing.nonzero()[:, 0].tolist():
            factor, info = torch.linalg.cholesky_ex(self.covariances_[c])
            if int(info):
                raise ValueError(
                    f"the covariance of class {c} is not positive definite: raise ridge={self.ridge:g}, unless no "
                    "feature varies within any class"
                )
            noise = torch.randn(int(missing[c]), len(factor), dtype=torch.float64, generator=rng)
            drawn.append((self.means_[c] + noise @ factor.T).clamp_min(self._floor))
        return torch.cat(drawn), torch.arange(len(missing)).repeat_interleave(missing)

    def balance(
        self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], rng: torch.Generator
    ) -> tuple[Float[Tensor, "M D"], Int[Tensor, "M"]]:
        """The fitted rows, transformed, and after them drawn ones: of each class as many as of the largest."""
        drawn, of_class = self.sample(rng)
        real = self.transform(features)
        return torch.cat([real, drawn.to(real)]), torch.cat([labels, of_class.to(labels)])


class LADC(Procedure):
    """Plain training until `start`, then the classifier alone, on features balanced by draws for rare classes.

    start in [0, 1]: progress of training. neighbours, delta, ridge, head_count, own_covariance, clamp: see
    `FeatureCalibration`. Features are taken once, of the training rows in evaluation mode, without transforms. The
    classifier goes on from where it stands, and so does the schedule of the learning rate.
    A reconstruction after Wang et al., arXiv 2111.04901. Raises ValueError for arguments out of range, and in `setup`
    for a class without a training row or no frequent class.
    """

    traits = Traits(
        needs={
            "features": "trains the classifier on features that stand still",
            "class_counts": "takes the mean and the spread of every class",
        },
        breaks={
            "class_counts": "trains the classifier on as many features of each class",
            "group": "trains the classifier on drawn features, which belong to no group",
        },
        honours=frozenset({"sampler", "transform", "loss", "stepper"}),
        evens_classes=True,
    )

    def __init__(
        self,
        start: float = 0.5,
        neighbours: int = 2,
        delta: float = 0.8,
        ridge: float = 1e-3,
        head_count: int | None = None,
        own_covariance: float = 0.0,
        clamp: bool = True,
    ):
        check_range("start", start, 0 <= start <= 1, "[0, 1]")
        self.start = start
        self.calibration = FeatureCalibration(neighbours, delta, ridge, head_count, own_covariance, 1.0, clamp)
        self._balanced: tuple[Tensor, Tensor] | None = None

    def setup(self, run: Run) -> dict[str, nn.Module]:
        self._balanced = None
        if bool((run.train.class_counts == 0).any()):
            absent = (run.train.class_counts == 0).nonzero()[:, 0].tolist()
            raise ValueError(f"each class needs a training row, classes without one: {absent}")
        head_classes(run.train.class_counts, self.calibration.head_count)
        return {}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if run.progress < self.start:
            return super().loss(run, batch)
        if self._balanced is None:
            # the features stand still, so a resumed run finds the same
            self._balanced = self._balance(run)
        features, labels = (column.to(run.device) for column in self._rows(run, *self._balanced))
        with run.autocast():
            logits = cast(Any, run.model).get_classifier()(features).float()
        drawn = Batch(features, Target.hard(labels), torch.full_like(labels, -1))
        losses = run.losses(Output(logits, features), drawn)
        run.check_finite(losses)
        return losses.mean()

    @torch.no_grad()
    def _balance(self, run: Run) -> tuple[Float[Tensor, "M D"], Int[Tensor, "M"]]:
        chunks = [features.cpu() for _, features in training_features(run)]
        # batch statistics, and so features, differ between processes; those of the first predict
        features = run.fabric.broadcast(torch.cat(chunks))
        self.calibration.fit(features, run.train.labels, run.train.num_classes)
        return self.calibration.balance(features, run.train.labels, generator(run.seed, "ladc features"))

    def _rows(
        self, run: Run, features: Float[Tensor, "M D"], labels: Int[Tensor, "M"]
    ) -> tuple[Float[Tensor, "B D"], Int[Tensor, "B"]]:
        """This process's share of the batch of this step: one pass over the balanced set after another, shuffled."""
        steps = len(labels) // run.batch_size
        number, position = divmod(run.step, steps)
        order = torch.randperm(len(labels), generator=generator(run.seed, "ladc order", number))
        rows = order[position * run.batch_size :][: run.batch_size]
        rows = distributed.local(run.fabric, rows)
        return features[rows], labels[rows]
