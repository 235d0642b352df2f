"""Duplicates and neighbours: against brute force, tiles that change nothing, and contradictions."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from weathered.audit.labels import duplicates as duplicates_module
from weathered.audit.labels import neighbours as neighbours_module
from weathered.audit.labels.duplicates import exact_duplicates, near_duplicates
from weathered.audit.labels.neighbours import nearest_neighbours, unit_rows
from weathered.audit.labels.trajectory import neighbour_agreement
from weathered.core.errors import DataError, SpecError


def clusters(n: int = 60, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features around a few directions, labels with some contradictions."""
    rng = np.random.default_rng(seed)
    centre = rng.integers(12, size=n)
    features = rng.normal(size=(12, width))[centre] * rng.uniform(0.5, 2, (n, 1)) + 0.15 * rng.normal(size=(n, width))
    return features, np.where(rng.random(n) < 0.2, rng.integers(3, size=n), centre % 3)


def test_exact_duplicates():
    images = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    images[1], images[3], images[4] = 7, 7, 9
    found = exact_duplicates(images, np.array([0, 1, 0, 2, 1, 0]))
    assert found.group.tolist() == [0, 1, 0, 1, 2, 0]
    assert found.size.tolist() == [3, 2, 3, 2, 1, 3]
    assert found.conflict.tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_exact_duplicates_of_all_types_agree_with_unique_rows(dtype):
    rows = torch.randint(0, 2, (200, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = exact_duplicates(rows, np.zeros(200, int))
    _, inverse, counts = np.unique(rows.float().numpy(), axis=0, return_inverse=True, return_counts=True)
    assert np.array_equal(found.size, counts[inverse])
    same = inverse[:, None] == inverse
    assert np.array_equal(found.group[:, None] == found.group, same)
    if dtype not in (torch.bfloat16,):
        assert np.array_equal(exact_duplicates(rows.numpy(), np.zeros(200, int)).group, found.group)


def test_a_view_has_the_bytes_of_its_values():
    rows = torch.arange(12).reshape(3, 4)
    assert exact_duplicates(rows.T[:, [0, 0, 1]].T, np.arange(3)).group.tolist() == [0, 0, 1]
    assert exact_duplicates(rows.numpy()[:, ::2], np.arange(3)).size.tolist() == [1, 1, 1]


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("tile", "pending"), [(1, 0), (7, 3), (60, 10), (2048, 2**21)])
def test_near_duplicates_are_those_of_the_full_matrix(monkeypatch, threshold, tile, pending):
    monkeypatch.setattr(duplicates_module, "TILE_ROWS", tile)
    monkeypatch.setattr(duplicates_module, "PENDING", pending)
    features, labels = clusters()
    found = near_duplicates(features, labels, threshold)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    component = connected_components(similar >= threshold)[1]
    assert np.array_equal(found.duplicates.group[:, None] == found.duplicates.group, component[:, None] == component)
    conflict = [len(set(labels[component == c])) > 1 for c in component]
    assert found.duplicates.conflict.tolist() == conflict
    other = np.where((similar >= threshold) & (labels[:, None] != labels), similar, -np.inf)
    partner = np.where(np.isinf(other.max(axis=1)), -1, other.argmax(axis=1))
    assert np.array_equal(found.partner, partner)
    assert np.array_equal(np.isnan(found.similarity), partner < 0)
    assert found.similarity[partner >= 0] == pytest.approx(other.max(axis=1)[partner >= 0], abs=1e-6)


def test_copies_of_one_row_are_one_group_of_bounded_memory(monkeypatch):
    monkeypatch.setattr(duplicates_module, "PENDING", 100)
    found = near_duplicates(np.ones((500, 3)), np.arange(500) % 2)
    assert found.duplicates.size.tolist() == [500] * 500
    assert found.duplicates.conflict.all()
    assert (found.partner >= 0).all()


def test_scale_does_not_matter_and_zeros_are_near_nothing():
    features = np.array([[1.0, 2.0], [3e30, 6e30], [0.0, 0.0], [0.0, 0.0], [2e-30, 4e-30]])
    found = near_duplicates(features, np.arange(5))
    assert found.duplicates.group.tolist() == [0, 0, 1, 2, 0]
    assert unit_rows(features)[[0, 1, 4]].norm(dim=1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("backend", ["torch", "faiss", "auto"])
@pytest.mark.parametrize("k", [1, 5, 59])
def test_neighbours_are_those_of_the_full_matrix(monkeypatch, backend, k):
    if backend == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours_module, "QUERY_ROWS", 7)
    monkeypatch.setattr(neighbours_module, "BANK_ROWS", 11)
    features, labels = clusters()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    expected = np.argsort(-similar, axis=1)[:, :k]
    found = nearest_neighbours(features, k, backend)
    assert np.array_equal(found.rows, expected)
    assert found.similarity == pytest.approx(np.take_along_axis(similar, expected, axis=1), abs=1e-6)
    assert neighbour_agreement(features, labels, k, backend) == pytest.approx(
        (labels[expected] == labels[:, None]).mean(axis=1)
    )


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_row_is_not_its_own_neighbour_among_copies(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    rows = nearest_neighbours(np.ones((40, 4)), 5, backend).rows
    assert (rows != np.arange(40)[:, None]).all()
    assert all(len(set(row)) == 5 for row in rows.tolist())


def test_agreement_is_high_for_right_labels_and_low_for_wrong_ones():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = np.eye(3)[labels] * 5 + rng.normal(size=(300, 3))
    wrong = labels.copy()
    wrong[:15] = (wrong[:15] + 1) % 3
    share = neighbour_agreement(features, wrong, 10)
    assert share[:15].max() < share[15:].mean()


def test_bad_input_is_refused():
    features, labels = clusters(10)
    features[3, 0] = np.nan
    for function in (near_duplicates, neighbour_agreement):
        with pytest.raises(DataError, match="row 3"):
            function(features, labels)
    features[3, 0] = 0
    with pytest.raises(DataError, match="k must be in \\[1, 9\\]"):
        nearest_neighbours(features, 10)
    with pytest.raises(SpecError, match="backend"):
        nearest_neighbours(features, 1, "annoy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates(features, labels, 1.5)
    with pytest.raises(DataError, match="one integer label"):
        near_duplicates(features, labels[:9])
    with pytest.raises(DataError, match="Python objects"):
        exact_duplicates(np.array([object()]), np.zeros(1, int))
    with pytest.raises(DataError, match="\\(N, D\\)"):
        near_duplicates(features[0], labels)
