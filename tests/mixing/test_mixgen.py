"""Pairs stay matched: an image holds what its caption names, never more than two sources, and nothing else changes."""

import pytest
import torch
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.facts import check
from weathered.core.procedure import Procedure
from weathered.core.tokens import WordTokeniser, lengths_of
from weathered.mixing.mixgen import NOT_NEGATIVE, MixGen, mixgen

SIZE, NUM = 12, 4


def one_hot_images():
    """Image i is white in channel i only."""
    return torch.eye(SIZE)[:, :, None, None].expand(-1, -1, 2, 2).clone()


def numbered():
    return [f"caption {chr(97 + i)}" for i in range(SIZE)]


def pair_batch(captions=None):
    captions = captions or numbered()
    batch = Batch.of(one_hot_images(), torch.arange(SIZE))
    return batch.replace(extra={"caption": WordTokeniser.fit(captions).encode(captions)})


def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_mixed_rows_follow_the_formula_on_the_original_batch(lam, dtype):
    images = torch.rand(SIZE, 3, 4, 4, dtype=torch.float64).to(dtype)
    mixed, texts, info = mixgen(images, numbered(), NUM, lam)
    expected = lam * images[:NUM].double() + (1 - lam) * images[NUM : 2 * NUM].double()
    assert_close(mixed[:NUM].double(), expected, atol=1e-3 if dtype == torch.float16 else 1e-6, rtol=0)
    assert texts[:NUM] == [f"{numbered()[i]} {numbered()[i + NUM]}" for i in range(NUM)]
    assert torch.equal(mixed[NUM:], images[NUM:])
    assert texts[NUM:] == numbered()[NUM:]
    assert mixed.dtype == dtype
    assert mixed.shape == images.shape
    assert info.partner.tolist() == [4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11]
    assert_close(info.lam, torch.tensor([lam] * NUM + [1.0] * (SIZE - NUM)))


def test_no_mixes_is_the_identity():
    images = torch.rand(SIZE, 3, 4, 4)
    mixed, texts, info = mixgen(images, numbered(), 0)
    assert torch.equal(mixed, images)
    assert texts == numbered()
    assert torch.equal(info.partner, torch.arange(SIZE))
    assert bool((info.lam == 1).all())


def test_lam_of_one_joins_captions_alone():
    images = torch.rand(SIZE, 3, 4, 4)
    mixed, texts, _ = mixgen(images, numbered(), NUM, 1.0)
    assert torch.equal(mixed, images)
    assert texts[0] == "caption a caption e"


@pytest.mark.parametrize("num", [None, 1, 4, 6])
def test_no_pair_has_more_than_two_sources(num):
    images, texts, _ = mixgen(one_hot_images(), [f"w{i}" for i in range(SIZE)], num)
    sources = (images[:, :, 0, 0] > 0).sum(1)
    count = 3 if num is None else num
    assert sources.tolist() == [2] * count + [1] * (SIZE - count)
    for image, text in zip(images[:, :, 0, 0], texts, strict=True):
        assert {f"w{i}" for i in image.nonzero()[:, 0].tolist()} == set(text.split())


def test_the_image_is_symmetric_at_a_half_and_the_caption_is_not():
    images, texts = torch.rand(2, 3, 4, 4), ["a", "b"]
    mixed, joined, _ = mixgen(images, texts, 1)
    swapped, other, _ = mixgen(images.flip(0), texts[::-1], 1)
    assert_close(mixed[0], swapped[0])
    assert (joined[0], other[0]) == ("a b", "b a")


@pytest.mark.parametrize("inplace", [False, True])
def test_the_caller_keeps_his_batch_unless_he_gives_it_away(inplace):
    images, texts = torch.rand(SIZE, 3, 4, 4), numbered()
    before = images.clone()
    mixed, joined, _ = mixgen(images, texts, NUM, inplace=inplace)
    assert (mixed is images) == inplace
    assert (joined is texts) == inplace
    fresh, fresh_texts, _ = mixgen(before, numbered(), NUM)
    assert torch.equal(mixed, fresh)
    assert joined == fresh_texts
    if not inplace:
        assert torch.equal(images, before)
        assert texts == numbered()
        mixed[-1] = 7
        assert torch.equal(images, before)


def test_dropped_sources_are_gone_and_counted_in_the_given_batch():
    images = torch.rand(SIZE, 3, 4, 4)
    whole, texts, _ = mixgen(images, numbered(), NUM)
    mixed, joined, info = mixgen(images, numbered(), NUM, drop_sources=True)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    assert torch.equal(mixed, whole[kept])
    assert joined == [texts[i] for i in kept]
    assert info.rows.tolist() == kept
    assert info.partner.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


def test_one_share_for_each_mix():
    images, lam = torch.rand(SIZE, 3, 4, 4), torch.tensor([0.0, 0.25, 0.5, 1.0])
    mixed, _, info = mixgen(images, numbered(), NUM, lam)
    for row in range(NUM):
        alone, _, _ = mixgen(images, numbered(), NUM, float(lam[row]))
        assert torch.equal(mixed[row], alone[row])
    assert torch.equal(info.lam[:NUM], lam)


