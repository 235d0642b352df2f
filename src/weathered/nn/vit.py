"""vit: a small vision transformer, built by timm, for images of any size that the patch divides."""

import torch
from torch import nn

POSITION_STD = 0.2
"""Deviation of positions and class token at the start; weights are Xavier's. At timm's 0.02, meant for wide networks
and long training, narrow ones do not see for many epochs where patches lie.
"""


def vit(
    in_channels: int, image_size: tuple[int, int], patch: int = 4, width: int = 96, depth: int = 4, heads: int = 4
) -> nn.Module:
    """Pre-norm blocks with learned positions and a class token. features (B, width).

    patch: side of a patch in pixels, which must divide both sides. width: of a token, a multiple of heads. depth >= 1
    blocks. Raises ValueError for sizes that do not fit.
    """
    if min(patch, width, depth, heads) < 1:
        raise ValueError(f"patch, width, depth and heads must be at least 1, got {patch}, {width}, {depth}, {heads}")
    if image_size[0] % patch or image_size[1] % patch:
        raise ValueError(f"patch must divide the image, {image_size[0]}x{image_size[1]}, got {patch}")
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
    # timm takes a second to import
    from timm.models.vision_transformer import VisionTransformer

    body = VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=in_channels,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
    )
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for tokens in (body.pos_embed, body.cls_token):
            assert tokens is not None
            tokens.normal_(std=POSITION_STD)
    return body
