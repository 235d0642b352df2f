"""The mix block: a mask from a pair of feature maps."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.nn.mix_block import MixBlock, pair_attention


def maps(seed: int, channels: int = 6, size: tuple[int, int] = (3, 4)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(lam_encoding: bool = True, channels: int = 6, scale: float = 0.7) -> MixBlock:
    """A block with weights large enough that attention is far from even."""
    torch.manual_seed(1)
    made = MixBlock(channels, 2, lam_encoding).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=scale)
    return made


def permute(features: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return features.flatten(2)[:, :, order].view_as(features)


@pytest.mark.parametrize("size", [(3, 4), (12, 16), (13, 9), (32, 20)])
def test_mask_has_the_size_of_the_image_and_lies_between_zero_and_one(size):
    mask = block()(maps(1), maps(2), 0.3, size)
    assert mask.shape == (2, 1, *size)
    assert ((mask > 0) & (mask < 1)).all()
    assert float(mask.detach().std()) > 0.01


def test_mask_is_that_of_the_formula():
    """Position by position, in plain arithmetic."""
    made, own, partner, lam = block(), maps(1), maps(2), 0.3
    mask = made(own, partner, lam, (6, 8))
    embedding, bias = made.embedding.weight[:, :, 0, 0], made.embedding.bias
    value, value_bias = made.value.weight[0, :, 0, 0], made.value.bias
    assert bias is not None
    assert value_bias is not None
    one = torch.ones(1, dtype=torch.float64)
    for b in range(2):
        for row in range(6):
            for column in range(8):
                query = embedding @ torch.cat([own[b, :, row // 2, column // 2], lam * one]) + bias
                scores, values = [], []
                for i in range(3):
                    for j in range(4):
                        place = torch.cat([partner[b, :, i, j], (1 - lam) * one])
                        scores.append(query @ (embedding @ place + bias) / math.sqrt(3))
                        values.append(value @ place + value_bias[0])
                expected = (torch.stack(scores).softmax(0) * torch.stack(values)).sum().sigmoid()
                assert_close(mask[b, 0, row, column], expected)


@pytest.mark.parametrize("lam", [0.0, 0.37, 1.0])
def test_value_of_zeros_gives_one_half(lam):
    made = block()
    nn.init.zeros_(made.value.weight)
    nn.init.zeros_(made.value.bias)  # pyright: ignore[reportArgumentType]
    assert (made(maps(1), maps(2), lam, (6, 8)) == 0.5).all()


@pytest.mark.parametrize("channels", [32, 256, 1024])
def test_mask_starts_near_one_half(channels):
    torch.manual_seed(0)
    made = MixBlock(channels)
    mask = made(maps(1, channels).float(), maps(2, channels).float(), 0.3, (6, 8))
    assert float((mask - 0.5).abs().max().detach()) < 0.2


def test_only_the_encoding_shows_lam_to_the_block():
    for encoding in (False, True):
        made = block(encoding)
        same = torch.equal(made(maps(1), maps(2), 0.2, (6, 8)), made(maps(1), maps(2), 0.7, (6, 8)))
        assert same is not encoding


def test_attention_rows_sum_to_one():
    attention = pair_attention(3 * maps(1), 3 * maps(2))
    assert attention.shape == (2, 12, 12)
    assert_close(attention.sum(2), torch.ones(2, 12, dtype=torch.float64))


def test_even_partner_gives_an_even_mask():
    even = maps(2)[:, :, :1, :1].expand(2, 6, 3, 4)
    mask = block()(maps(1), even, 0.3, (3, 4)).flatten(1)
    assert_close(mask, mask[:, :1].expand_as(mask))


def test_mask_follows_the_positions_of_the_own_map_and_not_those_of_the_partner():
    made, order = block(), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mask = made(maps(1), maps(2), 0.3, (3, 4))
    assert_close(made(permute(maps(1), order), maps(2), 0.3, (3, 4)), permute(mask, order))
    assert_close(made(maps(1), permute(maps(2), order), 0.3, (3, 4)), mask)
    assert not torch.allclose(permute(mask, order), mask, atol=1e-3)


def test_mixed_precision_does_not_reach_the_attention():
    made, own, partner = block().float(), 8 * maps(1).float(), 8 * maps(2).float()
    expected = made(own, partner, 0.3, (6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(own, partner, 0.3, (6, 8))
    assert torch.equal(found, expected)
    assert made(own.bfloat16(), partner.bfloat16(), 0.3, (6, 8)).dtype == torch.float32


@pytest.mark.parametrize("reduction", [0, 7])
def test_reduction_must_leave_a_channel(reduction):
    with pytest.raises(ValueError, match="reduction must be in"):
        MixBlock(6, reduction)