def test_an_empty_caption_keeps_the_separator():
    assert mixgen(torch.rand(2, 1), ["a", ""], 1)[1] == ["a ", ""]
    assert mixgen(torch.rand(2, 1), ["a", "b"], 1, sep=" and ")[1][0] == "a and b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 7}, r"num must be in \[0, 6\].*12, got 7"),
        ({"num": -1}, "num must be in"),
        ({"texts": ["a"]}, "12 images, got 1"),
        ({"texts": [*"abc", 5, *"efghijkl"]}, "got int at 3"),
        ({"lam": 1.5}, r"lam must be in \[0, 1\], got 1.5"),
        ({"lam": float("nan")}, "lam must be in"),
        ({"lam": torch.rand(3)}, "one for each of 4 mixes"),
        ({"images": torch.zeros(12, 3, 4, 4, dtype=torch.uint8)}, "torch.uint8; divide bytes by 255"),
        ({"inplace": True, "drop_sources": True}, "inplace keeps all rows"),
        ({"inplace": True, "texts": tuple("abcdefghijkl")}, "list of texts"),
    ],
)
def test_bad_inputs_say_what_is_wrong(change, message):
    given = {"images": torch.rand(SIZE, 3, 4, 4), "texts": numbered(), "num": NUM, **change}
    with pytest.raises(ValueError, match=message):
        mixgen(**given)
    with pytest.raises(TypeError, match="one string for each image"):
        mixgen(torch.rand(2, 1), "ab")


def test_a_mean_of_words_embeds_the_joined_caption_at_the_weighted_mean():
    texts = ["red disc", "small blue square top left"]
    tokeniser = WordTokeniser.fit(texts)
    table = torch.randn(len(tokeniser), 5, dtype=torch.float64)

    def embed(texts):
        return torch.stack([table[ids[ids != 0]].mean(0) for ids in tokeniser.encode(texts)])

    _, joined, _ = mixgen(torch.rand(2, 1), texts, 1)
    first, second = embed(texts)
    assert_close(embed(joined)[0], (2 * first + 5 * second) / 7, atol=1e-6, rtol=0)


def test_the_part_does_to_word_ids_what_the_function_does_to_strings():
    batch, texts = pair_batch(), numbered()
    mixed = MixGen(share=1 / 3)(batch, rng())
    images, joined, _ = mixgen(batch.x, texts, NUM)
    assert torch.equal(mixed.x, images)
    assert torch.equal(mixed.extra["caption"], WordTokeniser.fit(texts).encode(joined))
    assert torch.equal(mixed.index, torch.arange(SIZE))
    assert_close(mixed.target.dense(SIZE), mixed.x.mean((2, 3)))
    assert torch.equal(batch.x, one_hot_images())
    assert batch.extra["caption"].shape[1] == 2


@pytest.mark.parametrize("drop_sources", [False, True])
def test_labels_are_the_share_of_pixels_with_drawn_shares(drop_sources):
    mixed = MixGen(share=0.5, alpha=0.5, drop_sources=drop_sources)(pair_batch(), rng())
    assert len(mixed) == (6 if drop_sources else SIZE)
    assert_close(mixed.target.dense(SIZE), mixed.x.mean((2, 3)), atol=1e-6, rtol=0)
    assert len(mixed.x[:6].amax((1, 2, 3)).unique()) > 3


def test_rows_that_stay_keep_their_label_number_and_columns_where_sources_are_dropped():
    batch = pair_batch()
    batch = batch.replace(index=100 + torch.arange(SIZE), extra={**batch.extra, "group": 10 * torch.arange(SIZE)})
    mixed = MixGen(share=1 / 3, drop_sources=True)(batch, rng())
    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(mixed.index, 100 + kept)
    assert torch.equal(mixed.extra["group"], 10 * kept)
    assert_close(mixed.target.dense(SIZE), mixed.x.mean((2, 3)), atol=1e-6, rtol=0)
    assert torch.equal(mixed.extra["caption"][4:, :2], batch.extra["caption"][8:])


def test_both_sources_keep_words_where_the_joined_caption_is_cut():
    texts = ["a b c d e f", *["x"] * 5, "s t u v w y", *["x"] * 5]
    tokeniser = WordTokeniser.fit(texts)
    batch = Batch.of(one_hot_images(), torch.arange(SIZE)).replace(extra={"caption": tokeniser.encode(texts)})
    mixed = MixGen(share=0.5, length=7)(batch, rng())
    assert [tokeniser.words[i - 2] for i in mixed.extra["caption"][0].tolist()] == list("abcdstu")
    with pytest.raises(ValueError, match="got 5 for one of 6 words"):
        MixGen(share=0.25, length=5)(batch, rng())


def test_without_a_share_of_rows_captions_are_only_padded():
    batch = pair_batch()
    mixed = MixGen(share=0.0)(batch, rng())
    assert torch.equal(mixed.x, batch.x)
    assert torch.equal(lengths_of(mixed.extra["caption"]), lengths_of(batch.extra["caption"]))


def test_masked_sources_name_the_row_that_is_no_negative():
    mixed = MixGen(share=1 / 3, mask_sources=True)(pair_batch(), rng())
    assert mixed.extra[NOT_NEGATIVE].tolist() == [4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11]
    assert NOT_NEGATIVE not in MixGen()(pair_batch(), rng()).extra


def test_the_default_form_draws_nothing():
    generator = rng()
    before = generator.get_state()
    MixGen()(pair_batch(), generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.6}, r"share must be in \[0, 0.5\]"),
        ({"lam": -0.1}, "lam must be in"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"length": 1}, "length must be at least 2"),
        ({"drop_sources": True, "mask_sources": True}, "choose one"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MixGen(**options)


def test_it_is_refused_where_captions_are_not_learned_from():
    with pytest.raises(ValueError, match="has no column 'caption'"):
        MixGen()(Batch.of(one_hot_images(), torch.arange(SIZE)), rng())
    with pytest.raises(ValueError, match="MixGen needs 'caption_loss'.*--use contrastive"):
        check({"image", "caption", "hard_target"}, [("transform", MixGen())], Procedure())
