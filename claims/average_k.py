"""Claim: sets of size K on average miss fewer labels than the K most probable ones (average-K, arXiv 2112.08851)."""

import torch
from sklearn.linear_model import LogisticRegression

from weathered.core.rng import generator
from weathered.data.sources.load import load
from weathered.sets.average_k import AverageK
from weathered.sets.report import measure_sets
from weathered.sets.top_k import TopK
from weathered.verification import Measured

SLUG = "average-k"
SENTENCE = (
    "Where half of the images are noisy, sets of two labels on average, with one threshold for all images, miss the "
    "label less often than the two most probable labels of each image."
)
DATA = (
    "scikit-learn digits with pixels in [0, 1], each image with Gaussian noise of deviation 1 or none at equal odds; "
    "logistic regression with C = 0.1 on half of them, a quarter sets the threshold without labels, a quarter tests"
)
METRIC = "share of test images whose set lacks the label, in [0, 1], lower is better"
BASELINE = "top-2"
MAIN = "average-2"
ARMS = ("top-2", "average-2")
HIGHER_IS_BETTER = False
SEEDS = 10
WITH_ONE = "the same with one label in place of two, lower is better"
WITH_THREE = "the same with three labels in place of two, lower is better"
LABELS = "labels in a set with K = 2, mean over the test images"
ALSO = (WITH_ONE, WITH_THREE, LABELS)

DEVIATION = 1.0


def measure(seed: int) -> Measured:
    """Error of both rules at K = 1, 2 and 3, on the same model and the same test images.

    The seed draws the noise, the split and what happens to equal scores.
    """
    digits, rng = load("digits"), generator(seed, "claim", SLUG)
    n = len(digits)
    pixels = digits.floats(torch.arange(n)).flatten(1).double()
    noisy = torch.rand(n, 1, generator=rng) < 0.5
    pixels = pixels + DEVIATION * noisy * torch.randn(pixels.shape, generator=rng, dtype=torch.float64)
    train, held, test = torch.randperm(n, generator=rng).split([n // 2, n // 4, n - n // 2 - n // 4])
    model = LogisticRegression(C=0.1, max_iter=2000).fit(pixels[train].numpy(), digits.labels[train].numpy())
    calibration, scores = (model.predict_proba(pixels[rows].numpy()) for rows in (held, test))
    errors, sizes = {}, {}
    for k in (1, 2, 3):
        rules = {BASELINE: TopK(k).fit(calibration), MAIN: AverageK(k).fit(calibration)}
        reports = {
            arm: measure_sets(rule.predict(scores, generator(seed, "equal", SLUG, k)), digits.labels[test])
            for arm, rule in rules.items()
        }
        errors[k] = {arm: report.error.value for arm, report in reports.items()}
        sizes[k] = {arm: report.size.value for arm, report in reports.items()}
    return Measured(errors[2], {WITH_ONE: errors[1], WITH_THREE: errors[3], LABELS: sizes[2]})
