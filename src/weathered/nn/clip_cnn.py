"""clip_cnn: a small network for video clips that looks at each frame alone and pools over space and time.

Frames pass the same convolutions; the largest answer of each filter anywhere in the clip, or its mean, goes into one
hidden layer. With `max` one frame is enough to be recognised, and the order of frames is not seen.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Pool = Literal["max", "mean"]


class ClipCNN(nn.Module):
    """`depth` convolutions of width, 2 width, 4 width, ... filters on each frame, a pool over the clip, a hidden layer.

    x (B, T, in_channels, H, W); features (B, hidden). kernel: odd side of the filters of the first convolution, those
    after it have 3; frames are halved between convolutions. pool: `max` or `mean` over frames and positions.
    Raises ValueError for numbers below 1 or an even kernel.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 12,
        depth: int = 1,
        kernel: int = 5,
        hidden: int = 32,
        pool: Pool = "max",
    ):
        super().__init__()
        if min(width, depth, hidden) < 1:
            raise ValueError(f"width, depth and hidden must be at least 1, got {width}, {depth} and {hidden}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {kernel}")
        if pool not in ("max", "mean"):
            raise ValueError(f"pool must be 'max' or 'mean', got '{pool}'")
        widths = [in_channels, *(width * 2**stage for stage in range(depth))]
        sides = [kernel, *[3] * (depth - 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, side, padding=side // 2)
            for before, after, side in zip(widths[:-1], widths[1:], sides, strict=True)
        )
        self.hidden = nn.Linear(widths[-1], hidden)
        self.pool, self.num_features = pool, hidden

    def forward_features(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B D T h w"]:
        """Maps of each frame. Raises ValueError for inputs that are no clips."""
        if x.ndim != 5:
            raise ValueError(f"clip-cnn needs clips (B, T, C, H, W), got {tuple(x.shape)}")
        maps = x.flatten(0, 1)
        for stage, convolution in enumerate(self.convolutions):
            maps = torch.relu(convolution(F.max_pool2d(maps, 2) if stage else maps))
        return maps.unflatten(0, x.shape[:2]).transpose(1, 2)

    def forward_head(self, x: Float[Tensor, "B D T h w"], pre_logits: bool = True) -> Float[Tensor, "B hidden"]:
        pooled = x.amax((2, 3, 4)) if self.pool == "max" else x.mean((2, 3, 4))
        return torch.relu(self.hidden(pooled))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
