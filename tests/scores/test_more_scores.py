"""MaxLogit, GEN, ASH, SHE, RMDS and ViM: closed forms, limits that are known scores, and fitting in pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.rng import generator
from weathered.scores import vim as vim_module
from weathered.scores.ash import ASH, ash_score, shaped
from weathered.scores.base import Evidence, LinearHead
from weathered.scores.energy import energy_score
from weathered.scores.gen import GEN, gen_score
from weathered.scores.mahalanobis import Mahalanobis
from weathered.scores.max_logit import max_logit_score
from weathered.scores.rmds import RMDS
from weathered.scores.she import SHE, she_score
from weathered.scores.vim import ViM, default_dim


def draw(name: str, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=generator(0, name), dtype=torch.float64)


def sample(rows: int = 300, width: int = 10, classes: int = 4):
    labels = torch.arange(rows) % classes
    return 2 * draw("means", classes, width)[labels] + draw("h", rows, width) @ draw("mix", width, width), labels


def test_the_largest_logit_lies_between_energy_and_energy_plus_log_of_the_classes():
    logits = 5 * draw("z", 50, 7)
    found, energy = max_logit_score(logits), energy_score(logits)
    assert_close(found, -logits.max(1).values)
    assert bool(((found >= energy) & (found <= energy + torch.tensor(7.0).log())).all())
    assert_close(found, energy_score(logits, 1e-4), atol=1e-3, rtol=0)
    assert_close(max_logit_score(logits + 3), found - 3)


def test_generalised_entropy_has_its_closed_form_and_limits():
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    expected = sum((q * (1 - q)) ** 0.1 for q in (0.6, 0.3))
    assert float(gen_score(p.log(), top=2)) == pytest.approx(expected, rel=1e-9)
    logits = 3 * draw("z", 40, 6)
    assert_close(gen_score(logits, gamma=1.0), 1 - logits.softmax(1).square().sum(1))
    assert_close(gen_score(logits + 100), gen_score(logits))
    assert float(gen_score(torch.tensor([[400.0, 0.0, 0.0]]))) < 1e-12
    # a certainty that rounds to 1 still counts
    sure = torch.tensor([[40.0, 0.0], [60.0, 0.0]], dtype=torch.float64)
    assert_close(gen_score(sure), 2 * (-torch.tensor([40.0, 60.0]).double() * 0.1).exp(), rtol=1e-6, atol=0)


def test_shaping_keeps_sums_or_numbers_as_published():
    h = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]], dtype=torch.float64)
    assert shaped(h, 60, "p").tolist() == [[4, 0, 3, 0, 0]]
    assert shaped(h, 60, "b").tolist() == [[5, 0, 5, 0, 0]]
    factor = float(torch.tensor(10 / 7).exp())
    assert shaped(h, 60, "s")[0].tolist() == pytest.approx([4 * factor, 0, 3 * factor, 0, 0])
    assert shaped(torch.zeros(1, 5), 60, "s").tolist() == [[0] * 5]
    features, weight, bias = draw("h", 30, 8).abs(), draw("w", 3, 8), draw("b", 3)
    assert_close(ash_score(features, weight, bias, 0, "p"), energy_score(features @ weight.T + bias))
    assert_close(ash_score(features, weight, bias, 0, "s"), energy_score(torch.e * features @ weight.T + bias))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 99.9), st.sampled_from(["p", "s", "b"]), st.integers(2, 30))
def test_shaping_leaves_the_largest_features(percentile, kind, width):
    h = draw("h", 5, width).abs()
    found, keep = shaped(h, percentile, kind), max(width - round(width * percentile / 100), 1)
    assert bool(((found > 0).sum(1) == keep).all())
    least = h.topk(keep, dim=1).values[:, -1:]
    assert torch.equal(found > 0, h >= least)
    if kind == "b":
        assert_close(found.sum(1), h.sum(1))


def test_features_below_zero_are_refused_with_a_way_out():
    head = LinearHead(torch.ones(2, 3), torch.zeros(2))
    with pytest.raises(Incompatible, match="ASH needs features >= 0.*Leave it out"):
        ASH().score(Evidence(torch.zeros(1, 2), torch.tensor([[1.0, -1.0, 0.0]]), head))
    with pytest.raises(ValueError, match="features must be >= 0"):
        ash_score(torch.tensor([[1.0, -1.0, 0.0]]), head.weight, head.bias)


def test_she_is_the_inner_product_with_the_mean_of_right_answers():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [5.0, 5.0], [0.0, 4.0]]).double()
    labels = torch.tensor([0, 0, 1, 1, 2])
    logits = torch.tensor([[9, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0], [9, 0, 0]]).double()
    fitted = SHE().fit_evidence(Evidence(logits, features), labels)
    # class 2 has no right answer, so all of its samples stand for it
    assert fitted.means_.tolist() == [[2, 0], [0, 2], [0, 4]]
    assert SHE().fit(features, labels).means_.tolist() == [[2, 0], [2.5, 3.5], [0, 4]]
    new = Evidence(torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([[3.0, 5.0]]))
    assert fitted.score(new).tolist() == [-10.0]
    assert she_score(2 * new.features, torch.tensor([1]), fitted.means_).tolist() == [-20.0]
    with pytest.raises(Incompatible, match="SHE has learnt 3 classes, but the model tells 4 apart"):
        fitted.score(Evidence(torch.zeros(1, 4), torch.zeros(1, 2)))


def test_the_relative_distance_is_the_difference_of_two_mahalanobis_distances():
    features, labels = sample()
    fitted, evidence = RMDS().fit(features, labels), Evidence(features=3 * draw("new", 40, 10))
    assert_close(fitted.total_mean_, features.mean(0))
    assert_close(fitted.total_covariance_, torch.cov(features.T, correction=0))
    classes = Mahalanobis().fit(features, labels).score(evidence)
    everything = Mahalanobis().fit(features, torch.zeros_like(labels)).score(evidence)
    assert_close(fitted.score(evidence), classes - everything)
    assert_close(RMDS().fit(features, torch.zeros_like(labels)).score(evidence), torch.zeros(40).double())


@pytest.mark.parametrize("split", [[300], [1, 299], [100, 50, 150]])
def test_fitting_in_pieces_is_fitting_at_once(split):
    features, labels = sample()
    head = LinearHead(draw("w", 4, 10), draw("b", 4))
    new = draw("new", 20, 10)
    evidence = Evidence(new @ head.weight.T + head.bias, new, head)
    for kind, more in ((RMDS, ()), (ViM, (head,))):
        whole, pieces = kind().fit(features, labels, *more), kind()
        for rows in torch.arange(300).split(split):
            pieces.partial_fit(features[rows], labels[rows], *more)
        assert_close(pieces.score(evidence), whole.score(evidence), rtol=1e-8, atol=1e-8)


def test_the_virtual_logit_matches_the_published_formula():
    features, labels = sample()
    head = LinearHead(draw("w", 4, 10), draw("b", 4))
    logits = features @ head.weight.T + head.bias
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    offset = features - origin
    # the space from the singular vectors, another way than the library's
    space = torch.linalg.svd(offset, full_matrices=False).Vh[:5]
    residual = (offset - offset @ space.T @ space).norm(dim=1)
    alpha = logits.amax(1).mean() / residual.mean()
    fitted = ViM(dim=5).fit(features, labels, head)
    found = fitted.score(Evidence(logits, features, head))
    assert_close(found, alpha * residual - logits.logsumexp(1))
    virtual = torch.cat([logits, (alpha * residual)[:, None]], 1).softmax(1)[:, -1]
    assert torch.equal(found.argsort(), virtual.argsort())
    everything = ViM(dim=10).fit(features, labels, head).score(Evidence(logits, features, head))
    assert_close(everything, energy_score(logits))


def test_the_default_space_is_that_of_the_paper():
    assert [default_dim(width) for width in (2048, 1024, 768, 512, 1)] == [1000, 512, 512, 256, 1]


def test_memory_for_alpha_is_bounded(monkeypatch):
    """Rows in the order of their classes are kept evenly, not those that come first."""
    monkeypatch.setattr(vim_module, "KEPT", 120)
    features, labels = sample()
    head, order = LinearHead(draw("w", 4, 10), draw("b", 4)), labels.argsort(stable=True)
    features, labels = features[order], labels[order]
    fitted = ViM().fit(features[:100], labels[:100], head).partial_fit(features[100:], labels[100:], head)
    assert fitted.kept_.shape == (120, 10)
    place = (fitted.kept_[:, None] == features).all(2).nonzero()[:, 1]
    assert len(place.unique()) == 120
    assert int(labels[place].bincount(minlength=4).min()) > 15
    again = ViM()
    again.load_state_dict(fitted.state_dict())
    for score in (fitted, again):
        score.partial_fit(features, labels, head)
    assert torch.equal(again.kept_, fitted.kept_)
    assert fitted.seen_ == 600


def test_arguments_and_rows_that_do_not_fit_are_refused():
    features, labels = sample()
    head, other = LinearHead(draw("w", 4, 10), draw("b", 4)), LinearHead(draw("v", 4, 10), draw("b", 4))
    for make, message in (
        (lambda: GEN(gamma=0.0), r"gamma must be in \(0, 1\]"),
        (lambda: GEN(top=0), "top must be at least 1"),
        (lambda: ASH(percentile=100), r"percentile must be in \[0, 100\)"),
        (lambda: ASH(kind="q"), "kind must be one of p, s, b"),
        (lambda: ViM(dim=0), "dim must be at least 1"),
        (lambda: ViM(dim=11).fit(features, labels, head), "dim must be at most the width 10"),
        (lambda: ViM().fit(features[:0], labels[:0], head), "at least one row"),
        (lambda: ViM().fit(features, labels, head).partial_fit(features, labels, other), "one head"),
        (lambda: SHE().fit(features, labels[:5]), "a label >= 0 for each"),
        (lambda: SHE().fit(features, labels, torch.zeros(3, 4)), "300 rows of features but 3 rows of logits"),
        (lambda: she_score(features, labels + 9, features[:4]), r"predicted classes must be in \[0, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
