"""AveragedViews: a classifier that averages its probabilities over views of each image, for use at test time.

p(c | x) = mean over views v of softmax(model(v(x)))_c, as in Krizhevsky et al., NeurIPS 2012. The output is log p,
whose softmax is p. Limits: one view gives the model's own output; a model that answers all views alike keeps its
answer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

View = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to as many images of the same shape."""


def identity(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The images themselves."""
    return x


def mirror(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The images with left and right exchanged."""
    return x.flip(3)


def shift(x: Float[Tensor, "B C H W"], right: int, down: int) -> Float[Tensor, "B C H W"]:
    """The images moved by whole pixels; what is uncovered shows the nearest pixel of the border."""
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) - right).clamp(0, width - 1)
    return x[:, :, rows[:, None], columns]


def _around(pixels: int) -> tuple[View, ...]:
    places = (-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels)
    return tuple(partial(shift, right=right, down=down) for right, down in places)


VIEWS: dict[str, tuple[View, ...]] = {"flip": (mirror,), "shift": _around(1), "shift-2": _around(2)}
"""What a name adds to the image itself: its mirror image, or four shifts by one pixel or by two."""


def named_views(names: Iterable[str]) -> tuple[View, ...]:
    """The image itself and the views of each name in `VIEWS`, none of them twice.

    Raises ValueError for another name.
    """
    wanted = set(names)
    if unknown := sorted(wanted - VIEWS.keys()):
        raise ValueError(f"no view '{unknown[0]}'; there are: {', '.join(VIEWS)}")
    return identity, *(view for name, views in VIEWS.items() if name in wanted for view in views)


class AveragedViews(nn.Module):
    """A model asked about several views of each image, its probabilities averaged with equal weights.

    model: images (B, C, H, W) to logits (B, C). views: at least one, each giving images of the same shape.
    test_logits: brings logits to the scale at which their softmax is the model's probability, where a loss needs it.
    A call takes as many forward passes as there are views. The parameters are those of `model`, shared.
    Raises ValueError without views, or for logits that are not (B, C).
    """

    def __init__(self, model: nn.Module, views: Sequence[View], test_logits: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        if not views:
            raise ValueError("views must hold at least one view, such as `identity`")
        self.model, self.views, self.test_logits = model, tuple(views), test_logits or identity

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """Log probabilities (B, C), in at least float32; of one view the model's logits as they are."""
        outputs = [self.test_logits(self.model(view(x))) for view in self.views]
        if outputs[0].ndim != 2:
            raise ValueError(
                f"views can be averaged of logits (B, C), got {tuple(outputs[0].shape)}; labels of pixels would have "
                "to be moved back"
            )
        if len(outputs) == 1:
            return outputs[0]
        wide = torch.stack([output if output.dtype.itemsize >= 4 else output.float() for output in outputs])
        return F.log_softmax(wide, 2).logsumexp(0) - math.log(len(outputs))
