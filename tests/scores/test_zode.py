"""ZODE: every line of what must hold, from closed forms, simulated nulls and a reference for the step-up rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores.zode import ZODE, conformal_p_values, simes


def normal(name, *size, seed=0):
    return torch.randn(*size, generator=generator(seed, name), dtype=torch.float64)


def case(seed=0, models=5, calibration=400, size=300):
    """Correlated models whose test inputs drift from in- to out-of-distribution."""
    drift = torch.linspace(0, 4, size, dtype=torch.float64)[:, None]
    shared = normal("shared", calibration, 1, seed=seed), normal("shared test", size, 1, seed=seed)
    scores = normal("test", size, models, seed=seed) + shared[1] + drift
    return normal("calibration", calibration, models, seed=seed) + shared[0], scores


def step_up(p, alpha):
    """The rule as the paper words it, one input at a time: (flagged, selected)."""
    flagged, selected = [], []
    for row in p.numpy():
        order, m = np.argsort(row, kind="stable"), len(row)
        rungs = [j for j in range(1, m + 1) if row[order[j - 1]] <= j * alpha / m + 1e-12]
        chosen = np.zeros(m, dtype=bool)
        chosen[order[: max(rungs, default=0)]] = True
        flagged.append(bool(rungs))
        selected.append(chosen)
    return torch.tensor(flagged), torch.tensor(np.array(selected))


P_VALUES = st.integers(1, 8).flatmap(
    lambda m: st.lists(st.lists(st.floats(0, 1), min_size=m, max_size=m), min_size=1, max_size=9)
)


@given(P_VALUES)
def test_simes_is_the_smallest_adjusted_p_value_of_benjamini_and_hochberg(rows):
    p = torch.tensor(rows, dtype=torch.float64)
    expected = false_discovery_control(p.numpy(), axis=1, method="bh").min(1)
    assert_close(simes(p), torch.from_numpy(expected), atol=1e-12, rtol=1e-12)


@given(st.floats(0, 1), st.integers(1, 40))
def test_equal_p_values_give_that_value_exactly(p, models):
    assert float(simes(torch.full((1, models), p, dtype=torch.float64))) == p


@given(P_VALUES, st.data())
def test_simes_is_monotone_in_every_p_value(rows, data):
    p = torch.tensor(rows, dtype=torch.float64)
    i, j = data.draw(st.integers(0, p.shape[0] - 1)), data.draw(st.integers(0, p.shape[1] - 1))
    raised = p.clone()
    raised[i, j] = data.draw(st.floats(float(p[i, j]), 1))
    assert bool((simes(raised) >= simes(p)).all())


@pytest.mark.parametrize("conformal", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_rule_is_the_paper_s_and_q_at_most_alpha(conformal, alpha):
    calibration, scores = case()
    zode = ZODE(alpha, conformal).fit(calibration)
    flagged, selected = step_up(zode.p_values(scores), alpha)
    assert 0 < int(flagged.sum()) < len(flagged)
    assert torch.equal(zode.predict(scores), flagged)
    assert torch.equal(zode.selected(scores), selected)
    assert torch.equal(zode.p_value(scores) <= alpha, flagged)
    assert_close(zode.p_value(scores), simes(zode.p_values(scores)), atol=1e-12, rtol=1e-12)


def test_p_values_have_the_paper_s_and_the_conformal_form():
    calibration = torch.arange(1.0, 20.0)[torch.randperm(19, generator=generator(0, "order"))][:, None]
    scores = torch.tensor([[0.0], [10.0], [10.5], [19.0], [20.0]])
    at_least = torch.tensor([[19.0], [10.0], [9.0], [1.0], [0.0]], dtype=torch.float64)
    assert_close(conformal_p_values(calibration, scores), (at_least + 1) / 20)
    assert_close(conformal_p_values(calibration, scores, conformal=False), at_least / 19)
    zode = ZODE(0.05).fit(calibration)
    assert_close(zode.p_values(scores), (at_least + 1) / 20)


def test_a_rung_reached_exactly_counts():
    calibration = torch.arange(139.0)[:, None].repeat(1, 7)  # 7 / (139 + 1) is alpha
    scores = torch.zeros(2, 7)
    scores[0, 3] = 1000
    zode = ZODE(0.05).fit(calibration)
    assert zode.predict(scores).tolist() == [True, False]
    assert zode.selected(scores).nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_one_model_is_the_single_detector(alpha):
    calibration, scores = case(models=1, calibration=199)
    zode = ZODE(alpha).fit(calibration)
    rank = round(alpha * 200)  # flagged: larger than all but rank - 1 calibration scores
    threshold = calibration[:, 0].sort(descending=True).values[rank - 1]
    assert torch.equal(zode.predict(scores), scores[:, 0] > threshold)
    assert torch.equal(zode.selected(scores)[:, 0], zode.predict(scores))


@given(st.integers(1, 9), st.integers(0, 50))
@settings(max_examples=20)
def test_copies_of_a_model_change_nothing(copies, seed):
    calibration, scores = case(seed, models=1)
    single, many = ZODE().fit(calibration), ZODE().fit(calibration.repeat(1, copies))
    assert torch.equal(many.p_value(scores.repeat(1, copies)), single.p_value(scores))
    assert torch.equal(many.predict(scores.repeat(1, copies)), single.predict(scores))


@pytest.mark.parametrize(("models", "naive"), [(5, 0.226), (20, 0.642)])
def test_the_global_null_is_kept_exactly_for_independent_models(models, naive):
    p = torch.rand(200_000, models, generator=generator(0, "null"), dtype=torch.float64)
    assert float((simes(p) <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.002)
    assert float((p.amin(1) <= 0.05).double().mean()) == pytest.approx(naive, abs=0.004)


@pytest.mark.parametrize(("models", "expected"), [(5, 0.038), (20, 0.029)])
def test_positively_correlated_models_lose_at_most_alpha(models, expected):
    z = 0.7**0.5 * normal("common", 200_000, 1) + 0.3**0.5 * normal("own", 200_000, models)
    share = float((simes(torch.special.ndtr(z)) <= 0.05).double().mean())
    assert share == pytest.approx(expected, abs=0.002)
    assert share < 0.05


def worst_case(models, alpha, size):
    """P-values, each uniform, on which the step-up rule flags alpha (1 + 1/2 + ... + 1/m) of the null.

    With probability alpha / j exactly j models lie in ((j - 1) alpha / m, j alpha / m], so that rung j is just reached
    (Benjamini and Yekutieli 2001); else all lie above alpha.
    """
    rng = generator(0, "worst")
    u = torch.rand(size, generator=rng, dtype=torch.float64)
    edges = (alpha / torch.arange(1, models + 1).double()).cumsum(0)
    level = torch.searchsorted(edges, u)[:, None]  # j - 1, or m for none
    rank = torch.rand(size, models, generator=rng).argsort(1).argsort(1)
    low = (level + torch.rand(size, models, generator=rng, dtype=torch.float64)) * alpha / models
    high = alpha + (1 - alpha) * torch.rand(size, models, generator=rng, dtype=torch.float64)
    return torch.where((rank <= level) & (level < models), low, high)


def test_any_dependence_is_bounded_by_the_harmonic_sum_and_the_strict_option_keeps_alpha():
    alpha, models, size = 0.1, 4, 200_000
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    p = worst_case(models, alpha, size)
    for column in p.T:
        assert float((column <= 0.03).double().mean()) == pytest.approx(0.03, abs=0.002)  # each is valid by itself
    assert float((simes(p) <= alpha).double().mean()) == pytest.approx(alpha * harmonic, abs=0.003)
    strict = worst_case(models, alpha / harmonic, size)
    calibration = torch.arange(9999).double()[:, None].repeat(1, models) / 10_000
    zode = ZODE(alpha, dependence="any").fit(calibration)
    assert float(zode.predict(1 - strict).double().mean()) == pytest.approx(alpha, abs=0.004)


def test_the_strict_option_divides_alpha_by_the_harmonic_sum():
    calibration, scores = case(calibration=2000)
    harmonic = sum(1 / j for j in range(1, 6))
    strict, plain = ZODE(0.1, dependence="any").fit(calibration), ZODE(0.1 / harmonic).fit(calibration)
    assert torch.equal(strict.predict(scores), plain.predict(scores))
    assert torch.equal(strict.selected(scores), plain.selected(scores))
    assert_close(strict.p_value(scores), (plain.p_value(scores) * harmonic).clamp_max(1))
    assert bool((strict.p_value(scores) <= 1).all())


@pytest.mark.parametrize("ties", [False, True])
def test_conformal_p_values_are_valid_over_random_calibration_sets(ties):
    draws = normal("exchangeable", 20_000, 20)
    draws = draws.round() if ties else draws
    # each row is one experiment of 19 calibration scores and one test score, and a column of its own
    p = conformal_p_values(draws[:, :19].T, draws[:, 19:].T)[0]
    for rank in range(1, 21):
        share = float((p <= rank / 20).double().mean())
        assert share <= rank / 20 + 0.01
        if not ties:
            assert share == pytest.approx(rank / 20, abs=0.01)


def test_held_out_inputs_stay_accepted():
    shares = []
    for seed in range(40):
        calibration, _ = case(seed)
        fresh = normal("fresh", 500, 5, seed=seed) + normal("fresh shared", 500, 1, seed=seed)
        shares.append(1 - float(ZODE().fit(calibration).predict(fresh).double().mean()))
    assert np.mean(shares) >= 0.95


@pytest.mark.parametrize("transform", [torch.exp, lambda s: s**3, lambda s: 5 * s - 7, torch.atan])
def test_rising_functions_of_a_score_and_the_order_of_models_change_nothing(transform):
    calibration, scores = case()
    changed = calibration.clone(), scores.clone()
    for tensor in changed:
        tensor[:, 2] = transform(tensor[:, 2])
    plain, other = ZODE().fit(calibration), ZODE().fit(changed[0])
    assert torch.equal(other.p_value(changed[1]), plain.p_value(scores))
    order = [3, 0, 4, 1, 2]
    reordered = ZODE().fit(calibration[:, order])
    assert torch.equal(reordered.p_value(scores[:, order]), plain.p_value(scores))
    assert torch.equal(reordered.selected(scores[:, order]), plain.selected(scores)[:, order])


def test_between_bonferroni_and_the_naive_rule():
    calibration, scores = case()
    zode = ZODE().fit(calibration)
    lowest, flagged = zode.p_values(scores).amin(1), zode.predict(scores)
    bonferroni, naive = lowest <= 0.05 / 5, lowest <= 0.05
    assert bool((flagged | ~bonferroni).all())
    assert bool((naive | ~flagged).all())
    assert int(bonferroni.sum()) < int(flagged.sum()) < int(naive.sum())


def test_the_flagged_set_grows_with_alpha():
    calibration, scores = case()
    before = torch.zeros(len(scores), dtype=torch.bool)
    for alpha in (0.02, 0.05, 0.1, 0.3, 0.9):
        flagged = ZODE(alpha).fit(calibration).predict(scores)
        assert bool((flagged | ~before).all())
        assert int(flagged.sum()) > int(before.sum())
        before = flagged


def test_the_score_rises_as_q_falls():
    calibration, scores = case()
    zode = ZODE().fit(calibration)
    q, score = zode.p_value(scores), zode.score(scores)
    assert bool(((q > 0) & (q <= 1)).all())
    assert_close(score, -q.log())
    assert bool((score >= 0).all())
    assert float(zode.score(torch.full((1, 5), 1e9))) == pytest.approx(np.log(401))  # all odd: q = 1 / (n + 1)
    one_odd = torch.full((1, 5), -1e9)
    one_odd[0, 0] = 1e9
    assert float(zode.score(one_odd)) == pytest.approx(np.log(401 / 5))
    assert float(ZODE(conformal=False).fit(calibration).score(torch.full((1, 5), 1e9))) == float("inf")


def test_orientation_is_explicit():
    calibration, scores = case()
    plain, turned = ZODE().fit(calibration), ZODE(higher_is="id").fit(-calibration)
    assert torch.equal(turned.predict(-scores), plain.predict(scores))
    assert torch.equal(turned.score(-scores), plain.score(scores))
    assert torch.equal(turned.selected(-scores), plain.selected(scores))
    assert float(plain.score(scores)[-50:].mean()) > float(plain.score(scores)[:50].mean())
    with pytest.raises(ValueError, match="higher_is must be 'ood' or 'id', got 'normal'"):
        ZODE(higher_is="normal")  # pyright: ignore[reportArgumentType]


def test_a_constant_model_never_flags_and_only_wastes_power():
    calibration, scores = case()
    both = [torch.cat([t, torch.ones(len(t), 1)], 1) for t in (calibration, scores)]
    zode = ZODE().fit(both[0])
    assert bool((zode.p_values(both[1])[:, 5] == 1).all())
    with_it, without = zode.predict(both[1]), ZODE().fit(calibration).predict(scores)
    assert bool((without | ~with_it).all())


def test_too_few_calibration_inputs_are_refused():
    ZODE(0.05).fit(normal("c", 139, 7))  # n + 1 = m / alpha, the first rung is within reach
    with pytest.raises(ValueError, match=r"7 models at alpha 0\.05 need n \+ 1 >= 140 calibration inputs, got n = 138"):
        ZODE(0.05).fit(normal("c", 138, 7))
    with pytest.raises(ValueError, match="calibration inputs, got n = 139"):
        ZODE(0.05, dependence="any").fit(normal("c", 139, 7))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 95.0, float("nan")])
def test_alpha_must_be_a_share(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        ZODE(alpha)


def test_bad_calls_are_refused():
    calibration, scores = case()
    zode = ZODE().fit(calibration)
    broken = scores.clone()
    broken[7, 2] = float("nan")
    for call in (zode.predict, zode.score, zode.p_value, zode.p_values, zode.selected, ZODE().fit):
        with pytest.raises(ValueError, match="model 2 gives NaN for row 7"):
            call(broken)
    with pytest.raises(ValueError, match="5 columns, one for each calibrated model, got 4"):
        zode.predict(scores[:, :4])
    with pytest.raises(ValueError, match="at least one model"):
        ZODE().fit(calibration[:, :0])
    with pytest.raises(ValueError, match="has not been fitted"):
        ZODE().predict(scores)
    with pytest.raises(ValueError, match="dependence must be"):
        ZODE(dependence="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one row"):
        conformal_p_values(calibration[:0], scores)
    with pytest.raises(ValueError, match=r"p-values must be in \[0, 1\]"):
        simes(torch.tensor([[0.5, 1.5]]))


def test_state_survives_saving_and_inputs_stay():
    calibration, scores = case()
    given = calibration.clone(), scores.clone()
    zode, other = ZODE().fit(calibration), ZODE()
    assert other.state_dict() == {}
    other.load_state_dict(zode.state_dict())
    assert torch.equal(other.score(scores), zode.score(scores))
    zode.selected(scores)
    assert torch.equal(calibration, given[0])
    assert torch.equal(scores, given[1])
    with pytest.raises(ValueError, match="nonsense"):
        other.load_state_dict({"nonsense": calibration})
    assert zode.score(scores[:0]).shape == (0,)
