"""What lies between the input of a network and its head: the names of its stages, and changes of one layer's output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

STEMS = ("stem", "act", "conv", "bn", "patch")
"""How the modules before the first stage begin in timm's networks."""


def stage_names(network: nn.Module) -> tuple[str, ...]:
    """The modules of a network after which a stage ends, in order; () where they are not known.

    Our own networks name them, timm's in `feature_info`.
    """
    prefix, body = ("body.", cast(Any, network).body) if hasattr(network, "body") else ("", network)
    names = getattr(body, "stage_names", None)
    if names is None:
        info = getattr(body, "feature_info", None) or ()
        rows = [row["module"] for row in (info if isinstance(info, list) else getattr(info, "info", ()))]
        names = tuple(dict.fromkeys(name for name in rows if not name.startswith(STEMS)))
    known = {name for name, _ in network.named_modules()}
    return tuple(prefix + name for name in names if prefix + name in known)


@contextmanager
def changed_output(network: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The first call of a layer inside gives `change(output)`; no hook is left behind.

    layer: as in `named_modules`. Raises ValueError for a layer that is not there, gives something other than a tensor,
    or was not called, and for a network that computes layers again in the backward pass.
    """
    # a module may have several names
    modules = dict(network.named_modules(remove_duplicate=False))
    if layer not in modules:
        raise ValueError(f"the network has no layer '{layer}'; print named_modules() to see what there is")
    if any(getattr(module, "grad_checkpointing", False) for module in modules.values()):
        raise ValueError("activation checkpointing computes layers twice, of which one would be changed; turn it off")
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return output
        if not isinstance(output, Tensor):
            raise ValueError(f"layer '{layer}' gives {type(output).__name__}, not one tensor; name another layer")
        return change(output)

    handle = modules[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ValueError(f"layer '{layer}' was not called in the forward pass, so nothing was changed; name another")
