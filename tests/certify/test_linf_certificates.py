"""Certificates in Linf: closed forms, soundness against points of the box and against attacks, and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from weathered.attacks.apgd import APGDTargeted
from weathered.attacks.pgd import PGD
from weathered.certify import interval_bounds, linf_margin
from weathered.certify.interval_bounds import IntervalBounds, logit_bounds
from weathered.certify.linf_margin import LinfCertificate, LinfMargin, margin_radius
from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.nn.linf_net import LinfNetwork
from weathered.procedures.linf_distance_net import LinfDistanceNet

SETTINGS = Settings(epochs=25, batch_size=50, optimizer="adam", lr=0.03, weight_decay=0.0)
RADII = (0.0, 0.02, 0.05, 0.1, 0.2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(digits) -> LinfNetwork:
    train = digits.select(torch.arange(500))
    model = build_model("linf-net:width=48,depth=3", train)
    procedure = LinfDistanceNet(epsilon=0.2, lambda_end=0.001)
    run = fit(Run(model, train, procedure=procedure, settings=replace(SETTINGS, epochs=25)))
    assert isinstance(run.model, LinfNetwork)
    return run.model


@pytest.fixture(scope="module")
def images(digits) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(500, 700)
    return digits.floats(rows), digits.labels[rows]


def test_the_radius_is_half_the_margin_in_units_of_the_input():
    logits = torch.tensor([[0.5, -1.5, 0.1], [-3.0, -1.0, -9.0], [2.0, 2.0, 1.0]])
    assert_close(margin_radius(logits, 0.25), torch.tensor([0.05, 0.25, 0.0]).double(), rtol=0, atol=1e-8)
    assert_close(margin_radius(logits, 0.25, 0.05), torch.tensor([0.025, 0.225, 0.0]).double(), rtol=0, atol=1e-8)
    for wrong in (logits[0], logits[:, :1]):
        with pytest.raises(ValueError, match=r"logits must be \(B, at least 2\)"):
            margin_radius(wrong, 0.25)
    with pytest.raises(ValueError, match="scale must be > 0"):
        margin_radius(logits, 0.0)


def test_a_radius_must_be_exceeded_and_the_class_be_right():
    found = LinfCertificate(torch.tensor([1, 1, 2]), torch.tensor([0.1, 0.0, 0.3]).double())
    labels = torch.tensor([1, 1, 0])
    assert found.certifies(labels, 0.0).tolist() == [True, False, False]
    assert found.certifies(labels, float(found.radii[0])).tolist() == [False] * 3
    assert found.certifies(labels, 0.0999).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="radius must be >= 0"):
        found.certifies(labels, -0.1)
    with pytest.raises(ValueError, match="labels must be 3 classes"):
        found.certifies(labels[:2], 0.1)


@pytest.mark.parametrize("epsilon", [0.03, 0.1])
def test_certified_images_withstand_attacks_and_withstanding_images_are_right(trained, images, epsilon):
    x, y = images
    by_margin = LinfMargin().certify(trained, x).certifies(y, epsilon)
    bounds = IntervalBounds(epsilon).certify(trained, x)
    certified = by_margin | (bounds.certified & (bounds.labels == y))
    held = torch.ones_like(certified)
    with torch.no_grad():
        for number, attack in enumerate((PGD(epsilon, steps=30, restarts=2), APGDTargeted(epsilon, steps=15))):
            held &= trained.eval()(attack(trained, x, y, generator(number))).argmax(1) == y
        right = trained(x).argmax(1) == y
    assert not bool((certified & ~held).any())
    assert not bool((held & ~right).any())
    shares = [float(share.double().mean()) for share in (certified, held, right)]
    assert 0.2 < shares[0] <= shares[1] <= shares[2]
    assert shares[2] > 0.4


def test_bounds_collapse_at_0_and_hold_for_random_points_of_the_box(trained, images):
    x = images[0][:10]
    collapsed = IntervalBounds(0.0).certify(trained, x)
    with torch.no_grad():
        assert_close(collapsed.lower, trained.eval()(x), rtol=0, atol=1e-6)
        assert_close(collapsed.upper, collapsed.lower, rtol=0, atol=0)
        found, rng = IntervalBounds(0.08).certify(trained, x), generator()
        for _ in range(1000):
            signs = torch.rand(x.shape, generator=rng) * 2 - 1
            sharp = torch.where(torch.rand(1, generator=rng) < 0.5, signs, signs.sign())
            logits = trained((x + 0.08 * sharp).clamp(0, 1))
            assert bool(((logits >= found.lower - 1e-5) & (logits <= found.upper + 1e-5)).all())
    assert float((found.upper - found.lower).max()) <= 2 * 0.08 / trained.scale + 1e-4


def test_the_certified_set_shrinks_with_the_radius_and_holds_what_margins_certify(trained, images):
    x, _ = images
    margin = LinfMargin().certify(trained, x)
    before = torch.ones(len(x), dtype=torch.bool)
    for radius in RADII:
        bounds = IntervalBounds(radius).certify(trained, x)
        assert torch.equal(bounds.labels, margin.labels)
        assert not bool((bounds.certified & ~before).any())
        assert not bool(((margin.radii > radius + 1e-5) & ~bounds.certified).any())
        before = bounds.certified
    assert int(before.sum()) < len(x)


def test_both_certificates_agree_within_two_points(trained, images):
    x, y = images
    for radius in (0.05, 0.1):
        bounds = IntervalBounds(radius).certify(trained, x)
        one = LinfMargin().certify(trained, x).certifies(y, radius).double().mean()
        other = (bounds.certified & (bounds.labels == y)).double().mean()
        assert abs(float(one - other)) <= 0.02


def test_images_are_certified_alike_in_any_chunk(trained, images, monkeypatch):
    x = images[0][:20]
    margin, bounds = LinfMargin().certify(trained, x), IntervalBounds(0.05).certify(trained, x)
    monkeypatch.setattr(linf_margin, "CHUNK", 3)
    monkeypatch.setattr(interval_bounds, "CHUNK", 3)
    assert torch.equal(LinfMargin().certify(trained, x).radii, margin.radii)
    assert torch.equal(IntervalBounds(0.05).certify(trained, x).certified, bounds.certified)


def test_a_network_in_training_is_refused_and_modes_come_back(trained, images):
    x = images[0][:4]
    trained.train()
    LinfMargin().certify(trained, x)
    IntervalBounds(0.1).certify(trained, x)
    assert all(module.training for module in trained.modules())
    trained.exponent = 64.0
    try:
        for certificate in (LinfMargin(), IntervalBounds(0.1)):
            with pytest.raises(Incompatible, match="in training at p = 64, and only p = infinity is certified"):
                certificate.certify(trained, x)
    finally:
        trained.exponent = math.inf
    assert all(module.training for module in trained.modules())


def test_other_networks_and_inputs_out_of_range_are_refused(trained, images, small_digits):
    x = images[0][:4]
    with pytest.raises(Incompatible, match="only a network of Linf distances"):
        LinfMargin().certify(build_model("mlp", small_digits), x)
    for certificate in (LinfMargin(), IntervalBounds(0.1)):
        with pytest.raises(ValueError, match=r"needs inputs in \[0, 1\]"):
            certificate.certify(trained, x * 2)
    for spec, name in (("cnn_small", "BatchNorm2d"), ("mlp:norm=true", "BatchNorm1d"), ("vit", "VisionTransformer")):
        with pytest.raises(Incompatible, match=rf"interval bounds do not pass through {name}"):
            IntervalBounds(0.1).certify(build_model(spec, small_digits), x)
    with pytest.raises(Incompatible, match="do not pass through Sequential; use --model linf-net"):
        IntervalBounds(0.1).certify(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x)
    for wrong in (-0.1, 2.0, math.nan):
        with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\]"):
            IntervalBounds(wrong)


@pytest.mark.parametrize("spec", ["mlp:width=20", "cnn_small:width=8,norm=none"])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.2])
def test_bounds_of_relu_networks_hold_in_the_whole_box(small_digits, spec, epsilon):
    model, x = build_model(spec, small_digits).eval(), small_digits.floats(torch.arange(6))
    found, rng = IntervalBounds(epsilon).certify(model, x), generator(1)
    with torch.no_grad():
        for _ in range(200):
            logits = model((x + epsilon * (2 * torch.rand(x.shape, generator=rng) - 1).sign()).clamp(0, 1))
            assert bool(((logits >= found.lower - 1e-5) & (logits <= found.upper + 1e-5)).all())
            assert bool((logits.argmax(1) == found.labels)[found.certified].all())
    if epsilon == 0:
        assert bool(found.certified.all())
        assert_close(found.upper, found.lower, rtol=0, atol=0)
    else:
        assert bool((found.upper > found.lower).all())


@given(st.integers(0, 10**6), st.floats(0.001, 0.3))
def test_bounds_of_one_affine_layer_are_reached(seed, epsilon):
    layer, rng = nn.Linear(9, 4), generator(seed)
    x = torch.rand(3, 9, generator=rng)
    with torch.no_grad():
        lower, upper = interval_bounds._through([layer], x - epsilon, x + epsilon)
        for row in range(3):
            corners = x[row] + epsilon * layer.weight.sign()
            assert_close(layer(corners).diagonal(), upper[row], rtol=1e-4, atol=1e-5)
            assert_close(layer(2 * x[row] - corners).diagonal(), lower[row], rtol=1e-4, atol=1e-5)


def test_bounds_of_a_box_that_is_no_ball(small_digits):
    model = build_model("mlp:width=20", small_digits).eval()
    x = small_digits.floats(torch.arange(3))
    with torch.no_grad():
        lower, upper = logit_bounds(model, torch.zeros_like(x), x)
        for share in (0.0, 0.3, 1.0):
            logits = model(share * x)
            assert bool(((logits >= lower - 1e-5) & (logits <= upper + 1e-5)).all())
