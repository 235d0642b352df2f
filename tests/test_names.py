"""Names on the command line: the table equals the tree, specifications are parsed strictly."""

import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weathered
from weathered.arms import parse_arms
from weathered.assemble import build, build_parts, entry_of, import_part, resolve
from weathered.cli.describe import describe
from weathered.core.errors import SpecError
from weathered.core.spec import parameters, parse, render
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.recipe import Recipe
from weathered.registry import ALIASES, ENTRIES, PROBLEMS, TABLE

SOURCE = Path(weathered.__file__).parent
ROOMS = (
    "losses",
    "weighting",
    "augment",
    "mixing",
    "terms",
    "steppers",
    "tricks",
    "procedures",
    "scores",
    "selection",
    "attacks",
    "certify",
)
SHARED = {
    "difficulty", "auxiliary", "__init__", "base", "extract", "operations", "build",
    "attack_ensemble", "adversarial", "class_gaussian", "laws", "of_runs",
    "score_based", "estimate", "focus", "focus_agents", "encoders",
}  # fmt: skip


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.path], ids=lambda entry: entry.slug)
def test_every_entry_can_be_imported_and_says_what_it_does(entry):
    part = import_part(entry)
    assert part.__doc__
    assert part.__doc__.strip()[0].isupper()
    assert set(entry.problems) <= set(PROBLEMS)
    assert getattr(weathered, entry.class_name) is part


def test_every_method_file_is_in_the_table():
    listed = {entry.path.partition(":")[0] for entry in ENTRIES}
    for room in ROOMS:
        for path in (SOURCE / room).glob("*.py"):
            # the attack inside TRADES has no name of its own
            if path.stem not in SHARED and (room, path.stem) != ("attacks", "trades"):
                assert f"weathered.{room}.{path.stem}" in listed, f"{room}/{path.name} is not in the registry"


def test_no_method_imports_a_sibling_method():
    for room in ROOMS[:-1]:
        methods = {path.stem for path in (SOURCE / room).glob("*.py")} - SHARED - {"cross_entropy"}
        for method in methods:
            text = (SOURCE / room / f"{method}.py").read_text()
            for other in methods - {method}:
                assert f"weathered.{room}.{other} " not in text.replace("\n", " "), f"{method} imports {other}"


def test_slugs_and_aliases_are_distinct():
    assert len(TABLE) == len(ENTRIES)
    assert not set(ALIASES) & set(TABLE)
    assert all(part in TABLE for entry in ENTRIES for part in entry.parts)


def test_all_exports_exist():
    for name in weathered.__all__:
        assert getattr(weathered, name) is not None
    importlib.import_module("weathered")


options = st.dictionaries(
    st.sampled_from(["alpha", "tau", "kind", "start"]),
    st.one_of(
        st.integers(-5, 5),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(alphabet="abcxyz:,= ", max_size=6).map(str.strip),
        st.lists(st.integers(0, 9), max_size=3),
    ),
)


@given(options)
def test_render_and_parse_are_inverse(given_options):
    assert parse(render("slug", given_options)) == ("slug", given_options)


def test_values_are_typed():
    assert parse("x:a=1,b=0.5,c=true,d=text,e=[1,2],f='q,r'")[1] == {
        "a": 1, "b": 0.5, "c": True, "d": "text", "e": [1, 2], "f": "q,r",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logitclp", "no method 'logitclp'. Did you mean 'logitclip'?"),
        ("logitclip:tua=1", "logitclip has no option 'tua'. Did you mean 'tau'?"),
        ("logitclip:tau=big", "option 'tau' takes a number, got 'big'"),
        ("logitclip:tau", "expected key=value after ':', got 'tau'"),
        ("logitclip:tau=1,tau=2", "gives 'tau' twice"),
        (":tau=1", "has no name"),
        ("", "a name is empty"),
        ("mixup,cutmix", "as in --use mixup --use cutmix;"),
        ("mixup+", "no method 'mixup+': a name beside its '+' is empty"),
        ("logitclip:base=3", "option 'base' takes a name or nothing, got 3"),
        ("trivial-augment:magnitude=3", "It has no options."),
        ("one-of:parts=mixup", "a list of names, got 'mixup' (str). Texts in a list stand in quotes"),
        ("one-of:parts=[mixup,cutmix]", "\"one-of:parts=['mixup','cutmix']\"."),
        ("one-of:parts=['mixup','cutmix'", "\"one-of:parts=['mixup','cutmix']\"."),
        ("one-of:parts=[1,2]", "takes a list of names, got [1, 2] (list)."),
        ("one-of:parts=['mixup'],weights=['a']", "takes a list of numbers, got ['a']"),
        ("one-of:parts=['mixup'],weights=1", "takes a list of numbers, got 1 (int)."),
        ("manifold-mixup:layers=[stem]", "\"manifold-mixup:layers=['stem']\"."),
        ("cnc-ood:kinds=fog", "\"cnc-ood:kinds=['fog']\"."),
        ("ldam-drw:statr=1", "Did you mean 'start'?"),
        ("ldam:class_counts=3", "ldam has no option 'class_counts'"),
    ],
)
def test_wrong_specifications_say_what_is_right(text, message):
    with pytest.raises(SpecError) as error:
        resolve([text])
    assert message in str(error.value)


