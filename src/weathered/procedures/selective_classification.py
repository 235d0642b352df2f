"""Selective classification by self-adaptive training: a network that learns which inputs to leave undecided.

Source: Huang et al., "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020.
The network has C logits and one more, z_a, for abstention. Before `start`: cross entropy of the C logits. From then on,
with p = softmax(z_1 .. z_C) without gradient and q = softmax(z_1 .. z_C, z_a):
    h[i] <- momentum * h[i] + (1 - momentum) * p_i        the history h starts from the given labels
    loss =  mean of -t_i log q_i[y_i] - (1 - t_i) log q_i[a],   t_i = h[i, y_i]
The class is the largest of the C logits; q[a] says how readily the input is left out.
Limits: t = 1 is cross entropy over C + 1 classes; t = 0 asks for abstention alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.target_table import TargetTable, check_momentum, label_table
from weathered.nn.widened import WidenedNetwork, layer_on_features

if TYPE_CHECKING:
    from weathered.core.run import Run

ABSTAIN = "abstain"
"""The name of the abstention logit's layer among the modules of a run."""


def abstention_losses(
    logits: Float[Tensor, "B C+1"], labels: Int[Tensor, "B"], trust: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """-t log q[y] - (1 - t) log q[a] per sample, in nats, with q the softmax over classes and abstention.

    logits (B, C + 1), the last one for abstention. labels (B,) in [0, C). trust (B,): t in [0, 1], without gradient.
    Raises ValueError for a label that is the abstention's or shapes that do not fit.
    """
    if logits.ndim != 2 or labels.shape != trust.shape or len(logits) != len(labels):
        raise ValueError(
            f"expected logits (B, C + 1), labels (B,) and trust (B,), got {tuple(logits.shape)}, "
            f"{tuple(labels.shape)} and {tuple(trust.shape)}"
        )
    classes = logits.shape[1] - 1
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        wrong = int(((labels < 0) | (labels >= classes)).nonzero()[0])
        raise ValueError(f"labels must be in [0, {classes - 1}], got {int(labels[wrong])} at position {wrong}")
    log_q, trust = logits.log_softmax(1), trust.detach()
    return -trust * log_q.gather(1, labels[:, None])[:, 0] - (1 - trust) * log_q[:, -1]


def rejection_score(logits: Float[Tensor, "B C+1"]) -> Float[Tensor, "B"]:
    """The probability of abstention, (B,) in [0, 1]: the softmax of the last of C + 1 logits; reject the highest."""
    return logits.softmax(1)[:, -1]


def risk_coverage(
    scores: Float[Tensor, "N"], wrong: Bool[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Coverages 1/N, 2/N .. 1, and the share of wrong decisions among the samples kept at each of them.

    scores (N,): rejection scores, the lowest are kept first; samples of equal score in the order given. wrong (N,):
    whether each decision is wrong. Both results are (N,) float64; the last risk is the error on all samples.
    Raises ValueError for no samples, shapes that do not fit, or a score that is NaN.
    """
    if scores.ndim != 1 or scores.shape != wrong.shape or not len(scores):
        raise ValueError(
            f"expected one score and one decision per sample, got {tuple(scores.shape)} and {tuple(wrong.shape)}"
        )
    if bool(scores.isnan().any()):
        raise ValueError(f"scores must be numbers to be sorted, position {int(scores.isnan().nonzero()[0])} is NaN")
    kept = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    mistakes = wrong[scores.argsort(stable=True)].double().cumsum(0)
    return kept / len(scores), mistakes / kept


def risk_at(scores: Float[Tensor, "N"], wrong: Bool[Tensor, "N"], coverage: float) -> float:
    """The share of wrong decisions among the round(coverage * N) samples of lowest rejection score.

    scores, wrong: as in `risk_coverage`. Raises ValueError if coverage is not in (0, 1] or keeps no sample.
    """
    count = round(coverage * len(scores)) if 0 < coverage <= 1 else 0
    if count < 1:
        raise ValueError(f"coverage must be in (0, 1] and keep one of {len(scores)} samples, got {coverage}")
    return float(risk_coverage(scores, wrong)[1][count - 1])


class AbstainingNetwork(WidenedNetwork):
    """A network of C classes beside one more logit on the same features; it behaves like the network, and can abstain.

    network: with forward_features, forward_head and get_classifier. abstain: (B, D) -> (B, 1).
    """

    def __init__(self, network: nn.Module, abstain: nn.Module):
        super().__init__(network)
        self.abstain = abstain

    @property
    def extra_layer(self) -> nn.Module:
        return self.abstain

    def rejection_score(self, x: Tensor) -> Float[Tensor, "B"]:
        """The probability of abstention, in [0, 1]; reject the inputs where it is highest."""
        return rejection_score(self.all_logits(x))


class SelectiveClassification(Procedure):
    """Train a classifier together with a logit for abstention; the predictor offers `rejection_score(x)`.

    start in [0, 1): progress of training from which abstention is learned; 150 of 300 epochs on CIFAR-10 in the source,
    0 on SVHN. momentum in [0, 1]: of the history. half: keep the history in float16; it takes 4 bytes for each training
    row and class otherwise.

    The loss is part of the method, so no loss part is called. The abstention logit is one more linear unit on the
    features, which together with a linear classifier is a layer of C + 1 outputs. The history is the same on all
    processes, and saved. Raises ValueError for arguments out of range.
    """

    traits = Traits(
        needs={
            "hard_target": "follows the probability of each sample's one given label",
            "index": "keeps a history for each training row",
            "num_classes": "keeps a probability for each class",
            "features": "adds a logit on the features",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
    )

    def __init__(self, start: float = 0.5, momentum: float = 0.9, half: bool = False):
        check_momentum(momentum)
        if not 0 <= start < 1:
            raise ValueError(f"start must be in [0, 1), got {start}")
        self.start, self.momentum, self.half = start, momentum, half

    def setup(self, run: Run) -> dict[str, nn.Module]:
        start = label_table(run.train.labels.to(run.device), run.train.num_classes)
        self.table = TargetTable(start, self.momentum, self.half)
        x = run.in_layout(run.train.floats(torch.arange(1)).to(run.device))
        return {ABSTAIN: layer_on_features(run.model, x)}

    def update(self, run: Run, batch: Batch) -> None:
        self.table.begin()
        super().update(run, batch)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        labels = batch.target.single()
        if run.progress < self.start:
            return F.cross_entropy(run.forward(batch.x).logits, labels)
        with run.autocast():
            logits = self.predictor(run).all_logits(batch.x)
        run.check_finite(logits)
        history = self.table.visit(run, batch.index, logits[:, :-1].detach().softmax(1))
        return abstention_losses(logits, labels, history.gather(1, labels[:, None])[:, 0]).mean()

    def after_step(self, run: Run) -> None:
        self.table.commit()

    def predictor(self, run: Run) -> AbstainingNetwork:
        return AbstainingNetwork(run.model, run.modules[ABSTAIN])

    def state_dict(self) -> dict[str, Any]:
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state)
