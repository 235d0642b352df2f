"""CnC: how outliers are made, from what, and the loss of a network with one more class."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import SpecError
from weathered.core.rng import generator
from weathered.data.corruptions import corrupt, corrupt_each
from weathered.mixing.cutmix import cutmix, draw_box
from weathered.procedures.cnc_ood import (
    KINDS,
    CnC,
    draw_different_partner,
    make_outliers,
    outlier_class_losses,
)

GREY = tuple(kind for kind in KINDS if kind != "saturate")


def photographs(size=12, channels=3, side=16, seed=0):
    """Images whose means, contrasts and colours differ, away from the ends of the range."""
    rng = generator(seed, "photographs")
    means = 0.3 + 0.4 * torch.rand(size, channels, 1, 1, generator=rng)
    return means + 0.2 * (torch.rand(size, channels, side, side, generator=rng) - 0.5)


LABELS = torch.arange(12) % 4


def labelled(classes: int, size: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (size,), generator=generator(seed, "labels"))


# how outliers are made


def test_an_outlier_is_a_corrupted_cutmix():
    """The draws by hand, in their order: share, partners, box, kinds, severities, and those of the corruptions."""
    x, rng = photographs(), generator(3, "outliers")
    lam = 0.2 + 0.5 * float(torch.rand((), generator=rng, dtype=torch.float64))
    partner = torch.randperm(12, generator=rng)
    pasted = cutmix(x, draw_box((16, 16), lam, rng), partner)
    kind, severity = (torch.randint(n, (12,), generator=rng) for n in (15, 4))
    expected = corrupt_each(pasted, KINDS, kind, severity + 2, rng)
    made = make_outliers(x, LABELS, generator(3, "outliers"), lam_low=0.2, lam_high=0.7, min_severity=2)
    assert torch.equal(made, expected)
    assert not torch.equal(pasted, x)


def test_the_corruption_comes_after_the_paste():
    """Contrast shrinks the pasted image towards its own mean; the other order would shrink its two parts apart."""
    x, rng = photographs(), generator(0, "order")
    only = {"kinds": ("contrast",), "min_severity": 5}
    pasted = make_outliers(x, LABELS, generator(0, "order"), mode="cutmix")
    made = make_outliers(x, LABELS, generator(0, "order"), **only)
    assert_close(made, corrupt(pasted, "contrast", 5, rng))
    other_order = make_outliers(corrupt(x, "contrast", 5, rng), LABELS, generator(0, "order"), mode="cutmix")
    assert (made - other_order).abs().max() > 0.05


@given(st.integers(0, 500))
def test_severity_0_is_the_cutmix_mode_and_lam_1_the_corruption_mode(seed):
    x = photographs(5)
    labels = LABELS[:5]
    pasted = make_outliers(x, labels, generator(seed, "m"), mode="cutmix")
    assert torch.equal(make_outliers(x, labels, generator(seed, "m"), min_severity=0, max_severity=0), pasted)
    whole = {"lam_low": 1.0, "lam_high": 1.0}
    assert torch.equal(make_outliers(x, labels, generator(seed, "m"), mode="cutmix", **whole), x)
    still = {"kinds": ("brightness",), "min_severity": 3, "max_severity": 3}
    alone = make_outliers(x, labels, generator(seed, "m"), mode="corruption", **still)
    assert torch.equal(make_outliers(x, labels, generator(seed, "m"), **still, **whole), alone)
    assert_close(alone, corrupt(x, "brightness", 3, generator(seed, "m")))


@given(
    st.sampled_from(["cnc", "cutmix", "corruption"]), st.sampled_from([1, 3]), st.integers(0, 1000), st.integers(0, 9)
)
def test_outliers_are_images_and_the_source_stays(mode, channels, seed, size):
    x = torch.rand(size, channels, 8, 8, generator=generator(seed, "x"))
    before = x.clone()
    made = make_outliers(x, labelled(3, size, seed), generator(seed, "make"), mode=mode)
    assert made.shape == x.shape
    assert made.dtype == x.dtype
    assert bool(torch.isfinite(made).all())
    assert bool(((made >= 0) & (made <= 1)).all())
    assert torch.equal(x, before)
    assert made.data_ptr() != x.data_ptr() or not size
    assert torch.equal(made, make_outliers(x, labelled(3, size, seed), generator(seed, "make"), mode=mode))


def test_other_seeds_make_other_outliers_and_kinds_differ_within_a_batch():
    x = photographs(1).expand(60, -1, -1, -1)
    labels = torch.zeros(60, dtype=torch.long)
    made = make_outliers(x, labels, generator(0, "a"), mode="corruption")
    assert not torch.equal(made, make_outliers(x, labels, generator(1, "a"), mode="corruption"))
    # each of the five kinds that draw nothing gives at most five different images; noise gives one for each draw
    assert len({tuple(image) for image in made.flatten(1).tolist()}) > 35
    flat = make_outliers(
        x,
        labels,
        generator(0, "a"),
        mode="corruption",
        kinds=("contrast", "brightness"),
        min_severity=3,
        max_severity=3,
    )
    assert len({round(float(v), 4) for v in flat.mean((1, 2, 3))}) == 2


def test_kinds_and_severities_are_drawn_evenly():
    """A flat image under contrast stays, under brightness it rises by an amount that names the severity."""
    x = torch.full((6000, 1, 1, 1), 0.4)
    made = make_outliers(
        x, torch.zeros(6000).long(), generator(0, "even"), mode="corruption", kinds=("contrast", "brightness")
    )
    rises = (made - x).flatten()
    shares = [float(((rises - level).abs() < 1e-4).float().mean()) for level in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)]
    assert shares[0] == pytest.approx(0.5, abs=0.03)
    assert shares[1:] == pytest.approx([0.1] * 5, abs=0.015)


@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 1000))
def test_a_different_partner_is_of_another_class(classes, size, seed):
    labels = labelled(classes, size, seed)
    rng = generator(seed, "partner")
    if len(labels.unique()) < 2:
        with pytest.raises(ValueError, match="different_class needs samples of at least 2 classes in a batch, got 1"):
            draw_different_partner(labels, rng)
        return
    assert not bool((labels[draw_different_partner(labels, rng)] == labels).any())


def test_a_different_partner_is_any_of_the_others_alike():
    labels = torch.tensor([7, 2, 2, 7, 2, 0])
    rng = generator(0, "partners")
    drawn = torch.stack([draw_different_partner(labels, rng) for _ in range(4000)])
    for i, label in enumerate(labels.tolist()):
        others = (labels != label).nonzero()[:, 0]
        shares = drawn[:, i].bincount(minlength=6)[others] / 4000
        assert_close(shares, torch.full((len(others),), 1 / len(others)), atol=0.035, rtol=0)


def test_no_patch_comes_from_the_same_class_where_it_must_differ():
    """Image i is flat with the value of its class, so that a pasted patch of its own class could not be seen."""
    labels = torch.arange(40) % 4
    x = (0.2 * (1 + labels))[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    whole = {"mode": "cutmix", "lam_low": 0.3, "lam_high": 0.3}
    made = make_outliers(x, labels, generator(0, "p"), different_class=True, **whole)
    assert bool((made != x).flatten(1).any(1).all())
    plain = make_outliers(x, labels, generator(0, "p"), **whole)
    assert not bool((plain != x).flatten(1).any(1).all())


def test_the_range_of_lam_bounds_the_pasted_area():
    x = torch.arange(2.0)[:, None, None, None].expand(-1, 1, 40, 40).contiguous()
    areas = []
    for seed in range(200):
        made = make_outliers(
            x, torch.arange(2), generator(seed, "a"), mode="cutmix", lam_low=0.4, lam_high=0.8, different_class=True
        )
        areas.append(float(made[0].mean()))
    # rounding and the border only shrink a box
    assert max(areas) <= 0.6
    assert 0.15 < sum(areas) / 200 < 0.4
    assert min(areas) > 0.2 / 4 - 0.02


BAD = [
    ({"mode": "mixup"}, ValueError, "mode must be 'cnc', 'cutmix' or 'corruption', got 'mixup'"),
    ({"lam_low": -0.1}, ValueError, "expected 0 <= lam_low <= lam_high <= 1, got -0.1 and 1.0"),
    ({"lam_low": 0.8, "lam_high": 0.2}, ValueError, "got 0.8 and 0.2"),
    ({"lam_high": math.nan}, ValueError, "lam_low <= lam_high"),
    ({"min_severity": -1}, ValueError, r"min_severity must be in \[0, 5\], got -1"),
    ({"min_severity": 4, "max_severity": 3}, ValueError, r"max_severity must be in \[4, 5\], got 3"),
    ({"max_severity": 6}, ValueError, r"max_severity must be in \[1, 5\], got 6"),
    ({"kinds": ()}, ValueError, "kinds must name at least one"),
    ({"kinds": ("frog",)}, SpecError, "no corruption 'frog'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CnC(**arguments)
    with pytest.raises(error, match=message):
        make_outliers(photographs(2), torch.arange(2), generator(0, "b"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "cutmix", "max_severity": 3}, "corrupts nothing"),
        ({"mode": "cutmix", "kinds": ("fog",)}, "corrupts nothing"),
        ({"mode": "corruption", "different_class": True}, "pastes nothing"),
        ({"mode": "corruption", "lam_low": 0.2}, "pastes nothing"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CnC(**arguments)


def test_images_that_do_not_fit_are_refused():
    x, rng = photographs(4), generator(0, "i")
    for wrong in (x * 255, x - 0.5, x * math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            make_outliers(wrong, LABELS[:4], rng, mode="cutmix")
    for wrong in ((x * 255).byte(), x[:, :2], x[0]):
        with pytest.raises(ValueError, match=r"images must be floating \(B, 1 or 3, H, W\)"):
            make_outliers(wrong, LABELS[:4], rng)
    with pytest.raises(ValueError, match="at least 2 classes"):
        make_outliers(x, torch.zeros(4).long(), rng, different_class=True)


# the loss


@pytest.mark.parametrize("classes", [2, 6, 100])
def test_equal_logits_have_the_loss_2_log_of_all_outputs(classes):
    own, strange = outlier_class_losses(
        torch.zeros(8, classes + 1), torch.arange(8) % classes, torch.zeros(5, classes + 1)
    )
    assert float(own + strange) == pytest.approx(2 * math.log(classes + 1))


def logits(rows, outputs=5, seed=0):
    return (3 * torch.randn(rows, outputs, generator=generator(seed, "logits"), dtype=torch.float64)).requires_grad_()


def test_both_terms_weigh_the_same_whatever_their_sizes():
    """Mean gradients: softmax minus the one-hot label, over the number of rows of each kind."""
    z, u, labels = logits(6), logits(9, seed=1), torch.arange(6) % 4
    own, strange = outlier_class_losses(z, labels, u)
    (own + strange).backward()
    assert z.grad is not None
    assert u.grad is not None
    assert_close(z.grad, (z.detach().softmax(1) - F.one_hot(labels, 5)) / 6)
    assert_close(u.grad, (u.detach().softmax(1) - F.one_hot(torch.full((9,), 4), 5)) / 9)


def test_the_first_term_alone_is_cross_entropy_with_a_class_that_no_image_has():
    z, labels = logits(6), torch.arange(6) % 4
    own, _ = outlier_class_losses(z, labels, logits(3))
    assert_close(own, F.cross_entropy(z, labels))
    # outliers that are known for sure add nothing, nor any gradient
    sure = torch.full((3, 5), -1e4, dtype=torch.float64)
    sure[:, 4] = 0
    sure.requires_grad_()
    total = sum(outlier_class_losses(z, labels, sure))
    assert_close(total, own)
    assert not torch.autograd.grad(total, sure)[0].any()


def test_networks_without_an_output_for_outliers_are_found_out():
    labels = torch.arange(8) % 4
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\] for 4 outputs, the last of which .* got 3 at"):
        outlier_class_losses(torch.zeros(8, 4), labels, torch.zeros(8, 4))
    with pytest.raises(ValueError, match=r"got -1 at position 0"):
        outlier_class_losses(torch.zeros(8, 5), labels - 1, torch.zeros(8, 5))
    for shapes in (((8, 5), (8, 4)), ((8,), (8, 5)), ((7, 5), (8, 5))):
        with pytest.raises(ValueError, match="expected logits"):
            outlier_class_losses(torch.zeros(shapes[0]), labels, torch.zeros(shapes[1]))


def test_all_kinds_but_one_change_grey_images():
    x = photographs(4, channels=1)
    for kind, severity in itertools.product(KINDS, (1, 5)):
        still = {"kinds": (kind,), "min_severity": severity, "max_severity": severity, "mode": "corruption"}
        made = make_outliers(x, LABELS[:4], generator(0, kind), **still)
        assert torch.equal(made, x) == (kind not in GREY)
