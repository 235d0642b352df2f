"""Outlier class: the log-odds that a network with a class of outliers gives to it.

Source: Hebbalaguppe, "A Novel Data Augmentation Technique for Out-of-Distribution Sample Detection using Compounded
Corruptions", ECML-PKDD 2022. With p = softmax(z_1 .. z_C, z_o) the released code gives p_o as evidence for an ordinary
input; it is evidence for an outlier, and so it is here.

    s(z) = z_o - log sum_c exp(z_c) = log(p_o / (1 - p_o))

s ranks inputs as p_o does, and still tells apart those for which p_o rounds to 0 or 1.
Limits: C + 1 equal logits give -log C; a constant added to all C + 1 logits changes nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, check_matrix, free_energy, need


def outlier_log_odds(logits: Float[Tensor, "N C"], outlier_logits: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """z_o - log sum_c exp(z_c) in nats, in float64; its sigmoid is the probability of the class of outliers.

    logits (N, C) of the classes, outlier_logits (N,): finite. Returns (N,), any real numbers, higher = more
    out-of-distribution; > 0 where outliers are more probable than all classes together.
    Raises ValueError if the logits are not finite floats of these shapes.
    Source: Hebbalaguppe, ECML-PKDD 2022 (the released code ranks by the negative of the probability).
    """
    if outlier_logits.shape != logits.shape[:1]:
        raise ValueError(
            f"expected one outlier logit for each row of logits, got {tuple(outlier_logits.shape)} for "
            f"{tuple(logits.shape)}"
        )
    check_matrix("outlier logits", outlier_logits[:, None])
    return outlier_logits.double() + free_energy(logits, 1.0)


class OutlierClass(Score):
    """Log-odds of the class of outliers that a network was trained with, as by CnC. Nothing to fit.

    Needs the logits of the classes and that of the outliers. Hebbalaguppe, ECML-PKDD 2022.
    """

    traits = Traits(needs={"outlier_class": "it reads the logit of the outliers"})

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; errors as in `outlier_log_odds`."""
        outlier = need(evidence.outlier_logits, "outlier_logits", self)
        return outlier_log_odds(need(evidence.logits, "logits", self), outlier)
