"""Data makers: exact numbers of flaws, exact truth, the given data untouched."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.corruptions import corrupt
from weathered.data.dataset import Dataset
from weathered.data.makers import AsymmetricNoise, Corruption, InstanceNoise, LongTail, OpenSetNoise, SymmetricNoise
from weathered.data.makers.instance_noise import pick_in_proportion, truncated_normal
from weathered.data.makers.long_tail import long_tail_counts

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def random_data(size=500, classes=5, names=None, seed=0):
    rng = generator(seed, "data")
    x = torch.randint(0, 256, (size, 1, 4, 4), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, classes, (size,), generator=rng)
    return Dataset.of(x, labels, names or tuple(str(c) for c in range(classes)))


NOISES = [SymmetricNoise, InstanceNoise, AsymmetricNoise]


@pytest.mark.parametrize("noise", NOISES)
@settings(deadline=None)
@given(size=st.integers(1, 80), rate=st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.7, 1.0]), seed=st.integers(0, 5))
def test_exactly_the_rate_of_labels_changes_and_the_truth_is_kept(noise, size, rate, seed):
    data = random_data(size, 4, seed=seed)
    before = data.labels.clone()
    out = noise(rate)(data, generator(seed, "noise"))
    assert int((out.labels != before).sum()) == math.floor(rate * size + 1e-9)
    assert torch.equal(out.clean_labels, before)
    assert torch.equal(data.labels, before)
    assert out.clean_labels.data_ptr() != data.labels.data_ptr()
    assert out.labels.data_ptr() != data.labels.data_ptr()
    assert len(out.notes) == 1


@pytest.mark.parametrize("noise", NOISES)
def test_truth_that_was_there_stays_the_truth(noise):
    data = random_data()
    truth = (data.labels + 1) % 5
    truth[0] = -1
    out = noise(0.5)(data.replace(clean_labels=truth), generator(0, "noise"))
    assert torch.equal(out.clean_labels, truth)
    assert out.clean_labels.data_ptr() != truth.data_ptr()


@pytest.mark.parametrize("noise", NOISES)
def test_same_generator_same_labels(noise):
    data = random_data()
    first, again, other = (noise(0.4)(data, generator(seed, "noise")).labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_symmetric_noise_reaches_all_other_classes_alike():
    data = Dataset.of(torch.zeros(30_000, 1), torch.zeros(30_000, dtype=torch.long), tuple("abcd"))
    counts = SymmetricNoise(0.6)(data, generator(0, "noise")).class_counts
    assert int(counts[0]) == 12_000
    # three classes share 18,000: 6,000 each, standard deviation 63
    assert (counts[1:] - 6000).abs().max() < 300


def test_asymmetric_noise_uses_the_known_map_of_cifar10():
    data = random_data(2000, 10, CIFAR10)
    out = AsymmetricNoise(0.4)(data, generator(0, "noise"))
    changed = out.labels != data.labels
    pairs = {(CIFAR10[a], CIFAR10[b]) for a, b in zip(data.labels[changed], out.labels[changed], strict=True)}
    assert pairs == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("deer", "horse"),
        ("cat", "dog"),
        ("dog", "cat"),
    }
    affected = torch.isin(data.labels, torch.tensor([2, 3, 4, 5, 9]))
    assert int(changed.sum()) == int(0.4 * int(affected.sum()))


def test_asymmetric_noise_goes_to_the_next_class_otherwise():
    data = random_data()
    out = AsymmetricNoise(1.0)(data, generator(0, "noise"))
    assert torch.equal(out.labels, (data.labels + 1) % 5)


def test_asymmetric_noise_with_a_map_of_names_and_numbers():
    data = random_data(300, 3, ("a", "b", "c"))
    out = AsymmetricNoise(1.0, {"a": "c", 1: 0})(data, generator(0, "noise"))
    assert torch.equal(out.labels, torch.tensor([2, 0, 2])[data.labels])
    with pytest.raises(DataError, match="class_map names the class 'd'"):
        AsymmetricNoise(0.5, {"d": "a"})(data, generator(0, "noise"))


def test_instance_noise_is_decided_by_the_input():
    """Equal images of one class get equal labels far more often than symmetric noise would give."""
    rng = generator(0, "data")
    kinds = torch.randint(0, 256, (4, 1, 6, 6), generator=rng, dtype=torch.uint8)
    kind = torch.randint(0, 4, (4000,), generator=rng)
    data = Dataset.of(kinds[kind], torch.zeros(4000, dtype=torch.long), tuple("abcdefgh"))

    def agreement(part):
        out = part(data, generator(1, "noise")).labels
        wrong = out != 0
        return [float(torch.bincount(out[wrong & (kind == k)]).max() / (wrong & (kind == k)).sum()) for k in range(4)]

    # two of the seven other classes may be nearly tied for an image; without content every class has 1/7
    assert min(agreement(InstanceNoise(0.5))) > 0.3
    assert sum(agreement(InstanceNoise(0.5))) / 4 > 0.6
    assert max(agreement(SymmetricNoise(0.5))) < 0.25


def test_truncated_normal_has_the_right_centre_and_spread():
    draws = truncated_normal(20_000, 0.4, 0.1, generator(0, "draws"))
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert draws.mean() == pytest.approx(0.4, abs=0.005)
    assert draws.std() == pytest.approx(0.1, abs=0.005)
    edge = truncated_normal(20_000, 0.0, 0.1, generator(0, "draws"))
    assert edge.min() >= 0
    assert edge.mean() == pytest.approx(0.1 * math.sqrt(2 / math.pi), abs=0.005)


def test_picks_are_exact_and_in_proportion():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0], dtype=torch.float64)
    total = torch.zeros(5)
    rng = generator(0, "picks")
    for _ in range(3000):
        mask = pick_in_proportion(weights, 2, rng)
        assert int(mask.sum()) == 2
        total += mask
    # the last is certain, the others share the second pick
    assert total[4] == 3000
    assert (total[:4] / 3000 - weights[:4]).abs().max() < 0.04


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("exp", [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]), ("step", [5000] * 5 + [50] * 5)],
)
def test_long_tail_counts_of_cifar10_at_100_to_1(kind, expected):
    counts = long_tail_counts(torch.full((10,), 5000), 100, kind)
    assert counts.tolist() == expected


@settings(deadline=None)
@given(
    available=st.lists(st.integers(1, 400), min_size=2, max_size=12),
    imbalance=st.sampled_from([1, 1.5, 10, 50, 100]),
    kind=st.sampled_from(["exp", "step"]),
)
def test_long_tail_counts_fit_what_there_is_and_are_the_largest(available, imbalance, kind):
    available = torch.tensor(available)
    counts = long_tail_counts(available, imbalance, kind)
    assert (counts <= available).all()
    assert (counts[1:] <= counts[:-1]).all()
    position = torch.arange(len(available), dtype=torch.float64)
    exponent = position / (len(available) - 1) if kind == "exp" else (position >= len(available) // 2).double()
    larger = ((int(counts[0]) + 1) * imbalance**-exponent + 1e-9).long()
    assert (larger > available).any()


def test_long_tail_keeps_rows_together_and_in_order():
    data = random_data(1000, 5)
    data = data.replace(clean_labels=(data.labels + 1) % 5, extra={"row": torch.arange(1000)})
    out = LongTail(10)(data, generator(0, "tail"))
    rows = out.extra["row"]
    assert (rows[1:] > rows[:-1]).all()
    assert torch.equal(out.labels, data.labels[rows])
    assert torch.equal(out.clean_labels, data.clean_labels[rows])
    assert torch.equal(out.inputs.fetch(torch.arange(len(out))), data.inputs.fetch(rows))
    assert torch.equal(out.class_counts, long_tail_counts(data.class_counts, 10, "exp"))
    other = LongTail(10)(data, generator(1, "tail")).extra["row"]
    assert not torch.equal(rows, other)


def test_imbalance_one_keeps_balanced_data():
    data = Dataset.of(torch.zeros(30, 2), torch.arange(30) % 3)
    assert len(LongTail(1)(data, generator(0, "tail"))) == 30


def test_long_tail_names_the_first_class_that_would_be_empty():
    # about 100 rows: class 3 of 5 would keep 100 * 1000^(-3/4) = 0.56
    with pytest.raises(DataError, match=r"leaves the class '3' without a row.*smaller imbalance"):
        LongTail(1000)(random_data(), generator(0, "tail"))


def test_open_set_noise_shows_other_images_under_the_same_labels():
    data = random_data(200)
    source = Dataset.of(torch.full((30, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(30, dtype=torch.long))
    source = source.replace(name="white")
    everything = torch.arange(200)
    before = data.inputs.fetch(everything).clone()
    out = OpenSetNoise(0.3, source)(data, generator(0, "open"))
    white = (out.inputs.fetch(everything) == 255).flatten(1).all(1)
    assert int(white.sum()) == 60
    assert torch.equal(out.clean_labels == -1, white)
    assert torch.equal(out.labels, data.labels)
    assert torch.equal(out.clean_labels[~white], data.labels[~white])
    assert torch.equal(out.inputs.fetch(everything)[~white], before[~white])
    assert torch.equal(data.inputs.fetch(everything), before)
    picked = torch.tensor([5, 199, 0, 5])
    assert torch.equal(out.select(picked).inputs.fetch(torch.arange(4)), out.inputs.fetch(picked))


def test_open_set_noise_uses_each_image_once_while_they_last():
    x = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    source = Dataset.of(x + 100, torch.zeros(40, dtype=torch.long))
    data = Dataset.of(x.clone(), torch.arange(40) % 2)
    out = OpenSetNoise(0.5, source)(data, generator(0, "open"))
    shown = out.inputs.fetch(torch.arange(40)).flatten()
    foreign = shown[out.clean_labels == -1]
    assert len(foreign) == len(set(foreign.tolist())) == 20
    assert foreign.min() >= 100


def test_open_set_noise_refuses_another_shape():
    source = Dataset.of(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
    with pytest.raises(DataError, match=r"\(3, 4, 4\).*\(1, 4, 4\)"):
        OpenSetNoise(0.1, source)(random_data(), generator(0, "open"))


def test_corruption_changes_images_and_nothing_else():
    data = random_data(300)
    out = Corruption("contrast", 3)(data, generator(0, "corruption"))
    everything = torch.arange(300)
    expected = corrupt(data.floats(everything), "contrast", 3, generator(0, "corruption"))
    assert (out.floats(everything) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(out.labels, data.labels)
    assert out.clean_labels is None
    first, again, other = (Corruption("fog", 2)(data, generator(s, "c")).inputs.fetch(everything) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="no corruption 'mist'"):
        Corruption("mist", 1)
    with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5, got 6"):
        Corruption("fog", 6)
    with pytest.raises(DataError, match="need images"):
        Corruption("fog", 1)(Dataset.of(torch.zeros(3, 2), torch.arange(3)), generator(0, "c"))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("noise", [*NOISES, lambda rate: OpenSetNoise(rate, random_data(3))])
def test_rates_out_of_range(noise, rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
        noise(rate)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="imbalance must be a finite number >= 1, got 0"):
        LongTail(0.5)
    with pytest.raises(ValueError, match="imbalance"):
        LongTail(float("inf"))
    with pytest.raises(ValueError, match="kind must be 'exp' or 'step', got 'linear'"):
        LongTail(10, "linear")
    with pytest.raises(ValueError, match="class_map"):
        AsymmetricNoise(0.1, {})
    one_class = Dataset.of(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    for part in (SymmetricNoise(0.5), AsymmetricNoise(0.5), InstanceNoise(0.5), LongTail(2)):
        with pytest.raises(DataError, match="at least 2 classes, got 1"):
            part(one_class, generator(0, "maker"))
