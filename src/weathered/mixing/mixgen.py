"""MixGen: blend the images of two image-caption pairs and join their captions, which gives a new pair that matches.

Source: Hao et al., "MixGen: A New Multi-Modal Data Augmentation", WACV Workshops 2023, with the pairing of rows and the
defaults of the authors' released code.
With M mixes, rows i < M become lam x_i + (1 - lam) x_(i+M) with the caption t_i + " " + t_(i+M); all others stay, the
sources i + M included. There is nothing random in it: the batch is taken to be shuffled.
Limits: M = 0 is the identity; lam = 1 leaves the images and joins the captions alone; at lam = 1/2 images are the same
whichever source comes first, captions are not.
Apply it after augmentation of single images and of texts, with one caption for each image. A joined caption that is
cut at its end loses the second source first, while the image keeps it: raise the length, or cut each half
(`WordTokeniser.encode_joined`). Heavy cropping before it can remove the object that a caption names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import Traits
from weathered.core.rng import draw_beta
from weathered.core.roles import BatchTransform
from weathered.core.tokens import CAPTION, NOT_NEGATIVE, join_tokens, lengths_of, widened
from weathered.mixing.base import check_arguments, check_share


class MixGenInfo(NamedTuple):
    """What each row of the result is made of.

    rows (N,): its position in the given batch. partner (N,): the position there of its second source, its own where it
    was not mixed. lam (N,) float32: the share of its first source in its image, 1 where it was not mixed.
    """

    rows: Int[Tensor, "N"]
    partner: Int[Tensor, "N"]
    lam: Float[Tensor, "N"]


def mixgen(
    images: Float[Tensor, "B ..."],
    texts: Sequence[str],
    num: int | None = None,
    lam: float | Float[Tensor, "M"] = 0.5,
    sep: str = " ",
    drop_sources: bool = False,
    inplace: bool = False,
) -> tuple[Float[Tensor, "N ..."], list[str], MixGenInfo]:
    """The first `num` pairs mixed with the `num` pairs after them.

    images (B, ...) of any floating type. texts: B captions, joined before any tokenisation; an empty one is joined with
    its separator as well. num in [0, B / 2]: mixes, a quarter of the batch by default. lam in [0, 1]: share of the
    first image, one or one for each mix. sep: between two captions. drop_sources: leave out the rows num..2 num - 1,
    which are otherwise negatives of a pair that contains them. inplace: write into `images` and `texts`, then a list,
    and return them. Raises ValueError outside these ranges, TypeError for texts that are one string.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be one string for each image, got a single string")
    size, num = len(images), _count(len(images), num)
    if len(texts) != size:
        raise ValueError(f"there must be one text for each of {size} images, got {len(texts)}")
    if wrong := next((i for i, text in enumerate(texts) if not isinstance(text, str)), None):
        raise ValueError(f"texts must be strings before tokenisation, got {type(texts[wrong]).__name__} at {wrong}")
    if inplace and drop_sources:
        raise ValueError("inplace keeps all rows; leave drop_sources out")
    mixed = _blend(images, num, lam)
    joined = [texts[i] + sep + texts[i + num] for i in range(num)]
    info = _info(size, num, lam, drop_sources, images.device)
    if inplace:
        if not isinstance(texts, list):
            raise ValueError(f"inplace writes into a list of texts, got a {type(texts).__name__}")
        images[:num] = mixed
        texts[:num] = joined
        return images, texts, info
    start = 2 * num if drop_sources else num
    return torch.cat([mixed, images[start:]]), [*joined, *texts[start:]], info


def _count(size: int, num: int | None) -> int:
    num = size // 4 if num is None else num
    if not 0 <= 2 * num <= size:
        raise ValueError(f"num must be in [0, {size // 2}], half of a batch of {size}, got {num}")
    return num


def _blend(images: Tensor, num: int, lam: float | Tensor) -> Tensor:
    """lam * images[i] + (1 - lam) * images[i + num] for i < num, in at least float32."""
    if not images.is_floating_point():
        raise ValueError(f"images must be floating-point numbers, got {images.dtype}; divide bytes by 255 first")
    check_share(lam)
    if isinstance(lam, Tensor) and lam.shape not in ((), (num,)):
        raise ValueError(f"lam must be one share or one for each of {num} mixes, got {tuple(lam.shape)}")
    wide = images[: 2 * num].float() if images.dtype.itemsize < 4 else images[: 2 * num]
    # lerp from the second to the first is exact at both ends
    weight = torch.as_tensor(lam).to(wide).expand(num).view(-1, *[1] * (images.ndim - 1))
    return wide[num:].lerp(wide[:num], weight).to(images.dtype)


