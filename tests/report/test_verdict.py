"""The verdict: who wins, by how much, and whether seed noise could have done it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic_report import arms, single_report

from weathered.report.model import ArmAudit, ReportArm, ReportInput
from weathered.report.verdict import corrected_p, holm, verdict
from weathered.stats import mean_interval, paired_comparison


def report(values: dict[str, list[float]], **changes) -> ReportInput:
    """A comparison of these values per seed; the first arm is the baseline."""
    baseline = changes.get("baseline", next(iter(values)))
    found = tuple(
        ReportArm(
            name,
            (),
            tuple(v),
            mean_interval(v),
            1.0,
            None if name == baseline else paired_comparison(v, values[baseline]),
        )
        for name, v in values.items()
    )
    settings = {"title": "t", "metric": "accuracy", "data": "digits", "baseline": baseline} | changes
    return ReportInput(arms=found, **settings)


def test_clear_winner_with_numbers():
    found = verdict(report({"ce": [0.80, 0.81, 0.82], "a": [0.851, 0.859, 0.87]}))
    assert found.headline == "a beats ce by 5.0 points, more than seed noise."
    assert found.tone == "clear"
    assert "a reaches 86.0\u00a0%, ce 81.0\u00a0%" in found.sentences[1]
    assert "95 % interval of the difference +4.8 to +5.2" in found.sentences[1]
    assert "3 seeds" in found.sentences[1]
    assert "allowing for" not in found.sentences[1]


def test_seed_noise_is_called_seed_noise():
    found = verdict(report({"ce": [0.80, 0.86, 0.82], "a": [0.84, 0.83, 0.85]}))
    assert found.headline == "No clear winner: a is on average 1.3 points ahead of ce, which may be seed noise."
    assert found.tone == "unclear"


def test_one_seed_never_decides():
    found = verdict(report({"ce": [0.1], "a": [0.9]}))
    assert found.headline == "One seed cannot tell: a is 80.0 points ahead of ce."
    assert any("at least 3 seeds" in sentence for sentence in found.sentences)
    assert not any("p\u00a0=" in s or "inf" in s or "nan" in s for s in found.sentences)


def test_one_seed_says_of_no_arm_that_it_is_equal():
    text = " ".join(verdict(report({"ce": [0.7], "mixup": [0.95], "gce": [0.9]})).sentences)
    assert "told apart" not in text
    assert "correction for" not in text


def test_baseline_can_win():
    far = verdict(report({"ce": [0.90, 0.91, 0.92], "a": [0.80, 0.81, 0.821]}))
    assert far.headline == "No arm beats ce: a is 10.0 points behind, more than seed noise."
    near = verdict(report({"ce": [0.90, 0.91, 0.95], "a": [0.91, 0.93, 0.88], "b": [0.1, 0.2, 0.3]}))
    assert near.headline == "No clear winner: ce is on average 1.3 points ahead of a, which may be seed noise."
    assert near.tone == "unclear"


def test_the_best_of_many_arms_needs_more():
    """Alone the difference excludes 0; among twenty arms as good as the baseline it does not count."""
    values = {"ce": [0.80, 0.81, 0.82], "a": [0.82, 0.835, 0.845]}
    assert verdict(report(values)).tone == "clear"
    noise = np.random.default_rng(0).normal(0.79, 0.01, (20, 3))
    many = values | {f"arm {i}": row.tolist() for i, row in enumerate(noise)}
    found = verdict(report(many))
    assert found.headline.startswith("No clear winner: a is on average 2.3 points ahead")
    assert "allowing for 21 comparisons" in found.sentences[1]
    (few,) = [sentence for sentence in found.sentences if "3 seeds are few" in sentence]
    undetected = float(few.partition("under about ")[2].partition(" points")[0])
    assert undetected > 2.3, "a difference said to be noise must not be one that could have been told"


@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.3, 0.1]))
def test_what_could_not_be_told_agrees_with_what_was(seed, spread):
    """A clear difference is larger than what so few seeds could not tell; an unclear one is not."""
    rng = np.random.default_rng(seed)
    found = verdict(report({name: rng.normal(k, spread, 3).tolist() for k, name in enumerate("abc")}, percent=False))
    (few,) = [sentence for sentence in found.sentences if "3 seeds are few" in sentence]
    undetected = float(few.partition("under about ")[2].partition(" could")[0])
    gap = abs(float(found.sentences[1].partition("a difference of ")[2].split()[0].replace("−", "-")))
    assert (gap >= undetected - 1e-3) if found.tone == "clear" else (gap <= undetected + 1e-3)


def test_a_rival_is_named():
    found = verdict(report({"ce": [0.80, 0.81, 0.82], "a": [0.90, 0.91, 0.93], "b": [0.91, 0.90, 0.92]}))
    assert found.headline == "a beats ce by 10.3 points, more than seed noise; b may be as good."
    assert any("lead of a over the second, b, is 0.3 points" in sentence for sentence in found.sentences)


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_arms_are_level_and_nobody_wins(seeds):
    same = [0.5, 0.75, 0.625][:seeds]
    found = verdict(report({"ce": same, "a": same}))
    start = "One seed cannot tell" if seeds == 1 else "No clear winner"
    assert found.headline == f"{start}: ce and a are level."
    assert found.tone == "unclear"
    text = " ".join(found.sentences)
    assert "a and ce both reach" in text
    assert not any(word in text for word in ("ahead", "behind", "beats", "p\u00a0", "–", "0.0 points"))


def test_arms_of_equal_means_are_level_whichever_comes_first():
    three = {"a": [0.7, 0.5], "ce": [0.5, 0.7], "b": [0.1, 0.2], "c": [0.6, 0.6]}
    for order in (("ce", "a", "b", "c"), ("b", "c", "a", "ce")):
        found = verdict(report({name: three[name] for name in order}, baseline="ce"))
        names = [name for name in order if name != "b"]
        assert found.headline == f"No clear winner: {names[0]}, {names[1]} and {names[2]} are level."


def test_many_level_arms_are_counted_in_place_of_named():
    level = {name: [0.5] for name in ("ce", "a", "b", "c", "d")}
    assert verdict(report(level)).headline == "One seed cannot tell: all 5 arms are level, ce among them."
    assert "5 arms are level, ce among them" in verdict(report({**level, "e": [0.1]})).headline


@pytest.mark.parametrize(
    ("gain", "headline"),
    [
        ((-0.27, -0.37, -0.17), ", 27.0 points behind logistic regression."),
        ((0.05, 0.01, 0.09), ", 5.0 points ahead of logistic regression."),
        ((0.05, -0.01, 0.11), ", not to be told from logistic regression."),
    ],
)
def test_a_few_shot_run_says_how_it_lies_to_what_it_was_compared_with(gain, headline):
    value, low, high = gain
    summary = {
        "1-shot accuracy": {"value": 0.44, "low": 0.36, "high": 0.52, "n": 10},
        "1-shot gain over logistic regression": {"value": value, "low": low, "high": high, "n": 10},
        "5-shot gain over logistic regression": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 10},
    }
    arm = ReportArm("tfh", (), (0.44,), mean_interval([0.44]), 1.0)
    audit = ArmAudit("tfh", {"audit": "few-shot", "summary": summary})
    found = verdict(ReportInput("t", "1-shot accuracy on novel classes", "omniglot", (arm,), audits=(audit,)))
    assert found.headline == f"tfh reaches 44.0\u00a0% 1-shot accuracy on novel classes{headline}"
    text = " ".join(found.sentences)
    assert "over 10 episodes is 36.0 to 52.0" in text
    assert "nothing to compare with" not in text


def test_a_difference_below_the_last_digit_is_not_called_zero():
    found = verdict(report({"ce": [0.8, 0.81, 0.8], "a": [0.80001, 0.81, 0.8]}))
    assert found.headline == (
        "No clear winner: a is on average less than 0.1 points ahead of ce, which may be seed noise."
    )


def test_the_same_difference_on_every_seed_has_no_interval():
    found = verdict(report({"ce": [0.5, 0.6, 0.7], "a": [0.7, 0.8, 0.9], "b": [0.6, 0.7, 0.8]}))
    assert found.headline == "No clear winner: a is on average 20.0 points ahead of ce, which may be seed noise."
    text = " ".join(found.sentences)
    assert "a difference of +20.0 points, the same on each of 3 seeds, so neither an interval" in text
    assert "over the second, b, is 10.0 points on each of 3 seeds" in text
    assert "–" not in text


def test_a_second_that_is_level_with_the_best_is_named():
    found = verdict(report({"ce": [0.50, 0.51, 0.52], "a": [0.90, 0.91, 0.93], "b": [0.93, 0.91, 0.90]}))
    assert found.headline.endswith("more than seed noise; b may be as good.")
    assert "The second, b, is level with a." in found.sentences


def test_lower_is_better():
    values = {"ce": [0.80, 0.81, 0.82], "a": [0.70, 0.712, 0.72], "b": [0.9, 0.911, 0.92]}
    found = verdict(report(values, higher_is_better=False, percent=False))
    assert found.headline == "a beats ce by 0.099, more than seed noise."
    assert "Better than ce after correction for 2 comparisons: a." in found.sentences
    assert "Worse than ce after correction for 2 comparisons: b." in found.sentences


def test_few_seeds_are_called_few_and_many_are_not():
    assert any("3 seeds are few" in sentence for sentence in verdict(make(3)).sentences)
    assert not any("are few" in sentence for sentence in verdict(make(8)).sentences)


def make(seeds: int) -> ReportInput:
    return ReportInput("t", "accuracy", "digits", arms(seeds), "ce")


def test_single_run_has_a_result_and_no_winner():
    arm = ReportArm("ce", (), (0.9, 0.91), mean_interval([0.9, 0.91]), 1.0)
    found = verdict(ReportInput("t", "accuracy", "digits", (arm,)))
    assert found.headline == "ce reaches 90.5\u00a0% accuracy."
    assert found.tone == "single"
    assert any("95 % interval over 2 seeds" in sentence for sentence in found.sentences)


def test_single_run_of_one_seed_gives_the_interval_over_samples():
    found = verdict(single_report())
    assert any("over 600 test samples" in sentence for sentence in found.sentences)
    assert any("One seed says nothing" in sentence for sentence in found.sentences)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    named = {str(i): p for i, p in enumerate(p_values)}
    corrected = holm(named)
    order = sorted(named, key=lambda name: named[name])
    rejecting = True
    for rank, name in enumerate(order):
        rejecting = rejecting and (len(order) - rank) * named[name] <= 0.05
        assert (corrected[name] <= 0.05) == rejecting
        assert named[name] <= corrected[name] <= min(1.0, len(order) * named[name]) + 1e-15


def test_false_winners_are_rare():
    """Four arms equal to the baseline: some arm is called a winner in at most about 5 % of comparisons."""
    rng, runs = np.random.default_rng(0), 200
    called = sum(
        verdict(report({name: rng.normal(0.8, 0.01, 5).tolist() for name in ("ce", "a", "b", "c", "d")})).headline.find(
            "beats ce by"
        )
        > 0
        for _ in range(runs)
    )
    assert called / runs <= stats.binom.ppf(0.999, runs, 0.05) / runs


def test_corrected_p_leaves_the_baseline_out():
    assert set(corrected_p(make(3))) == {"logitclip", "jocor", "mixup", "ldam+drw"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, "at least one arm"),
        ({"arms": arms() * 2}, "different names"),
        ({"baseline": "nope"}, "'nope' is not among the arms"),
        ({"arms": (replace(arms()[0], values=()), *arms()[1:])}, "'ce' has no values"),
        ({"baseline": "jocor"}, "'ce' is not the baseline"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(make(3), **changes)


def test_interval_over_samples_is_not_that_of_another_value():
    single = single_report()
    longer = verdict(replace(single, metric="test accuracy after the last epoch"))
    assert any("over 600 test samples" in sentence for sentence in longer.sentences)
    arm = replace(single.arms[0], values=(0.5,), estimate=mean_interval([0.5]))
    assert not any("test samples" in sentence for sentence in verdict(replace(single, arms=(arm,))).sentences)
