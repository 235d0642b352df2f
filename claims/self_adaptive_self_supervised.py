"""Claim: one averaged target for each image teaches features without labels (Self-Adaptive Training, experimental)."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from common import accuracy, split_digits
from weathered.augment.crop_flip import CropFlip
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.procedures.self_adaptive_self_supervised import SelfAdaptiveSelfSupervised
from weathered.scores.extract import extract

SLUG = "self-adaptive-self-supervised"
SENTENCE = (
    "A linear classifier is more accurate on features learned without labels, from one averaged target for each image, "
    "than on the features of the same network as it was drawn."
)
DATA = "scikit-learn digits, 1000 train images, 797 test images"
METRIC = "test accuracy of logistic regression on standardised features, in [0, 1]"
BASELINE = "random features"
MAIN = "self-supervised features"
ARMS = ("random features", "self-supervised features", "self-supervised, the run's own classifier", "pixels")
HIGHER_IS_BETTER = True

TRAIN = 1000


def linear_evaluation(train: Tensor, test: Tensor, data: Dataset, held_out: Dataset) -> float:
    """Test accuracy of logistic regression, fitted to training rows (N, D) scaled to mean 0 and deviation 1."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    classifier.fit(train.numpy(), data.labels.numpy())
    return float(classifier.score(test.numpy(), held_out.labels.numpy()))


def of_features(run: Run, train: Dataset, test: Dataset) -> float:
    """Linear evaluation of the run's features."""
    found = [extract(run.model, data).features for data in (train, test)]
    assert found[0] is not None
    assert found[1] is not None
    return linear_evaluation(found[0], found[1], train, test)


def measure(seed: int) -> dict[str, float]:
    """Accuracy of each arm. The seed draws the split, the weights, the targets, the crops and the order of the rows."""
    train, test = split_digits(SLUG, seed, TRAIN)
    settings = Settings(epochs=100, batch_size=100, lr=0.05, momentum=0.9, weight_decay=5e-4, seed=seed)
    model = build_model("cnn_small:width=16,norm=group", train, seed=seed)
    crops = [CropFlip(padding=1, flip=False)]
    run = Run(model, train, procedure=SelfAdaptiveSelfSupervised(), transforms=crops, settings=settings)
    # nothing is trained yet
    values = {"random features": of_features(run, train, test)}
    fit(run)
    rows = [data.floats(torch.arange(len(data))).flatten(1) for data in (train, test)]
    return values | {
        "self-supervised features": of_features(run, train, test),
        "self-supervised, the run's own classifier": accuracy(run.predict(test), test.labels),
        "pixels": linear_evaluation(rows[0], rows[1], train, test),
    }