def _info(size: int, num: int, lam: float | Tensor, drop_sources: bool, device: torch.device) -> MixGenInfo:
    start = 2 * num if drop_sources else num
    rows = torch.cat([torch.arange(num), torch.arange(start, size)]).to(device)
    partner, shares = rows.clone(), torch.ones(len(rows), device=device)
    partner[:num] += num
    shares[:num] = torch.as_tensor(lam).to(shares)
    return MixGenInfo(rows, partner, shares)


class MixGen(BatchTransform):
    """Mix a share of the image-caption pairs of each batch; captions are the word ids in the column `caption`.

    share in [0, 0.5]: mixed rows of a batch, rounded down. lam in [0, 1]: of the first image. alpha > 0: draw lam from
    Beta(alpha, alpha) for each mix instead. drop_sources: leave the second sources out of the batch. mask_sources: keep
    them, but not as negatives of the pairs that contain them, nor the other way round. length: words of a caption, at
    least 2 and enough for one caption; each half of a longer one is cut; by default twice the width of the captions,
    where none is. Labels are mixed like the images. Draws from a CPU generator, and only with alpha.
    """

    traits = Traits(
        needs={
            "image": "blends pixels",
            "caption": "joins the captions of two images",
            "hard_target": "joins whole pairs, so that no caption has more than two sources",
            "caption_loss": "makes pairs of image and caption, which nothing else learns from",
        },
        breaks={"hard_target": "turns labels into mixtures"},
    )

    def __init__(
        self,
        share: float = 0.25,
        lam: float = 0.5,
        alpha: float | None = None,
        drop_sources: bool = False,
        mask_sources: bool = False,
        length: int | None = None,
    ):
        if not 0 <= share <= 0.5:
            raise ValueError(f"share must be in [0, 0.5], half of a batch, got {share}")
        check_share(lam)
        if alpha is not None:
            check_arguments(alpha, 1.0)
        if drop_sources and mask_sources:
            raise ValueError("drop_sources leaves no sources that mask_sources could mask; choose one")
        if length is not None and length < 2:
            raise ValueError(f"length must be at least 2 for a word of each caption, got {length}")
        self.share, self.lam, self.alpha = share, lam, alpha
        self.drop_sources, self.mask_sources, self.length = drop_sources, mask_sources, length

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        if CAPTION not in batch.extra:
            raise ValueError(f"the batch has no column '{CAPTION}' of word ids, (B, L)")
        tokens, size = batch.extra[CAPTION], len(batch)
        num = int(self.share * size)
        lam = self.lam if self.alpha is None else draw_beta(self.alpha, rng, (num,))
        info = _info(size, num, lam, self.drop_sources, batch.x.device)
        start = 2 * num if self.drop_sources else num
        x = torch.cat([_blend(batch.x, num, lam), batch.x[start:]])
        joined = join_tokens(tokens[:num], tokens[num : 2 * num], self.length)
        captions = torch.cat([joined, self._as_wide(tokens[start:], joined.shape[1])])
        extra = {name: column[info.rows] for name, column in batch.extra.items()} | {CAPTION: captions}
        if self.mask_sources:
            extra[NOT_NEGATIVE] = info.partner
        # mixed over the whole batch, whose rows the partners count
        shares = torch.ones(size, device=batch.x.device)
        partner = torch.arange(size, device=batch.x.device)
        shares[:num], partner[:num] = info.lam[:num], info.partner[:num]
        target = batch.target.mix(partner, shares).select(info.rows)
        return batch.replace(x=x, target=target, index=batch.index[info.rows], extra=extra)

    def _as_wide(self, tokens: Int[Tensor, "N L"], length: int) -> Int[Tensor, "N L"]:
        longest = int(lengths_of(tokens).max()) if len(tokens) else 0
        if longest > length:
            raise SpecError(
                f"mixgen: length must be enough for one caption, got {length} for one of {longest} words; raise it."
            )
        return widened(tokens, length)
