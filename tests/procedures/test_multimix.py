"""MultiMix: weights and their moments, plain training and mixup as limits, the dense form, and distillation."""

import copy
import itertools

import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.nn.cnn_small import CNNSmall
from weathered.nn.network import assemble
from weathered.procedures import multimix
from weathered.procedures.multimix import MultiMix, attended, attention_of, draw_weights


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run_of(dataset: Dataset, part, model: str = "cnn_small:width=8", **settings) -> Run:
    settings = Settings(**{"epochs": 1, "batch_size": 16, **settings})
    return Run(lambda seed: build_model(model, dataset, seed=seed), dataset, procedure=part, settings=settings)


def batch_of(dataset: Dataset, size: int = 16) -> Batch:
    rows = torch.arange(size)
    return Batch(dataset.floats(rows), Target.hard(dataset.labels[rows]), rows)


def given(monkeypatch, weights: torch.Tensor) -> None:
    monkeypatch.setattr(multimix, "draw_weights", lambda *_: weights)


def loss_with(run: Run, batch: Batch, part: MultiMix, weights: torch.Tensor, monkeypatch) -> torch.Tensor:
    given(monkeypatch, weights)
    run.begin_step()
    run.model.train()
    return part.loss(run, batch)


@pytest.mark.parametrize(("size", "num_mixed"), [(8, 8), (8, 3), (8, 1), (1, 1)])
def test_weights_are_shares_of_as_many_samples_as_asked(size, num_mixed):
    weights = draw_weights((50,), size, num_mixed, 0.5, 2.0, rng())
    assert bool((weights >= 0).all())
    assert_close(weights.sum(1), torch.ones(50), rtol=0, atol=1e-6)
    assert bool(((weights > 0).sum(1) == num_mixed).all())


def test_moments_of_the_weights_are_those_of_dirichlet():
    weights = draw_weights((4000,), 128, 128, 1.0, 1.0, rng()).double()
    assert_close(weights.mean(0), torch.full((128,), 1 / 128, dtype=torch.float64), rtol=0.1, atol=0)
    expected = (1 / 128) * (1 - 1 / 128) / (128 + 1)
    assert expected == pytest.approx(5.99e-5, rel=0.01)
    assert float(weights.var(0).mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("alpha", "largest"), [(0.5, 0.064), (1.0, 0.042), (2.0, 0.030)])
def test_the_whole_batch_is_mixed_to_near_its_mean(alpha, largest):
    weights = draw_weights((4000,), 128, 128, alpha, alpha, rng())
    assert float(weights.max(1).values.mean()) == pytest.approx(largest, abs=1e-3)


def test_concentrations_are_drawn_for_each_tuple():
    spread = draw_weights((4000,), 16, 16, 0.05, 20.0, rng()).var(1)
    assert float(spread.std() / spread.mean()) > 1
    alike = draw_weights((4000,), 16, 16, 1.0, 1.0, rng()).var(1)
    assert float(alike.std() / alike.mean()) < 0.7


def test_pairs_are_shares_of_mixup():
    weights = draw_weights((10000,), 6, 2, 0.7, 0.7, rng())
    first = weights[torch.arange(10000), (weights > 0).int().argmax(1)]
    assert stats.kstest(first.double().numpy(), stats.beta(0.7, 0.7).cdf).pvalue > 1e-3


def test_tiny_concentrations_give_no_nan():
    assert bool(draw_weights((100,), 8, 8, 1e-6, 1e-6, rng()).isfinite().all())


def test_each_sample_once_is_plain_training(small_digits: Dataset, monkeypatch):
    part = MultiMix(clean_weight=0)
    run, batch = run_of(small_digits, part), batch_of(small_digits)
    found = loss_with(run, batch, part, torch.eye(16), monkeypatch)
    assert_close(found, F.cross_entropy(run.model(batch.x), batch.target.labels[0]), rtol=0, atol=1e-6)


