"""What every score keeps: its sign, one row at a time, the caller's tensors, saved state, and sentences for errors."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from weathered.audit.ood_metrics import auroc
from weathered.core.errors import Incompatible
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.scores.ash import ASH
from weathered.scores.base import Evidence, Score
from weathered.scores.energy import Energy
from weathered.scores.extract import extract
from weathered.scores.gen import GEN
from weathered.scores.gradnorm import GradNorm
from weathered.scores.knn import KNN
from weathered.scores.mahalanobis import Mahalanobis
from weathered.scores.max_logit import MaxLogit
from weathered.scores.msp import MSP
from weathered.scores.odin import ODIN
from weathered.scores.react import ReAct
from weathered.scores.rmds import RMDS
from weathered.scores.she import SHE
from weathered.scores.vim import ViM

SCORES = [MSP, Energy, ODIN, Mahalanobis, KNN, GradNorm, ReAct, MaxLogit, GEN, ASH, SHE, RMDS, ViM]
LEARNING = [KNN, Mahalanobis, ReAct, SHE, RMDS, ViM]


@pytest.fixture(scope="module")
def world():
    """A network trained on three far blobs, its evidence on them, and on points around the origin between them."""
    rng = generator(0, "blobs")
    labels = torch.arange(300) % 3
    centres = 6 * torch.eye(3, 8)
    inside = centres[labels] + torch.randn(300, 8, generator=rng)
    model = build_model("mlp:width=32,depth=1", Dataset.of(inside, labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(inside), labels).backward()
        optimizer.step()
    model.zero_grad()
    outside = torch.randn(100, 8, generator=rng)
    return extract(model, inside), labels, extract(model, outside)


def fitted(kind: type[Score], evidence: Evidence, labels: torch.Tensor) -> Score:
    return kind().fit_evidence(evidence, labels)


@pytest.mark.parametrize("kind", SCORES)
def test_higher_is_more_out_of_distribution(kind, world):
    inside, labels, outside = world
    score = fitted(kind, inside, labels)
    assert auroc(score.score(inside), score.score(outside)).low > 0.6


@pytest.mark.parametrize("kind", SCORES)
def test_a_row_scores_the_same_alone(kind, world):
    inside, labels, outside = world
    score = fitted(kind, inside, labels)
    together = score.score(outside)
    assert together.shape == (100,)
    assert together.dtype == torch.float64
    for i in (0, 57, 99):
        rows = slice(i, i + 1)
        alone = Evidence(
            outside.logits[rows], outside.features[rows], outside.head, outside.model, outside.inputs[rows]
        )
        assert_close(score.score(alone), together[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SCORES)
def test_nothing_given_is_changed(kind, world):
    inside, labels, outside = world
    tensors = [inside.features, labels, outside.features, outside.logits, outside.inputs, outside.head.weight]
    tensors += list(outside.model.parameters())
    before = [t.detach().clone() for t in tensors]
    fitted(kind, inside, labels).score(outside)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in outside.model.parameters())


@pytest.mark.parametrize("kind", SCORES)
def test_state_survives_saving(kind, world):
    inside, labels, outside = world
    score = fitted(kind, inside, labels)
    other = kind()
    assert other.state_dict() == {}
    other.load_state_dict(score.state_dict())
    assert torch.equal(other.score(outside), score.score(outside))
    with pytest.raises(ValueError, match="nonsense"):
        other.load_state_dict({"nonsense": 1})


@pytest.mark.parametrize("kind", SCORES)
def test_missing_evidence_is_named(kind, world):
    inside, labels, _ = world
    score = fitted(kind, inside, labels)
    with pytest.raises(Incompatible, match=rf"^{kind.__name__} needs '(logits|features|head|model)'"):
        score.score(Evidence())


@pytest.mark.parametrize("kind", LEARNING)
def test_scores_that_learn_say_when_they_have_not(kind, world):
    with pytest.raises(ValueError, match=r"has not been fitted; call fit"):
        kind().score(world[0])


@pytest.mark.parametrize("kind", [GradNorm, ReAct, ASH, ViM])
def test_a_head_that_is_not_linear_is_refused(kind, world):
    inside, labels, _ = world
    without_head = Evidence(inside.logits, inside.features)
    if kind is ViM:
        with pytest.raises(Incompatible, match=r"nn\.Linear"):
            kind().fit_evidence(without_head, labels)
        return
    with pytest.raises(Incompatible, match=r"nn\.Linear"):
        fitted(kind, inside, labels).score(without_head)
    assert "linear_head" in kind.traits.needs


@pytest.mark.parametrize("kind", LEARNING)
def test_bad_features_are_refused_and_leave_the_fit_alone(kind, world):
    inside, labels, outside = world
    score = fitted(kind, inside, labels)
    before = score.score(outside)
    broken = inside.features.clone()
    broken[41, 3] = float("nan")
    with pytest.raises(ValueError, match="row 41"):
        score.fit_evidence(Evidence(inside.logits, broken, inside.head), labels)
    with pytest.raises(ValueError, match="row 41"):
        score.score(Evidence(inside.logits, broken, inside.head))
    with pytest.raises(ValueError, match=r"\(N, at least 1\)"):
        score.fit(inside.features[:, 0], labels, *([inside.head] if kind is ViM else []))
    assert torch.equal(score.score(outside), before)


def test_the_base_offers_no_score():
    with pytest.raises(NotImplementedError, match="Score"):
        Score().score(Evidence())
    assert Score().fit(torch.zeros(1, 1), torch.zeros(1)).state_dict() == {}
