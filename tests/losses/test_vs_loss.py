"""Vector scaling: its limits, its gradient, groups, and the support vector machine that it leads a linear model to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.gce import GeneralizedCrossEntropy
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.losses.vs_loss import GroupVSLoss, VSLoss, scaling_factors
from weathered.nn.build import build_model
from weathered.weighting.drw import DRW

COUNTS = [500, 100, 30, 5]
PI = torch.tensor(COUNTS).double() / sum(COUNTS)
LABELS = torch.arange(12) % 4


def drawn(rows: int = 12, classes: int = 4) -> torch.Tensor:
    return torch.randn(rows, classes, generator=generator(0, "logits"), dtype=torch.float64)


def per_sample(z: torch.Tensor, labels: torch.Tensor = LABELS) -> torch.Tensor:
    return F.cross_entropy(z, labels, reduction="none")


def test_limits():
    z = drawn()
    assert_close(VSLoss(COUNTS, 0.0, 0.0)(z, LABELS), per_sample(z), atol=1e-7, rtol=0)
    assert_close(VSLoss(COUNTS, 0.3, 0.0)(z, LABELS), per_sample(z * scaling_factors(COUNTS, 0.3)), atol=1e-7, rtol=0)
    assert_close(VSLoss(COUNTS, 0.0, 1.0)(z, LABELS), LogitAdjustment(COUNTS)(z, LABELS), atol=1e-7, rtol=0)
    assert_close(
        VSLoss(COUNTS, 0.0, 1.0)(z, LABELS), per_sample(z + torch.tensor(COUNTS).double().log()), atol=1e-7, rtol=0
    )


@given(st.floats(0, 3), st.floats(0, 3))
def test_equal_counts_are_cross_entropy_whatever_the_strengths(gamma, tau):
    assert_close(VSLoss([9] * 4, gamma, tau)(drawn(), LABELS), per_sample(drawn()), atol=1e-10, rtol=0)


def test_factors_are_one_for_the_most_frequent_and_fall_with_the_count():
    assert_close(scaling_factors(COUNTS, 0.5), (torch.tensor(COUNTS) / 500).double().sqrt(), rtol=1e-7, atol=0)
    assert float(scaling_factors(COUNTS, 7.0).max()) == 1


@given(st.integers(1, 1000))
def test_only_ratios_of_counts_matter(factor):
    scaled = VSLoss([factor * n for n in COUNTS])
    assert_close(scaled(drawn(), LABELS), VSLoss(COUNTS)(drawn(), LABELS), atol=1e-12, rtol=0)
    groups = GroupVSLoss([factor * n for n in GROUP_COUNTS])
    expected = GroupVSLoss(GROUP_COUNTS)(drawn(), LABELS, GROUPS)
    assert_close(groups(drawn(), LABELS, GROUPS), expected, atol=1e-12, rtol=0)


@given(st.floats(0, 2), st.floats(0, 3), st.floats(-20, 20))
def test_one_constant_on_all_offsets_changes_nothing(gamma, tau, constant):
    plain, moved = VSLoss(COUNTS, gamma, tau), VSLoss(COUNTS, gamma, tau)
    moved.offsets = moved.offsets + constant
    assert_close(moved(drawn(), LABELS), plain(drawn(), LABELS), atol=1e-10, rtol=0)


def test_gradient_is_the_factor_times_the_residual():
    z = drawn().requires_grad_()
    loss = VSLoss(COUNTS, 0.3, 1.2)
    (gradient,) = torch.autograd.grad(loss(z, LABELS).sum(), z)
    residual = (loss.factors * z + loss.offsets).softmax(1) - F.one_hot(LABELS, 4)
    assert_close(gradient, loss.factors * residual, rtol=1e-9, atol=1e-12)


def test_a_model_that_knows_nothing_predicts_the_prior_and_is_at_rest_on_it():
    z = torch.zeros(sum(COUNTS), 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    loss = VSLoss(COUNTS, 0.3, 1.0)
    assert_close(loss.transform_logits(z[:1]).softmax(1)[0], PI)
    (gradient,) = torch.autograd.grad(loss(z, labels).mean(), z)
    assert_close(gradient.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_class_weights_are_those_of_torchs_weighted_mean():
    z, part, late = drawn(), VSLoss(COUNTS), DRW(COUNTS, start=0.0)
    losses = part(z, LABELS)
    expected = F.cross_entropy(part.transform_logits(z), LABELS, weight=late.class_weights)
    assert_close((late(losses, LABELS, 0.5) * losses).mean(), expected)


def test_a_base_is_given_the_scaled_logits_and_predictions_the_raw_ones():
    base = GeneralizedCrossEntropy(0.7)
    part = VSLoss(COUNTS, base=base)
    assert_close(part(drawn(), LABELS), base(part.transform_logits(drawn()), LABELS))
    assert torch.equal(part.test_logits(drawn()), drawn())


GROUPS, GROUP_COUNTS = torch.arange(12) % 3, [100, 40, 4]


def test_groups_without_offsets_are_cross_entropy_of_scaled_logits():
    part = GroupVSLoss(GROUP_COUNTS, 0.3, 0.0)
    for classes in (2, 4):
        z, labels = drawn(classes=classes), torch.arange(12) % classes
        assert_close(part(z, labels, GROUPS), per_sample(z * part.factors[GROUPS, None], labels))
    assert_close(GroupVSLoss([8] * 3)(drawn(), LABELS, GROUPS), per_sample(drawn() - _lowered(3)), atol=1e-12, rtol=0)
    assert_close(GroupVSLoss(GROUP_COUNTS, 0.0, 0.0)(drawn(), LABELS, GROUPS), per_sample(drawn()))


def _lowered(groups: int) -> torch.Tensor:
    """Equal groups still lower every label by the same log."""
    return F.one_hot(LABELS, 4) * torch.tensor(groups).double().log()


def test_offsets_of_groups_act_because_they_meet_the_label_alone():
    z = drawn(classes=2)
    labels = torch.arange(12) % 2
    with_offset, without = GroupVSLoss(GROUP_COUNTS, 0.3, 1.0), GroupVSLoss(GROUP_COUNTS, 0.3, 0.0)
    everywhere = z * with_offset.factors[GROUPS, None] - with_offset.offsets[GROUPS, None]
    assert_close(per_sample(everywhere, labels), without(z, labels, GROUPS))
    assert ((with_offset(z, labels, GROUPS) - without(z, labels, GROUPS)) > 1e-3).all()


def test_gradient_of_groups_is_the_factor_times_the_residual():
    z = drawn().requires_grad_()
    part = GroupVSLoss(GROUP_COUNTS, 0.3, 1.2)
    (gradient,) = torch.autograd.grad(part(z, LABELS, GROUPS).sum(), z)
    factor, onehot = part.factors[GROUPS, None], F.one_hot(LABELS, 4)
    residual = (factor * z - part.offsets[GROUPS, None] * onehot).softmax(1) - onehot
    assert_close(gradient, factor * residual, rtol=1e-9, atol=1e-12)


def test_two_classes_in_their_own_groups_are_the_binary_form():
    f, labels = drawn(classes=1)[:, 0], torch.arange(12) % 2
    part = GroupVSLoss([60, 6], 0.4, 1.0)
    sign, factor, offset = 2.0 * labels - 1, part.factors[labels], part.offsets[labels]
    expected = torch.log1p(offset.exp() * (-factor * sign * f).exp())
    assert_close(part(torch.stack([-f / 2, f / 2], 1), labels, labels), expected)


def separable() -> tuple[torch.Tensor, torch.Tensor]:
    """Six points of class 1 on the right, sixty of class 0 on the left, told apart by a line."""
    rng = generator(0, "separable")
    points = torch.rand(66, 2, generator=rng, dtype=torch.float64)
    points[:6, 0] += 0.7
    points[6:, 0] -= 1.0
    return points, (torch.arange(66) < 6).long()


def margin_ratio(factor: float, offset: float, mu: float, start: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The smallest margin of class 1 over that of class 0 on the ridge path, and where the minimum lies."""
    points, labels = separable()
    part = GroupVSLoss([60, 6])
    part.factors = torch.tensor([1.0, factor], dtype=torch.float64)
    part.offsets = torch.tensor([0.0, offset], dtype=torch.float64)

    inputs = torch.cat([points, torch.ones(66, 1).double()], 1)
    ridge = mu * torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))

    def losses(f: torch.Tensor) -> torch.Tensor:
        return part(torch.stack([-f / 2, f / 2], 1), labels, labels)

    def objective(v: torch.Tensor) -> float:
        return float(losses(inputs @ v).mean() + v @ ridge @ v / 2)

    v = start.clone()
    for _ in range(300):
        f = (inputs @ v).requires_grad_()
        (slope,) = torch.autograd.grad(losses(f).sum(), f, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), f)
        gradient = inputs.T @ slope.detach() / 66 + ridge @ v
        if float(gradient.norm()) < 1e-13:
            break
        hessian = (inputs.T * curvature) @ inputs / 66 + ridge
        step, size, here = torch.linalg.solve(hessian + 1e-14 * torch.eye(3).double(), gradient), 1.0, objective(v)
        while objective(v - size * step) > here and size > 1e-8:
            size /= 2
        v = v - size * step
    f = inputs @ v
    return float(f[labels == 1].min() / -f[labels == 0].max()), v


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.25])
def test_a_linear_model_converges_to_the_cost_sensitive_machine_whatever_the_offset(factor):
    limit, found = 1 / factor, {}
    for offset in (0.0, 2.0):
        v = torch.zeros(3, dtype=torch.float64)
        for mu in (1e-2, 1e-4, 1e-6, 1e-8):
            found[offset, mu], v = margin_ratio(factor, offset, mu, v)
        errors = [abs(found[offset, mu] - limit) for mu in (1e-4, 1e-6, 1e-8)]
        # with an offset the path comes from above, and may have crossed the limit before
        assert errors[1] > errors[2]
        assert errors[0] > errors[1] or offset
        assert errors[2] < 0.2 * limit
    assert abs(found[0.0, 1e-4] - found[2.0, 1e-4]) > 0.1
    assert found[2.0, 1e-2] > found[0.0, 1e-2]


