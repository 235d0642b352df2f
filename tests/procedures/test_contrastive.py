"""Two towers: the formula and its limits, what is no negative, the vocabulary, the temperature, resuming."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.sources import load
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.mixgen import MixGen, mixgen
from weathered.mixing.mixup import MixUp
from weathered.mixing.one_of import OneOf
from weathered.nn.build import build_model
from weathered.nn.two_towers import TextTower
from weathered.procedures.contrastive import Contrastive, contrastive_loss

SETTINGS = Settings(epochs=2, batch_size=12, optimizer="adamw", lr=2e-3)


@pytest.fixture(scope="module")
def pairs():
    return load("captions:48")


def make(pairs, procedure=None, transforms=(), settings=SETTINGS, **changes) -> Run:
    procedure = procedure or Contrastive(dim=8, hidden=16)
    model = build_model("cnn_small:width=8", pairs)
    return Run(model, pairs, procedure=procedure, transforms=transforms, settings=settings, **changes)


def embeddings(size, seed):
    return F.normalize(torch.randn(size, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_the_loss_is_that_of_finding_both_partners():
    images, captions = embeddings(6, 1), embeddings(6, 2)
    for row, loss in enumerate(contrastive_loss(images, captions, 3.0)):
        among_captions = torch.stack([3 * images[row] @ captions[j] for j in range(6)])
        among_images = torch.stack([3 * images[j] @ captions[row] for j in range(6)])
        expected = -(among_captions.log_softmax(0)[row] + among_images.log_softmax(0)[row]) / 2
        assert_close(loss, expected)


def test_limits_of_the_loss():
    one = embeddings(1, 0)
    assert_close(contrastive_loss(one, -one, 5.0), torch.zeros(1).double())
    same = embeddings(1, 0).expand(7, -1)
    assert_close(contrastive_loss(same, same, 5.0), torch.full((7,), math.log(7)).double())
    apart = torch.eye(4)
    assert_close(contrastive_loss(apart, apart, 2.0), torch.full((4,), math.log(1 + 3 * math.exp(-2))))


def test_unmixed_pairs_keep_their_own_similarity():
    """Identity features: the diagonal of rows that MixGen leaves alone does not change."""
    captions = torch.eye(8)
    images, _, info = mixgen(torch.eye(8), [str(i) for i in range(8)], 2)
    diagonal = (images @ captions.T).diagonal()
    assert_close(diagonal, info.lam)
    assert_close(diagonal[2:], torch.ones(6))


def test_a_masked_pair_is_left_out_both_ways_and_its_own_row_is_not():
    images, captions = embeddings(5, 1), embeddings(5, 2)
    partner = torch.tensor([2, 1, 2, 3, 4])
    masked, plain = (contrastive_loss(images, captions, 4.0, p) for p in (partner, None))
    assert_close(masked[[1, 3, 4]], plain[[1, 3, 4]])
    logits = 4 * images @ captions.T
    rest = [0, 1, 3, 4]
    expected = -(logits[0, rest].log_softmax(0)[0] + logits[rest, 0].log_softmax(0)[0]) / 2
    assert_close(masked[0], expected)
    assert_close(contrastive_loss(images, captions, 4.0, torch.arange(5)), plain)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match=r"pairs, got \(3, 2\) and \(4, 2\)"):
        contrastive_loss(torch.ones(3, 2), torch.ones(4, 2), 1.0)


def test_the_text_tower_is_a_mean_over_words_in_any_order():
    tower = TextTower(torch.tensor([False, False, True, True, True, False]), 4, 3)
    tokens = torch.tensor([[2, 3, 0, 0], [3, 2, 0, 0], [2, 3, 2, 3]])
    assert_close(tower(tokens)[0].expand(3, -1), tower(tokens))
    assert not torch.allclose(tower(tokens[:1]), tower(torch.tensor([[2, 4, 0, 0]])))
    # a word that no training caption holds is the unknown one, which adds to the length alone
    assert_close(tower(torch.tensor([[2, 5]])), tower(torch.tensor([[2, 1]])))
    halved = tower.layers(tower.embedding(torch.tensor([2])) / 2)
    assert_close(tower(torch.tensor([[2, 5]])), halved)
    assert bool(torch.isfinite(tower(torch.zeros(1, 3, dtype=torch.int64))).all())


def test_the_vocabulary_is_that_of_the_training_captions(pairs):
    red = pairs.words.index("red") + 2
    without = ~(pairs.extra["caption"] == red).any(1)
    known = make(pairs.select(without)).modules["text"].known
    assert not bool(known[red])
    assert int(known.sum()) == len(pairs.words) - 1


def scale_of(run):
    return float(run.modules["temperature"].log_scale.detach().exp())


def test_the_temperature_stays_in_its_range(pairs):
    run = make(pairs, settings=Settings(epochs=1, lr=1e-4, batch_size=12))
    with torch.no_grad():
        run.modules["temperature"].log_scale.fill_(math.log(300))
    assert float(run.modules["temperature"]().detach()) == pytest.approx(100)
    fit(run, max_steps=1)
    assert scale_of(run) == pytest.approx(100)
    moved = make(pairs)
    start = scale_of(moved)
    assert start == pytest.approx(1 / 0.07)
    fit(moved, max_steps=2)
    assert scale_of(moved) != start


def test_training_brings_pairs_together(pairs):
    run = make(pairs, settings=Settings(epochs=15, batch_size=24, optimizer="adamw", lr=3e-3))
    x, rows = pairs.inputs.fetch(torch.arange(48)), torch.arange(48)
    before = float(run.procedure.loss(run, run.prepare(x, pairs.labels, rows)).detach())
    fit(run)
    after = float(run.procedure.loss(run, run.prepare(x, pairs.labels, rows)).detach())
    assert after < 0.75 * before


@pytest.mark.parametrize("options", [{}, {"drop_sources": True}, {"mask_sources": True}, {"alpha": 1.0}])
def test_a_resumed_run_is_the_same(pairs, assert_resumes, options):
    assert_resumes(lambda: make(pairs, transforms=[MixGen(**options)]))


def test_masking_sources_changes_training(pairs):
    losses = []
    for options in ({}, {"mask_sources": True}):
        run = make(pairs, transforms=[MixGen(share=0.5, **options)])
        batch = run.prepare(pairs.inputs.fetch(torch.arange(12)), pairs.labels[:12], torch.arange(12))
        losses.append(float(run.procedure.loss(run, batch).detach()))
    assert losses[1] < losses[0]


def test_what_does_not_fit_is_refused(pairs, images):
    with pytest.raises(Incompatible, match="needs 'caption'.*--caption-column"):
        make(images)
    with pytest.raises(Incompatible, match="never calls"):
        make(pairs, loss=CrossEntropy())
    with pytest.raises(Incompatible, match="needs 'caption'.*MixUp runs earlier and mixes images, but not their"):
        make(pairs, transforms=[MixUp()])


def test_pairs_are_joined_once(pairs):
    """Twice would give captions of four sources, and rows that a mask counts would have moved."""
    twice = [MixGen(mask_sources=True), MixGen(drop_sources=True)]
    with pytest.raises(Incompatible, match="MixGen needs 'hard_target' \\(joins whole pairs.* MixGen runs earlier"):
        make(pairs, transforms=twice)
    either = OneOf([MixGen(mask_sources=True), MixGen(drop_sources=True)])
    run = fit(make(pairs, transforms=[either]))
    for step in range(6):
        run.step = step
        run.begin_step()
        batch = run.prepare(pairs.inputs.fetch(torch.arange(12)), pairs.labels[:12], torch.arange(12))
        assert int((batch.extra["caption"] != 0).sum(1).max()) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be in"),
        ({"hidden": 0}, "hidden must be in"),
        ({"temperature": 0.001}, r"temperature must be in \[0.01, 1\], got 0.001"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(**options)
