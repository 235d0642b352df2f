"""RISDA: Gaussian feature augmentation in closed form, its mean and covariance borrowed from confusable classes.

Source: Chen et al., "Imagine by Reasoning: A Reasoning-Based Implicit Semantic Data Augmentation for Long-Tailed
Classification", AAAI 2022. Before `start` a step is plain training. Then, with G[c, j] the share of class c predicted
as j, mu_c and S_c the mean and covariance of the features of class c, and d_k = w_k - w_y for the class vectors w:
    shift_c = sum_j G[c, j] mu_j - mu_c
    S'_c    = sum_j G[c, j] S_j for tail classes, S_c for head classes
    z_k    <- z_k + b/2 d_k^T S'_y d_k + a d_k . shift_y,    a = alpha progress, b = beta progress
and the classifier alone learns, by class-weighted cross entropy of these logits on features that stand still. By Jensen
this bounds the mean loss under features drawn from N(f + a shift_y, b S'_y) from above. Prediction: ordinary logits.
Limits: alpha = beta = 0 is classifier training with class weights; G the identity has no shift and S' = S, which is
ISDA (Wang et al., NeurIPS 2019); start = 1 is plain training.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.class_statistics import ClassStatistics, Covariance, check_covariance, confusion_graph
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.roles import Output
from weathered.data.dataset import Dataset
from weathered.procedures.base import check_range, features_of, training_features
from weathered.weighting.base import ClassCounts, check_class_counts, check_labels, class_weights

if TYPE_CHECKING:
    from weathered.core.run import Run

GraphData = Literal["train", "validation"]
"""The data whose confusions tell which classes are alike."""

UNCONFUSED = 0.95
"""Mean diagonal of the graph from which classes have next to nothing to borrow from each other."""


def mean_shift(graph: Float[Tensor, "K K"], means: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
    """G mu - mu: from the mean of each class to that of the classes it is taken for, in the type of the means."""
    return graph.to(means) @ means - means


def head_classes(class_counts: ClassCounts, share: float) -> Bool[Tensor, "K"]:
    """Mark the round(share K) largest classes; of equal ones those that come first.

    share in [0, 1]. Raises ValueError outside, or for a class without samples.
    """
    check_range("head", share, 0 <= share <= 1, "[0, 1]")
    counts = check_class_counts(class_counts)
    marks = torch.zeros(len(counts), dtype=torch.bool)
    marks[counts.argsort(descending=True, stable=True)[: round(share * len(counts))]] = True
    return marks


def reasoned_covariances(
    graph: Float[Tensor, "K K"],
    covariances: Float[Tensor, "K ..."],
    head: Bool[Tensor, "K"],
    classes: Int[Tensor, "P"] | None = None,
) -> Float[Tensor, "P ..."]:
    """Each class's own covariance where `head` marks it, else the mean of all by its row of the graph.

    covariances (K, D, D) or (K, D), left as they are. classes: those wanted, all by default.
    """
    wanted = torch.arange(len(graph), device=graph.device) if classes is None else classes
    own = torch.eye(len(graph), device=graph.device, dtype=graph.dtype)
    rows = torch.where(head.to(graph.device)[:, None], own, graph)[wanted].to(covariances)
    return (rows @ covariances.flatten(1)).view(len(wanted), *covariances.shape[1:])


def augmentation(
    weight: Float[Tensor, "K D"],
    classes: Int[Tensor, "P"],
    covariances: Float[Tensor, "P ..."],
    shift: Float[Tensor, "P D"],
    alpha: float,
    beta: float,
) -> Float[Tensor, "P K"]:
    """beta/2 d_k^T S_y d_k + alpha d_k . shift_y for labels y in `classes`, with d_k = w_k - w_y; 0 for k = y.

    weight: class vectors, through which gradients flow. covariances (P, D, D), symmetric, or variances (P, D).
    Computed in at least float32. Raises ValueError for alpha or beta below 0.
    """
    for name, strength in (("alpha", alpha), ("beta", beta)):
        check_range(name, strength, 0 <= strength < float("inf"), "[0, infinity)")
    # differences of class vectors are all that counts, and are found more exactly around 0
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    vectors = wide - wide.mean(0)
    covariances, shift, own = covariances.detach().to(wide), shift.detach().to(wide), vectors[classes]
    if covariances.ndim == 2:
        square = covariances @ vectors.square().T
        cross, last = (own * covariances) @ vectors.T, (own.square() * covariances).sum(1, keepdim=True)
    else:
        spread = vectors @ covariances
        square = (spread * vectors).sum(2)
        pulled = (covariances @ own[:, :, None])[:, :, 0]
        cross, last = pulled @ vectors.T, (pulled * own).sum(1, keepdim=True)
    quadratic = (square - 2 * cross + last).clamp_min(0)
    linear = shift @ vectors.T - (shift * own).sum(1, keepdim=True)
    return (0.5 * beta * quadratic + alpha * linear).scatter(1, classes[:, None], 0)


def augmented_logits(
    logits: Float[Tensor, "N K"],
    labels: Int[Tensor, "N"],
    weight: Float[Tensor, "K D"],
    covariances: Float[Tensor, "K ..."],
    shift: Float[Tensor, "K D"],
    alpha: float,
    beta: float,
) -> Float[Tensor, "N K"]:
    """The logits with the augmentation of their labels; that of the label itself is unchanged.

    labels (N,) in [0, K). weight: class vectors. covariances (K, D, D) or (K, D), shift (K, D): of all classes, as
    `reasoned_covariances` and `mean_shift` give them. No array has a row for each sample, class and feature.
    Raises ValueError for labels outside, or alpha or beta below 0.
    """
    check_labels(labels, len(weight))
    classes, place = labels.unique(return_inverse=True)
    return logits + augmentation(weight, classes, covariances[classes], shift[classes], alpha, beta)[place]


def risda_loss(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    weight: Float[Tensor, "K D"],
    bias: Float[Tensor, "K"] | None,
    covariances: Float[Tensor, "K ..."],
    shift: Float[Tensor, "K D"],
    alpha: float,
    beta: float,
) -> Float[Tensor, "N"]:
    """Cross entropy of the augmented logits, in nats per sample: a bound on its mean over augmented features.

    Arguments as `augmented_logits`, with which it raises; convex in (weight, bias). At alpha = 0 at least plain cross
    entropy. Weigh the classes by `class_weights`, as the source does.
    """
    logits = F.linear(features, weight, bias)
    augmented = augmented_logits(logits, labels, weight, covariances, shift, alpha, beta)
    return F.cross_entropy(augmented, labels, reduction="none")


class RISDA(Procedure):
    """Plain training until `start`, then the classifier alone, on features augmented by what confusable classes show.

    alpha >= 0, beta >= 0: strength of the shift of the mean and of the covariance at the end of training, relative to
    the scale of the logits. head in [0, 1]: share of the classes, largest first, that keep their own covariance.
    start in [0, 1]: progress of training. graph: measure confusions on the `train` data or on `validation` data, after
    each epoch before `start`; those of the most accurate epoch are kept. soft: by mean probabilities instead of
    predicted classes. covariance: `full` or `diagonal`, as `ClassStatistics`. balance in [0, 1): beta of the class
    weights by effective number; 0 weighs all classes alike.

    `confusions` (K, K) and `shift` (K, D) hold the graph and the shift once it has begun, `statistics` the rest. Warns
    where the graph is next to the identity, and for classes without a row since `start`.
    Raises ValueError for arguments out of range, or full covariances of too many numbers.
    """

    traits = Traits(
        needs={
            "linear_head": "augments along the class vectors",
            "features": "keeps the mean and covariance of the features of each class",
            "class_counts": "weighs the classes, and tells head from tail",
            "hard_target": "augments a sample by its one given label",
        },
        honours=frozenset({"sampler", "transform", "loss", "stepper"}),
    )

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.75,
        head: float = 0.2,
        start: float = 0.8,
        graph: GraphData = "train",
        soft: bool = False,
        covariance: Covariance = "full",
        balance: float = 0.9999,
    ):
        for name, strength in (("alpha", alpha), ("beta", beta)):
            check_range(name, strength, 0 <= strength < float("inf"), "[0, infinity)")
        for name, share in (("head", head), ("start", start)):
            check_range(name, share, 0 <= share <= 1, "[0, 1]")
        check_range("balance", balance, 0 <= balance < 1, "[0, 1)")
        check_covariance(covariance, 1, 1)
        if graph not in ("train", "validation"):
            raise ValueError(f"graph must be 'train' or 'validation', got '{graph}'")
        self.alpha, self.beta, self.head, self.start = alpha, beta, head, start
        self.graph: GraphData = graph
        self.covariance: Covariance = covariance
        self.soft, self.balance = soft, balance
        if graph == "validation":
            needs = {**self.traits.needs, "validation": "measures which classes are confused on it"}
            self.traits = replace(self.traits, needs=needs)

    def setup(self, run: Run) -> dict[str, nn.Module]:
        counts, width = run.train.class_counts, cast(Any, run.model).get_classifier().in_features
        self.class_weights = class_weights(counts, self.balance).float().to(run.device)
        self.is_head = head_classes(counts, self.head).to(run.device)
        self.statistics = ClassStatistics(len(counts), width, self.covariance, run.device)
        self.confusions = torch.eye(len(counts), dtype=torch.float64, device=run.device)
        self.shift = torch.zeros(len(counts), width, device=run.device)
        self.begun, self.best = False, -1.0
        return {}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        return run.losses(run.forward(batch.x), batch).mean()

    def update(self, run: Run, batch: Batch) -> None:
        if run.progress < self.start:
            super().update(run, batch)
            return
        if not self.begun:
            self._begin(run)
        with torch.no_grad(), eval_mode(run.model):
            features = features_of(run, run.model, batch.x)
        run.check_finite(features)
        self.statistics.update(run.gather(features), run.gather(batch.target.single()))
        run.take_step(lambda: self.augmented_loss(run, batch, features))

    def augmented_loss(self, run: Run, batch: Batch, features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """The class-weighted mean of the losses of augmented logits, at the present strengths."""
        classifier, labels = cast(Any, run.model).get_classifier(), batch.target.single()
        with run.autocast():
            logits = classifier(features).float()
        classes, place = labels.unique(return_inverse=True)
        covariances = reasoned_covariances(self.confusions, self.statistics.covariances, self.is_head, classes)
        strengths = self.alpha * run.progress, self.beta * run.progress
        moved = augmentation(classifier.weight.float(), classes, covariances, self.shift[classes], *strengths)
        losses = run.losses(Output(logits + moved[place], features), batch)
        weights = self.class_weights[labels]
        return (weights * losses).mean() / run.gather(weights).mean()

    def after_epoch(self, run: Run) -> None:
        if not self.begun and self.start < 1:
            self._measure(run)
        if self.begun and run.step == run.total_steps and (unseen := self.statistics.unseen):
            warnings.warn(f"classes without a row since start={self.start:g} have covariance 0: {unseen}", stacklevel=2)

    def _measure(self, run: Run) -> None:
        """Keep the confusions of the present network if it is the most accurate so far."""
        data = run.validation if self.graph == "validation" else run.train
        logits, labels = run.predict(cast(Dataset, data)), cast(Dataset, data).labels
        accuracy = float((logits.argmax(1) == labels).double().mean())
        if accuracy > self.best:
            found = logits.softmax(1) if self.soft else logits.argmax(1)
            self.best = accuracy
            self.confusions = confusion_graph(found, labels, len(self.class_weights)).to(run.device)

    def _begin(self, run: Run) -> None:
        """Fix the shift from the class means of all training rows."""
        if self.best < 0:
            self._measure(run)
        everyone = ClassStatistics(*self.shift.shape, "diagonal", run.device)
        for rows, features in training_features(run):
            everyone.update(features, run.train.labels[rows].to(run.device))
        self.shift, self.begun = mean_shift(self.confusions, everyone.means), True
        alike = float(self.confusions.diagonal().mean())
        if alike > UNCONFUSED and run.fabric.is_global_zero:
            warnings.warn(
                f"classes are confused too little to borrow from each other: they keep {alike:.1%} of their own rows "
                f"in the {self.graph} data; use graph=validation or soft=true, or a smaller start",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        state = {"confusions": self.confusions, "shift": self.shift, "statistics": self.statistics.state_dict()}
        return {**state, "begun": self.begun, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state["statistics"])
        self.confusions, self.shift = state["confusions"].to(self.shift.device), state["shift"].to(self.shift.device)
        self.begun, self.best = state["begun"], state["best"]