def test_mixed_embeddings_are_mixed_logits_and_the_order_of_samples_is_nothing(small_digits: Dataset, monkeypatch):
    part = MultiMix(clean_weight=0)
    run, batch = run_of(small_digits, part), batch_of(small_digits)
    weights = draw_weights((40,), 16, 16, 0.5, 2.0, rng())
    found = loss_with(run, batch, part, weights, monkeypatch)
    logits, target = weights @ run.model(batch.x), weights @ batch.target.dense(10)
    assert_close(found, F.cross_entropy(logits, target), rtol=0, atol=1e-5)
    entropy = -(target * target.clamp_min(1e-12).log()).sum(1).mean()
    assert found >= entropy
    order = torch.randperm(16, generator=rng())
    moved = Batch(batch.x[order], batch.target.select(order), order)
    assert_close(loss_with(run, moved, part, weights[:, order], monkeypatch), found, rtol=0, atol=1e-5)


def test_the_clean_loss_is_added(small_digits: Dataset, monkeypatch):
    run, batch = run_of(small_digits, MultiMix()), batch_of(small_digits)
    weights = draw_weights((40,), 16, 2, 0.5, 2.0, rng())
    both = loss_with(run, batch, MultiMix(clean_weight=0.5), weights, monkeypatch)
    alone = loss_with(run, batch, MultiMix(clean_weight=0), weights, monkeypatch)
    clean = F.cross_entropy(run.model(batch.x), batch.target.labels[0])
    assert_close(both, alone + 0.5 * clean, rtol=0, atol=1e-5)


def maps_of_images() -> torch.Tensor:
    return torch.rand(5, 6, 9, dtype=torch.float64, generator=rng())


def test_attention_sums_to_one_over_positions():
    maps = maps_of_images()
    for normaliser in ("relu", "softmax"):
        attention = attention_of(maps, maps.mean(2), normaliser)
        assert_close(attention.sum(1), torch.ones(5, dtype=torch.float64))
        assert not attention.requires_grad
    assert bool((attention_of(-maps, maps.mean(2)) == 0).all())


def test_equal_attention_leaves_the_weights_and_none_falls_back_to_them():
    weights = draw_weights((9, 20), 5, 5, 0.5, 2.0, rng()).double()
    assert_close(attended(weights, torch.full((5, 9), 1 / 9, dtype=torch.float64)), weights, rtol=0, atol=1e-6)
    attention = torch.rand(5, 9, dtype=torch.float64, generator=rng())
    attention[2, 4] = 0
    attention[:, 7] = 0
    found = attended(weights, attention)
    assert_close(found.sum(2), torch.ones(9, 20, dtype=torch.float64))
    assert bool((found[4, :, 2] == 0).all())
    assert torch.equal(found[7], weights[7])


def test_logits_of_positions_average_to_those_of_the_image(small_digits: Dataset):
    run, batch = run_of(small_digits, MultiMix(dense=True)), batch_of(small_digits)
    maps = run.model.eval().forward_features(batch.x).flatten(2)
    by_position = run.model.get_classifier()(maps.permute(2, 0, 1)).mean(0)
    assert_close(by_position, run.model(batch.x), rtol=0, atol=1e-5)


def test_dense_on_maps_without_contrast_is_multimix(small_digits: Dataset, monkeypatch):
    run, batch = run_of(small_digits, MultiMix()), batch_of(small_digits)
    maps = torch.rand(16, 16, 1, 1, generator=rng())
    monkeypatch.setattr(run.model, "forward_features", lambda x: maps.expand(-1, -1, 2, 2))
    weights = draw_weights((30,), 16, 16, 0.5, 2.0, rng())
    plain = loss_with(run, batch, MultiMix(clean_weight=0), weights, monkeypatch)
    # every sample pays a quarter to each of its four positions
    dense = loss_with(run, batch, MultiMix(clean_weight=0, dense=True), weights.expand(4, 30, 16), monkeypatch)
    assert_close(dense, plain, rtol=0, atol=1e-5)


