"""The examples run as they stand."""

import runpy
from pathlib import Path

import pytest
import torch

from weathered.data.sources import load_pair
from weathered.losses.cross_entropy import CrossEntropy

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_loss.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


def test_the_tests_of_the_example_pass(example):
    tests = [function for name, function in example.items() if name.startswith("test_")]
    assert len(tests) == 3
    torch.manual_seed(0)
    for function in tests:
        function()


def test_its_limit_cases_can_fail(example, monkeypatch):
    namespace = example["test_small_q_is_cross_entropy"].__globals__
    monkeypatch.setitem(namespace, "GeneralizedCrossEntropy", lambda q: lambda z, y: 1.01 * CrossEntropy()(z, y))
    with pytest.raises(AssertionError):
        example["test_small_q_is_cross_entropy"]()


def test_it_trains(example):
    train, test = load_pair("digits")
    assert example["accuracy"](train, test, example["GeneralizedCrossEntropy"](q=0.7), 4) > 0.8


def test_it_prints_a_comparison(example, capsys):
    example["main"](epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["CrossEntropy", "GeneralizedCrossEntropy"]
