"""compare --ablate: which arms it makes, what they are called, and what the command prints and writes."""

import json

import pytest

from weathered.arms import ablated, parse_arms
from weathered.assemble import resolve
from weathered.core.errors import SpecError

FAST = ("--limit", "80", "--epochs", "1", "--batch-size", "40", "--model", "resnet:depth=26,width=8,small=true")


def slugs(use: tuple[str, ...]) -> list[str]:
    return [part.slug for part in resolve(use)]


def test_a_bundle_runs_without_each_part_and_with_each_alone():
    arms = ablated(parse_arms("ce,bag-of-tricks:share=0.2"))
    parts = slugs(("bag-of-tricks",))
    assert list(arms) == [
        *("ce", "bag-of-tricks"),
        *(f"bag-of-tricks without {part}" for part in parts),
        *(f"only {part}" for part in parts),
    ]
    for part in parts:
        assert slugs(arms[f"bag-of-tricks without {part}"]) == [other for other in parts if other != part]
        assert slugs(arms[f"only {part}"]) == [part]
    assert resolve(arms["only warm-up"])[0].options == {"share": 0.2}
    assert resolve(arms["only mixup"])[0].options["alpha"] == 0.2
    assert resolve(arms["bag-of-tricks without cosine"])[1].options == {"share": 0.2}


def test_of_equal_arms_the_first_stays():
    two = ablated(parse_arms("ce,mixup+gce"))
    assert list(two) == ["ce", "mixup+gce", "mixup+gce without mixup", "mixup+gce without gce"]
    three = ablated(parse_arms("ce,mixup,cosine+warm-up+mixup"))
    assert "only mixup" not in three
    assert "only cosine" in three
    assert len({tuple(map(str, resolve(use))) for use in three.values()}) == len(three)


def test_parts_of_one_name_are_told_apart_by_their_options():
    arms = ablated(parse_arms("mixup:alpha=1+mixup:alpha=2+cosine"))
    alphas = {name: [part.options.get("alpha") for part in resolve(use)] for name, use in arms.items()}
    assert list(alphas.values()) == [[1.0, 2.0, None], [2.0, None], [1.0, None], [1.0, 2.0], [1.0], [2.0], [None]]


@pytest.mark.parametrize("arms", ["ce,mixup", "ce,ce+mixup"])
def test_arms_of_one_part_cannot_be_taken_apart(arms):
    with pytest.raises(SpecError, match="--ablate takes arms of several parts apart, but none of .* has more than one"):
        ablated(parse_arms(arms))


def test_the_command_names_what_does_not_fit_and_ranks_the_rest(weathered, tmp_path):
    arms = ("--arms", "ce,zero-gamma+resnet-d+jocor+mixup", "--ablate", "--seeds", "1")
    code, out, err = weathered("compare", "digits", *FAST, *arms, "--dry-run", "--json")
    assert code == 0, err
    verdicts = json.loads(out)["arms"]
    name = "zero-gamma+resnet-d+jocor+mixup"
    fit = [arm for arm, verdict in verdicts.items() if verdict == "compatible"]
    assert fit == [
        *("ce", f"{name} without jocor", f"{name} without mixup"),
        *("only zero-gamma", "only resnet-d", "only jocor", "only mixup"),
    ]
    assert "JoCoR needs 'hard_target'" in verdicts[name]
    assert "JoCoR needs 'hard_target'" in verdicts[f"{name} without resnet-d"]
    code, _, err = weathered("compare", "digits", *FAST, "--arms", "ce,mixup", "--ablate")
    assert code == 2
    assert "--ablate takes arms of several parts apart" in err


def test_its_arms_stand_in_terminal_comparison_and_report(weathered, tmp_path):
    arms = ("--arms", "ce,cosine+mixup", "--ablate", "--seeds", "1", "--workers", "1", "--schedule", "constant")
    code, out, err = weathered("compare", "digits", *FAST[:-1], "cnn_small:width=8", *arms)
    assert code == 0, err
    names = ["ce", "cosine+mixup", "cosine+mixup without cosine", "cosine+mixup without mixup"]
    (folder,) = (tmp_path / "runs").glob("compare-*")
    tree = json.loads((folder / "comparison.json").read_text())
    assert sorted(row["arm"] for row in tree["ranking"]) == names
    report = (folder / "report.html").read_text()
    for name in names:
        assert name in out
        assert name in report