def test_early_on_a_smaller_factor_harms_the_rare_class():
    start = torch.zeros(3, dtype=torch.float64)
    ratios = [margin_ratio(factor, 0.0, 1e-2, start)[0] for factor in (1.0, 0.5, 0.25)]
    assert ratios[0] > ratios[1] > ratios[2]


def test_bad_inputs(small_digits):
    with pytest.raises(ValueError, match="class 1 has 0"):
        VSLoss([5, 0, 3])
    with pytest.raises(ValueError, match="every group needs at least one training sample, group 2 has 0"):
        GroupVSLoss([5, 3, 0])
    for gamma, tau, name in ((-0.1, 1.0, "gamma"), (0.1, -1.0, "tau"), (float("nan"), 1.0, "gamma")):
        for build in (lambda g, t: VSLoss(COUNTS, g, t), lambda g, t: GroupVSLoss(COUNTS, g, t)):
            with pytest.raises(ValueError, match=f"{name} must be >= 0 and finite"):
                build(gamma, tau)
    with pytest.raises(ValueError, match="one for each label"):
        GroupVSLoss(GROUP_COUNTS)(drawn(), LABELS, GROUPS[:, None])
    with pytest.raises(ValueError, match="labels must be in"):
        VSLoss(COUNTS)(drawn(), LABELS + 10)
    with pytest.raises(ValueError, match=r"groups must be in \[0, 2\], got 3"):
        GroupVSLoss(GROUP_COUNTS)(drawn(), LABELS, GROUPS + 1)
    with pytest.raises(Incompatible, match="group.*--group-column"):
        Run(lambda seed: build_model("mlp", small_digits, seed=seed), small_digits, loss=GroupVSLoss(GROUP_COUNTS))


