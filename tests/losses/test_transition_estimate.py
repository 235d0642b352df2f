"""The transition matrix estimated from anchors: exact where its assumptions hold, an error where it must be wrong."""

import pytest
import torch
from torch.testing import assert_close

from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.data.sources.load import load
from weathered.losses.forward_correction import check_transition, estimate_transition
from weathered.nn.build import build_model

TRUE = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.25, 0.75]], dtype=torch.float64)


def posteriors(rows: int = 300, sharp: float = 8.0) -> torch.Tensor:
    """Clean posteriors of rows of three classes in turn, some of them nearly certain."""
    z = torch.randn(rows, 3, generator=generator(0, "z"), dtype=torch.float64)
    z[torch.arange(rows), torch.arange(rows) % 3] += sharp * torch.rand(rows, generator=generator(0, "s")).double()
    return z.softmax(1)


def test_perfect_posteriors_with_anchors_give_the_matrix():
    clean = torch.cat([posteriors(), torch.eye(3, dtype=torch.float64)])
    assert_close(estimate_transition(clean @ TRUE, quantile=1.0), TRUE)
    assert_close(estimate_transition(torch.eye(3), quantile=1.0), torch.eye(3).double())


def test_rows_are_predictions_at_the_quantile():
    noisy = posteriors() @ TRUE
    found = estimate_transition(noisy, quantile=0.9)
    for k in range(3):
        order = noisy[:, k].argsort()
        assert_close(found[k], noisy[order[int(0.9 * 299)]])
    assert_close(estimate_transition(noisy)[0], noisy[noisy[:, 0].argsort()[290]])


def test_a_quantile_below_one_passes_over_an_outlier():
    noisy = posteriors(sharp=12.0) @ TRUE
    noisy[0] = torch.tensor([0.999, 0.0, 0.001])
    assert (estimate_transition(noisy, 1.0)[0] - TRUE[0]).abs().max() > 0.15
    assert (estimate_transition(noisy)[0] - TRUE[0]).abs().max() < 0.05


def test_the_estimate_is_a_matrix_that_the_loss_takes():
    found = estimate_transition((posteriors() @ TRUE).float())
    assert found.dtype == torch.float64
    assert_close(check_transition(found), found)


@pytest.mark.parametrize(
    ("probabilities", "quantile", "message"),
    [
        (torch.zeros(0, 3), 1.0, r"must be \(N, C\)"),
        (torch.ones(5), 1.0, r"must be \(N, C\)"),
        (torch.ones(5, 1), 1.0, r"must be \(N, C\)"),
        (torch.randn(5, 3, generator=generator(0)), 1.0, "sum to 1 in each row, row 0"),
        (torch.eye(3), 0.5, r"quantile must be in \(0.6667, 1\] for 3 classes, got 0.5"),
        (torch.eye(3), 1.01, "quantile must be in"),
        (torch.eye(100), 0.97, r"quantile must be in \(0.99, 1\] for 100 classes"),
        (torch.full((5, 3), 1 / 3), 1.0, "class 0 has the anchor of another class"),
        (torch.eye(3)[[0, 0, 1]], 1.0, "has the anchor of another class"),
    ],
)
def test_what_cannot_be_estimated_is_an_error(probabilities, quantile, message):
    with pytest.raises(ValueError, match=message):
        estimate_transition(probabilities, quantile)


def test_a_short_training_on_noisy_digits_comes_closer_than_no_noise_at_all():
    data = SymmetricNoise(0.4)(load("digits"), generator(0, "noise"))
    settings = Settings(epochs=10, batch_size=64, lr=0.05)
    run = fit(Run(lambda seed: build_model("mlp:width=32", data, seed=seed), data, settings=settings))
    found = estimate_transition(run.predict(data).softmax(1))
    true = torch.full((10, 10), 0.4 / 9, dtype=torch.float64).fill_diagonal_(0.6)
    assert (found - true).abs().sum() < 0.5 * (torch.eye(10) - true).abs().sum()
