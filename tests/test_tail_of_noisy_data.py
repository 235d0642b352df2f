"""Which classes are rare is told by true labels: wrong ones fill rare classes up."""

import torch

from weathered.data.dataset import Dataset
from weathered.data.prepare import Splits
from weathered.training import standard_audits


def test_head_and_tail_go_by_the_true_labels():
    true = torch.tensor([0] * 30 + [1] * 10 + [2] * 2)
    noisy = true.clone()
    noisy[:20] = 2
    train = Dataset.of(torch.rand(42, 4), noisy, class_names=("a", "b", "c")).replace(clean_labels=true)
    test = Dataset.of(torch.rand(6, 4), torch.arange(6) % 3, class_names=("a", "b", "c"))
    logits = torch.zeros(6, 3)
    logits[:, 2] = 1
    assert train.class_counts.tolist() == [10, 10, 22]
    assert train.true_class_counts.tolist() == [30, 10, 2]
    summary = standard_audits(logits, Splits(train, None, test))[0].summary
    assert summary["tail accuracy"].value == 1
    assert summary["head accuracy"].value == 0


def test_rows_of_no_class_count_nowhere():
    train = Dataset.of(torch.rand(3, 4), torch.tensor([0, 1, 1])).replace(clean_labels=torch.tensor([0, -1, 1]))
    assert train.true_class_counts.tolist() == [1, 1]
