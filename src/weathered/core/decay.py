"""Parameters that are not decayed towards zero: biases, and scales and shifts of normalisation."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def biases_and_norms(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The trainable parameters of normalisation layers, and every bias, of some modules, each once.

    A normalisation layer is known by its kind, or by a class whose name ends in Norm, Norm1d, Norm2d or Norm3d, and
    counts with all its own parameters. Other parameters of one dimension, such as a temperature, are not among them.
    """
    found: dict[nn.Parameter, None] = {}
    for module in (inner for outer in modules for inner in outer.modules()):
        norm = isinstance(module, NORMS) or type(module).__name__.lower().rstrip("123d").endswith("norm")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and (norm or name == "bias" or name.endswith("_bias")):
                found[parameter] = None
    return list(found)