def photographs(size: int = 64) -> Dataset:
    pixels = torch.randint(256, (16, 3, size, size), dtype=torch.uint8, generator=rng())
    return Dataset.of(pixels, torch.arange(16) % 3)


def dense_by_hand(network, batch: Batch, weights: torch.Tensor, classes: int) -> torch.Tensor:
    """Position by position: attention, mixtures, and the head on a map of one position."""
    maps, p = network.forward_features(batch.x), batch.target.dense(classes)
    with torch.no_grad():
        pays = (maps * maps.mean((2, 3), keepdim=True)).sum(1).clamp_min(0).flatten(1)
        pays = pays / pays.sum(1, keepdim=True)
    losses = []
    for j, (row, column) in enumerate(itertools.product(*map(range, maps.shape[2:]))):
        share = weights[j] * pays[:, j]
        share = share / share.sum(1, keepdim=True)
        logits = network.forward_head((share @ maps[:, :, row, column])[:, :, None, None])
        losses.append(F.cross_entropy(logits, share @ p))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("model", ["cnn_small:width=8", "timm:convnext_atto", "timm:mobilenetv3_small_050"])
def test_the_dense_loss_and_its_gradient_are_those_of_each_position(model, monkeypatch):
    """Attention is a constant, and layers between the maps and the classifier act on positions."""
    data = photographs(8 if model.startswith("cnn") else 64)
    part = MultiMix(clean_weight=0, dense=True)
    run, batch = run_of(data, part, model), batch_of(data)
    with torch.no_grad():
        maps = run.model.eval().forward_features(batch.x)
    weights = draw_weights((maps.shape[2] * maps.shape[3], 20), 16, 16, 0.5, 2.0, rng())
    given(monkeypatch, weights)
    run.begin_step()
    found, expected = part.loss(run, batch), dense_by_hand(run.model, batch, weights, 3)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    first = next(p for p in run.model.parameters() if p.ndim == 4)
    gradients = [torch.autograd.grad(loss, first)[0] for loss in (found, expected)]
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_weights_are_drawn_for_each_position(small_digits: Dataset, monkeypatch):
    drawn = []
    monkeypatch.setattr(multimix, "draw_weights", lambda *asked: drawn.append(draw_weights(*asked)) or drawn[-1])
    part = MultiMix(dense=True, num_tuples=30, num_mixed=3)
    run = run_of(small_digits, part)
    run.begin_step()
    part.loss(run, batch_of(small_digits))
    assert drawn[-1].shape == (4, 30, 16)
    assert bool(((drawn[-1] > 0).sum(2) == 3).all())
    assert not torch.equal(drawn[-1][0], drawn[-1][1])


@pytest.mark.parametrize("dense", [False, True])
def test_both_parts_of_the_loss_train_the_whole_network(small_digits: Dataset, monkeypatch, dense):
    run, batch = run_of(small_digits, MultiMix()), batch_of(small_digits)
    weights = draw_weights((4, 30) if dense else (30,), 16, 4, 0.5, 2.0, rng())
    first = run.model.body.stages[0][0][0].weight

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, first)[0]

    both, mixed = (
        gradient(loss_with(run, batch, MultiMix(clean_weight=w, dense=dense), weights, monkeypatch)) for w in (2.0, 0.0)
    )
    clean = gradient(F.cross_entropy(run.model(batch.x), batch.target.labels[0]))
    assert mixed.abs().max() > 0
    assert_close(both, mixed + 2 * clean, rtol=1e-3, atol=1e-6)