def test_out_of_range_values_name_the_method(digits):
    with pytest.raises(SpecError, match=r"logitclip: tau must be > 0, got -1"):
        build(resolve(["logitclip:tau=-1"])[0], digits)


def test_parts_of_a_bundle_that_share_an_option_are_given_one_value():
    for entry in ENTRIES:
        values: dict[str, set] = {}
        for use in resolve([entry.slug]) if entry.parts else ():
            for name, value in use.options.items():
                values.setdefault(name, set()).add(value)
        assert all(len(found) == 1 for found in values.values()), entry.slug


def test_classifier_retraining_draws_classes_alike_from_where_the_classifier_learns_alone(digits):
    for spec, start in (("crt", 0.8), ("crt:start=0.5", 0.5)):
        retraining, sampling = (build(use, digits) for use in resolve([spec]))
        labels = torch.tensor([0] * 9 + [1])
        assert retraining.start == sampling.start == start
        assert sampling.weights(labels, start - 0.01).unique().numel() == 1
        assert sampling.weights(labels, start)[9] > sampling.weights(labels, start)[0]
    assert "vs-loss" not in describe("group-vs-loss")["measured"]
    assert describe("crt")["options"]["start"].endswith("default 0.8")


def test_two_parts_in_one_slot_are_refused_with_a_way_out():
    with pytest.raises(SpecError, match="both fill the slot 'loss', which holds one. Drop one. Or wrap one"):
        resolve(["label-smoothing", "logitclip"])
    with pytest.raises(SpecError, match="wrap one in the other: logitclip:base=ldam"):
        resolve(["logitclip", "ldam"])
    with pytest.raises(SpecError, match="both fill the slot 'loss', which holds one. Drop one.$"):
        resolve(["vs-loss", "logit-adjustment"])
    with pytest.raises(SpecError, match="class-balanced-sampling is there twice"):
        resolve(["crt", "class-balanced-sampling"])
    with pytest.raises(SpecError, match="both fill the slot 'procedure'"):
        resolve(["jocor", "automix"])


def test_a_loss_may_wrap_another_by_name(digits):
    part = build(resolve(["logitclip:base='label-smoothing:smoothing=0.2'"])[0], digits)
    assert isinstance(part.base, LabelSmoothing)
    assert part.base.label_smoothing == 0.2
    with pytest.raises(SpecError, match="takes a loss, got 'mixup'"):
        build(resolve(["logitclip:base=mixup"])[0], digits)


def test_bundles_are_taken_apart_and_options_find_their_part(digits):
    uses = resolve(["ldam-drw:start=0.5,scale=20"])
    assert [use.slug for use in uses] == ["ldam", "drw"]
    assert uses[0].options["scale"] == 20
    assert uses[1].options["start"] == 0.5
    assert build_parts(uses, digits).head == "cosine"


def test_defaults_are_written_out_and_filled_arguments_are_not():
    for entry in ENTRIES:
        if entry.path and all(
            p.default is not p.empty or name in ("class_counts", "num_classes")
            for name, p in parameters(import_part(entry)).items()
        ):
            (use,) = resolve([entry.slug])
            assert "class_counts" not in use.options
    assert resolve(["logitclip"])[0].options == {"tau": 1.0, "p": 2.0}


def test_equal_recipes_have_equal_hashes():
    short, long = Recipe(use=("logitclip",)), Recipe(use=("logitclip:p=2.0,tau=1.0",))
    assert short.hash == long.hash
    assert short.hash != Recipe(use=("logitclip:tau=2.0",)).hash
    assert short.hash != short.with_settings(seed=1).hash
    assert short.hash == short.with_settings(checkpoint_seconds=1.0, workers=9).hash
    assert Recipe.from_tree(long.to_tree()) == long


def test_recipes_refuse_unknown_keys(tmp_path):
    path = tmp_path / "r.toml"
    for text, message in (
        ("modle = 'mlp'", "no key 'modle'. Did you mean 'model'?"),
        ("[settings]\nepoch = 3", "no key 'epoch'. Did you mean 'epochs'?"),
        ("[settings]\nepochs = 'many'", "'epochs' got 'many'"),
        ("[settings]\nlr = -1", "lr must be > 0"),
        ("use = [", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(SpecError) as error:
            Recipe.from_file(path)
        assert message in str(error.value)
    with pytest.raises(SpecError, match="cannot read the recipe"):
        Recipe.from_file(tmp_path / "absent.toml")


def test_arms_are_separated_by_commas_that_do_not_belong_to_options():
    arms = parse_arms("ce,jocor:co_lambda=0.9,ramp=0.1+mixup:alpha=1e+1,logitclip")
    assert arms == {
        "ce": ("ce",),
        "jocor+mixup": ("jocor:co_lambda=0.9,ramp=0.1", "mixup:alpha=1e+1"),
        "logitclip": ("logitclip",),
    }
    assert list(parse_arms("mixup:alpha=1,mixup:alpha=8,ce")) == ["mixup:alpha=1", "mixup:alpha=8", "ce"]
    with pytest.raises(SpecError, match="empty arm"):
        parse_arms("ce,,mixup")
    with pytest.raises(SpecError, match="names 'ce' twice"):
        parse_arms("ce,ce")


def test_unknown_methods_are_errors_not_tracebacks():
    with pytest.raises(SpecError, match="weathered list"):
        entry_of("does-not-exist")
