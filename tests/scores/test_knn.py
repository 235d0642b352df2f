"""KNN: brute force, blocks, backends, and distances near 0."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores import knn
from weathered.scores.base import Evidence
from weathered.scores.knn import KNN, knn_score


def draw(name, *size, seed=0):
    return torch.randn(*size, generator=generator(seed, name), dtype=torch.float64)


def brute_force(features, bank, k):
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(normalize(features), normalize(bank), compute_mode=exact).kthvalue(k, 1).values


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 1000), st.data())
def test_equals_brute_force(size, width, seed, data):
    k = data.draw(st.integers(1, size))
    features, bank = draw("h", 9, width, seed=seed), draw("bank", size, width, seed=seed)
    assert_close(knn_score(features, bank, k), brute_force(features, bank, k), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("k", [1, 4, 50, 300])
def test_blocks_change_nothing(monkeypatch, k):
    features, bank = draw("h", 40, 6), draw("bank", 300, 6)
    monkeypatch.setattr(knn, "QUERY_ROWS", 7)
    monkeypatch.setattr(knn, "BANK_ROWS", 11)
    assert_close(knn_score(features, bank, k), brute_force(features, bank, k), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_faiss_finds_the_same(k):
    pytest.importorskip("faiss")
    features, bank = draw("h", 40, 16).float(), draw("bank", 500, 16).float()
    expected = brute_force(features.double(), bank.double(), k)
    for backend in ("faiss", "auto", "torch"):
        assert_close(knn_score(features, bank, k, backend), expected, atol=1e-6, rtol=0)
        fitted = KNN(k, backend).fit(bank)
        assert_close(fitted.score(Evidence(features=features)), expected, atol=1e-6, rtol=0)
        fitted.partial_fit(features)  # the index must not outlive the bank it was built on
        if k == 1:
            assert float(fitted.score(Evidence(features=features)).max()) < 1e-6


def test_a_training_row_is_at_distance_zero_also_in_float32():
    bank = draw("bank", 200, 64).float()
    assert float(knn_score(bank, bank, 1).max()) < 1e-6


def test_distances_are_not_squared_and_lie_in_zero_to_two():
    bank = torch.tensor([[1.0, 0.0]])
    features = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-3.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([0.0, 2**0.5, 2.0, 1.0], dtype=torch.float64)
    assert_close(knn_score(features, bank, 1), expected, atol=1e-7, rtol=0)


def test_lengths_of_rows_do_not_matter():
    features, bank = draw("h", 20, 6), draw("bank", 30, 6)
    lengths = draw("length", 30, 1).exp()
    assert_close(knn_score(7 * features, bank * lengths, 3), knn_score(features, bank, 3))


def test_rows_added_later_count_like_rows_given_at_once():
    features, bank = draw("h", 20, 6), draw("bank", 90, 6)
    parts = KNN(5)
    for block in bank.flip(0).split(17):
        parts.partial_fit(block)
    query = Evidence(features=features)
    assert_close(parts.score(query), KNN(5).fit(bank).score(query))
    assert torch.equal(parts.fit(bank).score(query), KNN(5).fit(bank).score(query))


def test_the_bank_does_not_follow_the_caller():
    bank = normalize(draw("bank", 90, 6))
    fitted = KNN(5).fit(bank)
    before = fitted.score(Evidence(features=bank[:9].clone()))
    query = bank[:9].clone()
    bank.zero_()
    assert torch.equal(fitted.score(Evidence(features=query)), before)


@pytest.mark.parametrize("k", [0, 31])
def test_k_outside_the_bank_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be in \[1, 30\]"):
        knn_score(draw("h", 2, 3), draw("bank", 30, 3), k)


def test_other_bad_calls_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        KNN(0)
    with pytest.raises(ValueError, match=r"backend must be one of torch, faiss, auto, got 'annoy'"):
        KNN(1, "annoy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="k = 50 needs at least as many training rows, got 9"):
        KNN().fit(draw("bank", 9, 3))
    fitted = KNN(2).fit(draw("bank", 9, 3))
    with pytest.raises(ValueError, match="width 3 of the bank, got 4"):
        fitted.score(Evidence(features=draw("h", 2, 4)))
    with pytest.raises(ValueError, match="width 3 of the bank, got 4"):
        fitted.partial_fit(draw("h", 2, 4))


def test_a_missing_faiss_is_an_error_only_where_it_was_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(knn.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs faiss: install weathered"):
        KNN(1, "faiss")
    bank = draw("bank", 9, 3)
    assert_close(knn_score(bank, bank, 2, "auto"), knn_score(bank, bank, 2))