def test_distillation_of_the_network_itself_has_no_gradient_on_single_samples(small_digits: Dataset, monkeypatch):
    part = MultiMix(clean_weight=0, gamma=1.0)
    run, batch = run_of(small_digits, part, "mlp:width=16"), batch_of(small_digits)
    run.modules[multimix.TEACHER].load_state_dict(run.model.state_dict())
    loss = loss_with(run, batch, part, torch.eye(16), monkeypatch)
    gradients = torch.autograd.grad(loss, list(run.model.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-6


def test_the_teacher_is_the_average_and_learns_nothing_itself(small_digits: Dataset):
    run = run_of(small_digits, MultiMix(gamma=0.5, momentum=0.9, num_tuples=20), "mlp:width=16")
    teacher = run.modules[multimix.TEACHER]
    before, start = copy.deepcopy(teacher.state_dict()), copy.deepcopy(run.model.state_dict())
    fit(run, max_steps=1)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(before[name], start[name])
        assert_close(teacher.state_dict()[name], 0.9 * before[name] + 0.1 * parameter.detach())
    assert multimix.TEACHER not in run_of(small_digits, MultiMix()).modules


def test_the_network_is_called_once_whatever_the_number_of_mixtures(small_digits: Dataset):
    calls = []
    run = run_of(small_digits, MultiMix(num_tuples=500))
    run.model.body.stages[0].register_forward_hook(lambda *_: calls.append(1))
    fit(run, max_steps=2)
    assert len(calls) == 2


@pytest.mark.parametrize("part", [{"num_mixed": 2}, {"dense": True, "num_tuples": 50}, {"gamma": 0.5}], ids=str)
def test_a_run_learns(small_digits: Dataset, part):
    run = fit(run_of(small_digits, MultiMix(**part), epochs=6, optimizer="adam", lr=3e-3))
    assert (run.predict(small_digits).argmax(1) == small_digits.labels).double().mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tuples": 0}, "num_tuples must be in"),
        ({"num_mixed": 0}, "num_mixed must be in .*, got 0"),
        ({"num_mixed": 0}, "num_mixed must be in"),
        ({"alpha_low": 0.0}, "0 < alpha_low <= alpha_high"),
        ({"alpha_low": 3.0}, "0 < alpha_low <= alpha_high"),
        ({"attention": "none"}, "attention must be"),
        ({"clean_weight": -1.0}, "clean_weight must be in"),
        ({"gamma": 1.5}, "gamma must be in"),
        ({"momentum": 2.0}, "momentum must be in"),
    ],
    ids=str,
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MultiMix(**options)


def test_more_samples_than_the_batch_holds_and_networks_without_maps():
    with pytest.raises(ValueError, match="the size of the batch, got 9"):
        draw_weights((3,), 8, 9, 0.5, 2.0, rng())


def test_a_run_does_not_lower_the_number_of_samples_by_itself(small_digits: Dataset):
    run_of(small_digits, MultiMix(num_mixed=16))
    with pytest.raises(SpecError, match="num_mixed=17 samples cannot be mixed from a batch of 16 on each device"):
        run_of(small_digits, MultiMix(num_mixed=17))


def test_a_dense_form_needs_maps(small_digits: Dataset):
    with pytest.raises(SpecError, match="gives .*leave dense out"):
        run_of(small_digits, MultiMix(dense=True), "mlp:width=16")

    class Flat(CNNSmall):
        def forward_head(self, x, pre_logits=True):
            return x.flatten(1)

    flat = Flat(1, 8)
    flat.num_features = 64
    with pytest.raises(SpecError, match=r"gives \(1, 16, 2, 2\) and a head of 64 features; leave dense out"):
        Run(assemble(flat, small_digits, "linear"), small_digits, procedure=MultiMix(dense=True))


@pytest.mark.parametrize("options", [{"gamma": 0.5, "momentum": 0.9}, {"dense": True, "num_mixed": 2}], ids=str)
def test_a_resumed_run_is_the_same(images, assert_resumes, options):
    assert_resumes(lambda: run_of(images, MultiMix(num_tuples=20, **options), epochs=2))
