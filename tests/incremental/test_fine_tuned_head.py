"""The fine-tuned head: its gradient, the mask of unseen classes, and that it forgets."""

import importlib.util
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from weathered.incremental.fine_tuned_head import FineTunedHead, cross_entropy_gradient


def data(rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    labels = torch.arange(rows) % 4
    return centres[labels] + torch.randn(rows, 6, generator=rng, dtype=torch.float64), labels


def test_gradient_equals_autograd():
    features, labels = data()
    W = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(cross_entropy(features @ W, labels), W)
    torch.testing.assert_close(cross_entropy_gradient(W.detach(), features, labels), expected)


def test_one_phase_approaches_logistic_regression():
    features, labels = data()
    head = FineTunedHead(learning_rate=0.5, momentum=0.9, epochs=800, batch_size=200).fit(features, labels)
    exact = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-8, max_iter=5000).fit(features, labels)
    assert head.W_ is not None
    logits, expected = features @ head.W_, torch.tensor(exact.coef_) @ features.T
    torch.testing.assert_close(logits.softmax(1), expected.T.softmax(1), atol=1e-3, rtol=0)


def test_second_phase_erases_the_first_and_gaps_stay_masked():
    features, labels = data()
    features = features.abs() + 1  # a direction that all rows share, as in rectified features, makes it forget
    early, late = labels < 2, labels == 3
    head = FineTunedHead().partial_fit(features[early], labels[early])
    assert (head.predict(features[early]).argmax(1) == labels[early]).double().mean() > 0.8
    head.partial_fit(features[late], labels[late])
    scores = head.predict(features)
    assert torch.isneginf(scores[:, 2]).all()
    assert (scores.argmax(1) == 3).double().mean() > 0.9


def test_saving_and_loading_changes_nothing():
    features, labels = data()
    straight = FineTunedHead().partial_fit(features, labels)
    resumed = FineTunedHead()
    resumed.load_state_dict(straight.state_dict())
    for head in (straight, resumed):
        head.partial_fit(features[:50], labels[:50])
    assert torch.equal(straight.predict(features), resumed.predict(features))
    resumed.load_state_dict(FineTunedHead().state_dict())
    with pytest.raises(ValueError, match="no data"):
        resumed.predict(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * torch.nan, y), "finite"),
        (lambda x, y: (x[:, 1:], y), "width 6"),
        (lambda x, y: (x, y - 1), "row 0"),
        (lambda x, y: (x, y.double()), "one integer"),
        (lambda x, y: (x[:0], y[:0]), "at least one"),
        (lambda x, y: (x * 1e160, y), "infinite"),
    ],
)
def test_bad_input_raises_before_anything_changes(change, message):
    features, labels = data()
    head = FineTunedHead().partial_fit(features, labels)
    before = head.state_dict()
    with pytest.raises(ValueError, match=message):
        head.partial_fit(*change(features, labels))
    assert torch.equal(head.state_dict()["W"], before["W"])
    assert head.state_dict()["calls"] == 1


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"epochs": 0}, {"batch_size": 0}])
def test_arguments(options):
    with pytest.raises(ValueError, match=r"expected|must be"):
        FineTunedHead(**options)


def test_small_scale_check_on_digits():
    """ACIL ends exactly where joint ridge regression does; the fine-tuned head at least 50 points below."""
    path = Path(__file__).parents[2] / "claims" / "acil.py"
    spec = importlib.util.spec_from_file_location("claims_acil", path)
    assert spec is not None
    assert spec.loader is not None
    claim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claim)
    for seed in range(3):
        values = claim.measure(seed)
        assert set(values) == set(claim.ARMS)
        assert values["acil"] == values["joint ridge"]
        assert values["acil"] > 0.9
        assert values["fine-tuned head"] < values["acil"] - 0.5
