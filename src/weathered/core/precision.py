"""Whether a device computes in bfloat16 with instructions of its own."""

import warnings

import torch


def bfloat16_is_native(device: torch.device) -> bool:
    """False where bfloat16 is emulated, which is several times slower than float32; True where it is not known."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return True


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Warn that `bf16-mixed` will be slow on this device."""
    if precision == "bf16-mixed" and not bfloat16_is_native(device):
        warnings.warn(
            f"this {device.type} has no bfloat16 instructions, so bf16-mixed will be several times slower than "
            "32-true; leave out --precision, or low-precision.",
            stacklevel=3,
        )
