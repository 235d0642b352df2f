"""Heads fitted in one go: equal to scikit-learn's, finite, unscaled, deterministic, saved with their rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.nn import latent_heads
from weathered.nn.latent_heads import LogisticHead, NeighbourVotes, PerceptronHead, latent_head


def blobs(seed: int, size: int = 90, width: int = 3, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % classes
    return torch.randn(size, width, generator=rng) + labels[:, None], labels


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_votes_are_those_of_the_nearest_rows(seed, neighbours):
    x, y = blobs(seed)
    new, _ = blobs(seed + 1, 20)
    head = NeighbourVotes(3, 3, neighbours)
    head.fit(x, y, seed=0)
    shares = torch.tensor(KNeighborsClassifier(neighbours).fit(x, y).predict_proba(new)).float()
    logits = head(new)
    assert bool(torch.isfinite(logits).all())
    # one more vote, spread over all classes
    assert_close(logits.softmax(1), (neighbours * shares + 1 / 3) / (neighbours + 1), atol=1e-6, rtol=0)


def test_a_prediction_does_not_depend_on_its_company(monkeypatch):
    x, y = blobs(0)
    head = NeighbourVotes(3, 3)
    head.fit(x, y, seed=0)
    whole = head(x)
    monkeypatch.setattr(latent_heads, "CHUNK_VALUES", 2 * len(x))
    assert torch.equal(head(x), whole)
    assert torch.equal(head(x[7:8]), whole[7:8])


def test_scale_is_information_so_what_is_small_does_not_count():
    """Standardised, both columns would count alike, and the second one says all of the label."""
    rng = torch.Generator().manual_seed(0)
    core, shortcut = torch.arange(200) % 2, torch.arange(200) // 2 % 2
    x = torch.stack([core + 0.1 * torch.randn(200, generator=rng), 1e-3 * shortcut], 1)
    head = NeighbourVotes(2, 2)
    head.fit(x, core, seed=0)
    reversed_cue = torch.stack([x[:, 0], 1e-3 * (1 - shortcut)], 1)
    assert torch.equal(head(reversed_cue).argmax(1), core)
    standardised = (x - x.mean(0)) / x.std(0)
    head.fit(standardised, shortcut, seed=0)
    assert torch.equal(head(standardised).argmax(1), shortcut)


def test_votes_have_a_gradient_of_zero():
    x, y = blobs(0)
    head = NeighbourVotes(3, 3)
    head.fit(x, y, seed=0)
    new = x[:4].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(head(new).sum(), new)
    assert not gradient.any()


def test_the_linear_head_is_logistic_regression():
    x, y = blobs(3, 120)
    head = LogisticHead(3, 3)
    with torch.no_grad():
        head.fit(x, y, seed=0)
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000).fit(x.double(), y)
    assert_close(head(x).softmax(1), torch.tensor(reference.predict_proba(x.double())).float(), atol=1e-4, rtol=0)


def test_the_small_network_bends_and_the_linear_head_cannot(monkeypatch):
    monkeypatch.setattr(latent_heads, "STEPS", 300)
    monkeypatch.setattr(latent_heads, "RATE", 0.01)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(300, 2, generator=rng) - 0.5
    y = (x[:, 0] * x[:, 1] > 0).long()
    right = {}
    for kind in ("linear", "mlp"):
        head = latent_head(kind, 2, 2)
        before = torch.get_rng_state()
        head.fit(x, y, seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(p.requires_grad for p in head.parameters())
        right[kind] = float((head(x).argmax(1) == y).double().mean())
    assert right["linear"] < 0.75 < 0.95 < right["mlp"]


def test_fitting_twice_is_the_same_bit_for_bit(monkeypatch):
    monkeypatch.setattr(latent_heads, "STEPS", 20)
    x, y = blobs(0)
    one, two, other = PerceptronHead(3, 3), PerceptronHead(3, 3), PerceptronHead(3, 3)
    for head, seed in ((one, 4), (two, 4), (two, 4), (other, 5)):
        head.fit(x, y, seed)
    assert torch.equal(one(x), two(x))
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("kind", ["knn", "linear", "mlp"])
def test_a_saved_head_is_loaded_with_its_rows(kind, monkeypatch):
    monkeypatch.setattr(latent_heads, "STEPS", 3)
    x, y = blobs(0)
    head, fresh = latent_head(kind, 3, 3), latent_head(kind, 3, 3)
    head.fit(x, y, seed=0)
    assert not fresh.is_fitted
    with pytest.raises(Incompatible, match="train it with --use chroma-vae"):
        fresh(x)
    fresh.load_state_dict(head.state_dict())
    assert fresh.is_fitted
    assert torch.equal(fresh(x), head(x))


@pytest.mark.parametrize("kind", ["knn", "linear", "mlp"])
def test_what_cannot_be_learned_from_is_refused(kind):
    x, y = blobs(0)
    head = latent_head(kind, 3, 3)
    broken = x.clone()
    broken[4, 1] = torch.nan
    for features, labels, message in (
        (x, torch.zeros(90).long(), "at least two classes, got 1"),
        (x, y + 1, r"labels must be in \[0, 2\], got 1 to 3"),
        (x[:, :2], y, r"expected features \(N, 3\)"),
        (x, y[:-1], "expected features"),
        (broken, y, "row 4 is not"),
    ):
        with pytest.raises(ValueError, match=message):
            head.fit(features, labels, seed=0)
    assert not head.is_fitted


def test_more_neighbours_than_rows_and_unknown_heads_are_refused():
    x, y = blobs(0, 4)
    with pytest.raises(ValueError, match="neighbours must be at most the 4 training rows, got 5"):
        NeighbourVotes(3, 3).fit(x, y, seed=0)
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        latent_head("knn", 3, 3, 0)
    with pytest.raises(ValueError, match="head must be 'knn', 'linear' or 'mlp', got 'tree'"):
        latent_head("tree", 3, 3)  # pyright: ignore[reportArgumentType]