def test_a_run_gives_each_sample_its_group(small_digits):
    seen = []

    class Watched(GroupVSLoss):
        def __call__(self, logits, labels, group):
            seen.append(group)
            return super().__call__(logits, labels, group)

    groups = torch.arange(len(small_digits)) % 3
    data = small_digits.replace(extra={"group": groups})
    run = Run(build_model("mlp:width=8", data), data, loss=Watched(GROUP_COUNTS), settings=Settings(epochs=1))
    fit(run)
    assert torch.equal(torch.cat(seen), groups[run.order(0)[: run.total_steps * run.batch_size]])


def test_half_precision_is_computed_in_single():
    z = drawn().half()
    assert_close(VSLoss(COUNTS)(z, LABELS), VSLoss(COUNTS)(z.float(), LABELS), atol=1e-6, rtol=0)
    groups = GroupVSLoss(GROUP_COUNTS)
    assert_close(groups(z, LABELS, GROUPS), groups(z.float(), LABELS, GROUPS), atol=1e-6, rtol=0)
    # a margin of 120000 is beyond the largest number of half precision
    wide = torch.tensor([[60_000.0, -60_000, 0, 0]]).half()
    for losses in (VSLoss(COUNTS)(wide, LABELS[1:2]), groups(wide, LABELS[1:2], GROUPS[:1])):
        assert losses.dtype == torch.float32
        assert 66_000 < float(losses) < 121_000
