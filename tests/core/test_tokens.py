"""Words, vocabulary, unknown words, padding, and captions that are joined after they became ids."""

import pytest
import torch

from weathered.core.tokens import WordTokeniser, join_tokens, lengths_of, widened, words_of


def test_words_are_lower_case_runs_of_letters_and_digits():
    assert words_of("A dog's ball, 2 m off -- Überall!") == ["a", "dog's", "ball", "2", "m", "off", "überall"]
    assert words_of(" ,.") == []


def test_the_vocabulary_is_that_of_the_captions_it_was_fitted_on():
    tokeniser = WordTokeniser.fit(["red disc", "Red square"])
    assert tokeniser.words == ("disc", "red", "square")
    assert len(tokeniser) == 5
    assert tokeniser.encode(["square RED blue", "disc"]).tolist() == [[4, 3, 1], [2, 0, 0]]
    assert WordTokeniser.fit(["red disc", "red square"], least=2).words == ("red",)


def test_texts_are_cut_and_padded_to_a_length():
    tokeniser = WordTokeniser(["a", "b", "c"])
    assert tokeniser.encode(["a b c", "c"], 2).tolist() == [[2, 3], [4, 0]]
    assert tokeniser.encode(["a"], 3).tolist() == [[2, 0, 0]]
    assert tokeniser.encode([]).shape == (0, 0)
    assert tokeniser.encode(["", ""]).shape == (2, 0)


@pytest.mark.parametrize("length", [None, 2, 3, 5, 6, 7, 8, 20])
def test_a_joined_caption_keeps_words_of_both_halves(length):
    """Against a plain loop over lists."""
    first = torch.tensor([[5, 6, 7, 8], [5, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]])
    second = torch.tensor([[15, 16, 17, 18, 19], [15, 16, 17, 18, 19], [15, 0, 0, 0, 0], [15, 16, 0, 0, 0]])
    joined = join_tokens(first, second, length)
    room = length or 9
    for row, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        own, rest = [i for i in one if i], [i for i in other if i]
        while len(own) + len(rest) > room:
            longer = own if len(own) > len(rest) or (len(own) == len(rest) and room % 2 == 0) else rest
            longer.pop()
        words = own + rest
        assert joined[row].tolist() == words + [0] * (room - len(words))


def test_without_a_cut_lengths_add_up():
    texts = ["a b c", "", "a"]
    tokeniser = WordTokeniser.fit(texts)
    tokens = tokeniser.encode(texts)
    joined = join_tokens(tokens, tokens.flip(0))
    assert torch.equal(lengths_of(joined), lengths_of(tokens) + lengths_of(tokens.flip(0)))
    strings = [f"{one} {other}" for one, other in zip(texts, texts[::-1], strict=True)]
    assert torch.equal(widened(tokeniser.encode(strings), 6), joined)
    assert torch.equal(tokeniser.encode_joined(texts, texts[::-1]), joined)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WordTokeniser(["a", "a"]), "1 words twice"),
        (lambda: WordTokeniser(["Red"]), "got 'Red'"),
        (lambda: WordTokeniser.fit(["a"], least=0), "least must be at least 1"),
        (lambda: WordTokeniser(["a"]).encode(["a"], 0), "length must be at least 1"),
        (lambda: join_tokens(torch.ones(2, 3).long(), torch.ones(3, 3).long()), r"\(2, 3\) and \(3, 3\)"),
        (lambda: join_tokens(torch.ones(2, 3).long(), torch.ones(2, 3).long(), 1), "length must be at least 2"),
        (lambda: widened(torch.ones(2, 3).long(), 2), "captions of 3 words do not fit 2"),
    ],
)
def test_bad_inputs_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
