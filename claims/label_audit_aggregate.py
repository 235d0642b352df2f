"""Claim: as `label_audit_worst`, for labels that three annotators agreed on by majority."""

from label_audit_worst import ALSO as ALSO
from label_audit_worst import ARMS as ARMS
from label_audit_worst import BASELINE as BASELINE
from label_audit_worst import MAIN as MAIN
from label_audit_worst import METRIC as METRIC
from label_audit_worst import measure_column
from weathered.verification import Measured

SLUG = "label-audit-aggregate"
SENTENCE = (
    "On the same out-of-sample probabilities, the corrected confidence ranks the wrong labels of a majority of three "
    "annotators before the right ones better than the self-confidence, which is cleanlab's default."
)
DATA = (
    "CIFAR-10N, column label_aggregate against the labels of CIFAR-10, 10,000 images drawn by the seed, judged "
    "on those outside the 10,000 on which the score was chosen; probabilities of two folds, a narrow cnn_small trained "
    "for 12 epochs each with cross entropy, or with self-adaptive training"
)


def measure(seed: int) -> Measured:
    """Average precision of each score on the probabilities of each recipe."""
    return measure_column("label_aggregate", seed)
