"""Recall: limits, ties, captions that several images share, and against a plain loop."""

import pytest
import torch

from weathered.audit.retrieval import audit_retrieval, ranks, ranks_of_pairs, recall_at
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.sources import load
from weathered.nn.build import build_model
from weathered.procedures.contrastive import Contrastive


def test_equal_pairs_are_found_and_a_collapsed_model_finds_nothing():
    keys = torch.arange(5)
    assert ranks(torch.eye(5), torch.eye(5), keys, keys).tolist() == [1] * 5
    alike = torch.ones(5, 3)
    assert ranks(alike, alike, keys, keys).tolist() == [5] * 5


def test_a_shared_caption_is_right_for_each_of_its_images():
    queries = torch.eye(3)
    candidates = torch.tensor([[0.9, 0.1, 0.1], [0.2, 0.3, 0.1]])
    assert ranks(queries, candidates, torch.tensor([0, 1, 0]), torch.arange(2)).tolist() == [1, 1, 2]
    # the other way round the closest of several right images counts
    images = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.5, 0.0]])
    assert ranks(torch.tensor([[1.0, 0.0]]), images, torch.tensor([0]), torch.tensor([0, 0, 1])).tolist() == [1]


def test_ranks_are_those_of_a_plain_loop_over_several_blocks():
    rng = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(600, 4, generator=rng), torch.randn(40, 4, generator=rng)
    keys = torch.randint(40, (600,), generator=rng)
    found = ranks(queries, candidates, keys, torch.arange(40))
    order = (queries @ candidates.T).argsort(1, descending=True)
    assert found.tolist() == [order[i].tolist().index(int(keys[i])) + 1 for i in range(600)]


def test_pairs_of_a_model_are_ranked_in_both_directions():
    """By a loop over an untrained model; images 0, 5 and 9 share a caption. The directions give different ranks."""
    pairs = load("captions:30")
    captions = pairs.extra["caption"].clone()
    captions[[5, 9]] = captions[0].clone()
    pairs = pairs.replace(extra={"caption": captions})
    procedure = Contrastive(dim=6, hidden=8)
    run = Run(build_model("cnn_small:width=8", pairs), pairs, procedure=procedure, settings=Settings(batch_size=10))
    towers = procedure.towers.eval()
    with torch.no_grad():
        images, texts = towers(pairs.floats(torch.arange(30))), towers.embed_captions(captions)
    closeness = (images @ texts.T).tolist()
    same = (captions[:, None] == captions).all(2).tolist()
    distinct = [i for i in range(30) if i not in (5, 9)]
    of_caption = [1 + sum(closeness[i][j] >= closeness[i][i] for j in distinct if not same[i][j]) for i in range(30)]
    of_image = [
        1 + sum(closeness[j][i] >= max(closeness[k][i] for k in range(30) if same[k][i]) and not same[j][i]
                for j in range(30))
        for i in range(30)
    ]  # fmt: skip
    found = ranks_of_pairs(towers.train(), pairs, run)
    assert [ranks.tolist() for ranks in found] == [of_caption, of_image]
    assert of_caption != of_image
    assert towers.training


def test_the_audit_counts_both_ways():
    found = audit_retrieval(torch.tensor([1, 1, 2, 7]), torch.tensor([1, 4, 6, 9])).summary
    values = {name: (estimate.value, estimate.n) for name, estimate in found.items()}
    assert values == {
        "image to text recall at 1": (0.5, 4),
        "text to image recall at 1": (0.25, 4),
        "image to text recall at 5": (0.75, 4),
        "text to image recall at 5": (0.5, 4),
    }
    assert recall_at(torch.tensor([1, 3]), 3).value == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks(torch.full((1, 2), torch.nan), torch.ones(1, 2), torch.zeros(1), torch.zeros(1)), "finite"),
        (lambda: ranks(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), torch.zeros(1)), "candidate with its key"),
        (lambda: audit_retrieval(torch.ones(2).long(), torch.ones(3).long()), "one rank in each direction"),
        (lambda: audit_retrieval(torch.zeros(2).long(), torch.ones(2).long()), "count from 1"),
    ],
)
def test_bad_inputs_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
