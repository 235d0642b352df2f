"""Emulated bfloat16 is said before it costs hours."""

import warnings

import pytest
import torch

from weathered.core.precision import bfloat16_is_native, warn_if_emulated

CPU = torch.device("cpu")


def test_float32_is_never_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_emulated("32-true", CPU)


def test_bfloat16_is_warned_about_exactly_where_it_is_emulated():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_emulated("bf16-mixed", CPU)
    assert [("slower than 32-true" in str(w.message)) for w in caught] == [True] * (not bfloat16_is_native(CPU))


def test_unknown_devices_are_trusted():
    assert bfloat16_is_native(torch.device("meta"))


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell what the CPU can do")
def test_a_processor_with_bfloat16_instructions_is_recognised():
    able = torch.cpu.get_capabilities()
    if able.get("avx512_bf16") or able.get("amx_bf16"):
        assert bfloat16_is_native(CPU)
    if able.get("architecture") == "x86_64" and not (able.get("avx512_f") or able.get("avx_ne_convert")):
        assert not bfloat16_is_native(CPU)
