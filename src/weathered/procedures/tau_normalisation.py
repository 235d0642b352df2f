"""tau-normalisation: plain training, and class vectors of one length for prediction.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.2.
w_k <- w_k / |w_k|^tau, without bias: classes that were seen often have longer vectors, which wins them doubtful cases.
Limits: tau = 0 drops the bias alone; tau = 1 gives all vectors length 1.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.procedures.base import check_range, replace_classifier

if TYPE_CHECKING:
    from weathered.core.run import Run


def tau_normalised(classifier: nn.Linear, tau: float) -> nn.Linear:
    """A copy whose class vectors are divided by their length to the power tau, and without bias.

    tau in [0, 1]. A vector of length 0 stays 0. Raises ValueError for another tau.
    """
    check_range("tau", tau, 0 <= tau <= 1, "[0, 1]")
    scaled = nn.Linear(classifier.in_features, classifier.out_features, bias=False)
    weight = classifier.weight.detach()
    length = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    scaled.weight = nn.Parameter(weight / length**tau, requires_grad=False)
    return scaled


class TauNormalisation(Procedure):
    """Plain training; the network that predicts has class vectors divided by their length to the power tau.

    tau in [0, 1]: to be chosen on validation data. With lengths of 1 the logits are small, so confidences need
    calibrating. Raises ValueError for a tau out of range.
    """

    traits = Traits(
        needs={"linear_head": "changes the lengths of the class vectors"},
        honours=Procedure.traits.honours,
    )

    def __init__(self, tau: float = 1.0):
        check_range("tau", tau, 0 <= tau <= 1, "[0, 1]")
        self.tau = tau

    def predictor(self, run: Run) -> nn.Module:
        network = copy.deepcopy(run.model)
        replace_classifier(network, tau_normalised(cast(Any, network).get_classifier(), self.tau))
        return network
