"""Training of a Chroma-VAE: the losses by hand, what the label reaches, stage 2, resuming, what is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.shortcut import Shortcut
from weathered.loaded_run import load_run
from weathered.losses.gce import GeneralizedCrossEntropy
from weathered.mixing.mixup import MixUp
from weathered.nn import latent_heads
from weathered.nn.build import build_model
from weathered.nn.chroma_vae import ChromaNetwork
from weathered.procedures.chroma_vae import FIGURES, ChromaVAE, stage_one
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

SPEC = "chroma-vae:d1=2,d2=6,width=32"
SETTINGS = Settings(epochs=2, batch_size=50, optimizer="adam", lr=0.002, weight_decay=0.0)
ROWS = torch.arange(50)


def cued(data, agreement: float | None = 1.0):
    maker = Shortcut(halves=True, test_agreement=agreement)
    return maker.test_set(data, generator(0, "cues"))


def run_of(data, spec: str = SPEC, settings: Settings = SETTINGS, procedure=None, **parts) -> Run:
    return Run(build_model(spec, data), data, procedure=procedure or ChromaVAE(), settings=settings, **parts)


def network_of(run: Run) -> ChromaNetwork:
    assert isinstance(run.model, ChromaNetwork)
    return run.model


def batch_of(run: Run, rows=ROWS):
    return run.prepare(run.train.floats(rows), run.train.labels[rows], rows)


def beta_vae(network: ChromaNetwork, x: torch.Tensor, noise: torch.Tensor, beta: float) -> torch.Tensor:
    """A beta-VAE over all latents at once, as textbooks have it."""
    mean, log_variance = network.blocks.encoder((x - network.mean) / network.std).chunk(2, 1)
    posterior = Normal(mean, (log_variance / 2).exp())
    output = network.blocks.decoder(posterior.mean + posterior.stddev * noise)
    reconstruction = F.binary_cross_entropy_with_logits(output, x, reduction="sum") / len(x)
    return reconstruction + beta * kl_divergence(posterior, Normal(0, 1)).sum() / len(x)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_without_the_label_it_is_a_beta_vae_with_its_gradients(small_digits, beta):
    run = run_of(cued(small_digits), procedure=ChromaVAE(label_weight=0.0, beta=beta))
    network, batch = network_of(run), batch_of(run)
    run.begin_step()
    noise = torch.randn(50, 8, generator=run.generator("chroma-vae"))
    run.begin_step()
    found, expected = run.procedure.loss(run, batch), beta_vae(network, batch.x, noise, beta)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    parameters = [p for p in (*network.blocks.encoder.parameters(), *network.blocks.decoder.parameters())]
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for one, other in pairs:
        assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_without_the_label_blocks_are_names_alone(small_digits):
    """Latents that change places, with their weights and draws, change neither loss."""
    run = run_of(cued(small_digits))
    network, batch = network_of(run), batch_of(run)
    twin, order = copy.deepcopy(network), torch.tensor([5, 3, 0, 7, 1, 2, 6, 4])
    last, first = twin.blocks.encoder[-1], twin.blocks.decoder[0]
    assert isinstance(last, nn.Linear)
    assert isinstance(first, nn.Linear)
    both = torch.cat([order, order + 8])
    with torch.no_grad():
        last.weight.copy_(last.weight[both])
        last.bias.copy_(last.bias[both])
        first.weight.copy_(first.weight[:, order])
        noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        here = stage_one(network, batch.x, batch.target.single(), noise)
        there = stage_one(twin, batch.x, batch.target.single(), noise[:, order])
    for one, other in zip(here[:2], there[:2], strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(here[2], there[2], atol=1e-3)


def test_the_label_reaches_the_first_block_alone(small_digits):
    run = run_of(cued(small_digits))
    network, batch = network_of(run), batch_of(run)
    noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    last = network.blocks.encoder[-1]
    assert isinstance(last, nn.Linear)
    loss = stage_one(network, batch.x, batch.target.single(), noise)[2].mean()
    weight, bias = torch.autograd.grad(loss, [last.weight, last.bias])
    blocks = torch.zeros(16, dtype=torch.bool)
    blocks[[0, 1, 8, 9]] = True
    assert bool(weight[blocks].any(1).all())
    assert not weight[~blocks].any()
    assert not bias[~blocks].any()


def test_the_loss_is_the_weighted_sum_of_its_parts(small_digits):
    run = run_of(cued(small_digits), procedure=ChromaVAE(label_weight=7.0, beta=0.5))
    run.begin_step()
    total = run.procedure.loss(run, batch_of(run)).item()
    figures = run.procedure.metrics()
    assert list(figures) == list(FIGURES)
    reconstruction, kl, shortcut = figures.values()
    assert total == pytest.approx(reconstruction + 0.5 * kl + 7.0 * shortcut, rel=1e-5)
    # a sum over 64 pixels in nats, about 0.69 each at the start
    assert 30 < reconstruction < 60


def test_the_mean_figures_are_those_of_the_present_epoch(small_digits):
    run = fit(run_of(cued(small_digits)))
    assert int(run.procedure.state_dict()["sums"][-1]) == 4


@pytest.mark.parametrize("head", ["knn", "linear", "mlp"])
def test_stage_two_leaves_stage_one_as_it_is(small_digits, head, monkeypatch):
    monkeypatch.setattr(latent_heads, "STEPS", 20)
    data = cued(small_digits)
    run = fit(run_of(data, procedure=ChromaVAE(head=head)), max_steps=7)
    network = network_of(run)
    kept = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("head.")}
    run.procedure.after_step(run)
    assert network.head.is_fitted
    for name, value in kept.items():
        assert torch.equal(network.state_dict()[name], value), name
    fitted = {name: value.clone() for name, value in network.head.state_dict().items()}
    run.procedure.after_step(run)
    for name, value in fitted.items():
        assert torch.equal(network.head.state_dict()[name], value), name
    assert all(p.grad is None for p in network.head.parameters())


def test_the_head_votes_by_means_of_the_training_rows(small_digits):
    data = cued(small_digits)
    run = fit(run_of(data))
    network = network_of(run).eval()
    with torch.no_grad():
        _, second = network.encode(data.floats(torch.arange(len(data))))
    assert torch.equal(network.head.features, second)
    assert torch.equal(network.head.labels, data.labels)
    assert torch.equal(run.predict(data), run.predict(data))


def test_predictions_before_the_end_are_by_a_head_of_the_moment(small_digits):
    data = cued(small_digits)
    run = run_of(data)
    first = network_of(run).eval()
    with torch.no_grad():
        assert torch.equal(run.predict(data), first.shortcut_logits(data.floats(torch.arange(len(data)))))
    fit(run, max_steps=3)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    logits = run.predict(data)
    assert not network_of(run).head.is_fitted
    for name, value in before.items():
        assert torch.equal(run.model.state_dict()[name], value), name
    there = run.procedure.predictor(run)
    assert isinstance(there, ChromaNetwork)
    assert there.head.is_fitted
    assert torch.equal(there.eval()(data.floats(torch.arange(len(data)))), logits)


@pytest.mark.parametrize("head", ["knn", "mlp"])
def test_a_resumed_run_is_the_whole_one_bit_for_bit(small_digits, head, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_heads, "STEPS", 20)
    data = cued(small_digits)
    procedure = ChromaVAE(head=head)
    whole = fit(run_of(data, procedure=procedure))
    half = fit(run_of(data, procedure=ChromaVAE(head=head)), max_steps=5)
    half.predict(data)
    save_checkpoint(tmp_path, half.state_dict(), "same")
    path = newest_checkpoint(tmp_path)
    assert path is not None
    rest = run_of(data, procedure=ChromaVAE(head=head))
    rest.load_state_dict(load_checkpoint(path, "same"))
    fit(rest)
    for (name, one), (_, other) in zip(whole.model.state_dict().items(), rest.model.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert whole.procedure.metrics() == rest.procedure.metrics()


def test_a_finished_run_is_read_back_with_its_rows(tmp_path):
    data = DataOptions(limit=150, make=("shortcut:halves=true",))
    settings = replace(SETTINGS, evaluations=2)
    folder = train(Recipe(data, SPEC, use=("chroma-vae:neighbours=3",), settings=settings), tmp_path)
    loaded = load_run(folder.path)
    assert isinstance(loaded.model, ChromaNetwork)
    assert len(loaded.model.head.labels) == len(loaded.splits.train)
    found = (loaded.predict(loaded.splits.test).argmax(1) == loaded.splits.test.labels).double().mean()
    assert float(found) == pytest.approx(folder.read_json("run.json")["results"]["accuracy"]["value"])
    assert "worst group accuracy" in folder.read_json("run.json")["results"]
    assert {"reconstruction", "kl", "shortcut_loss", "test_accuracy"} <= set(folder.metrics()[-1])


def test_a_large_weight_of_the_label_makes_the_first_block_tell_it(digits):
    data = cued(digits.select(torch.arange(600)))
    settings = replace(SETTINGS, epochs=6)
    run = fit(run_of(data, settings=settings))
    network = network_of(run).eval()
    with torch.no_grad():
        said = network.shortcut_logits(data.floats(torch.arange(600))).argmax(1)
        reverse = cued(digits.select(torch.arange(600, 900)), 0.0)
        against = network.shortcut_logits(reverse.floats(torch.arange(300))).argmax(1)
    assert float((said == data.labels).double().mean()) > 0.99
    assert float((against == reverse.labels).double().mean()) < 0.1


@pytest.mark.slow
def test_on_patches_the_blocks_part_as_the_card_of_the_method_says(digits):
    """The cue goes to z1, the digit to z2: neighbours, a linear probe, and images with exchanged blocks."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    data, held = cued(digits.select(order[:1297])), digits.select(order[1297:])
    settings = replace(SETTINGS, epochs=100, batch_size=64, schedule="constant")
    rows, found = torch.arange(len(held)), {}
    for weight in (0.0, 100.0):
        run = fit(run_of(data, "chroma-vae:d1=2,d2=12", settings, ChromaVAE(weight)))
        for how, agreement in (("reversed", 0.0), ("random", None)):
            shown = cued(held, agreement)
            found[how, weight] = float((run.predict(shown).argmax(1) == shown.labels).double().mean())
    assert found["reversed", 0.0] <= 0.05 < 0.35 <= found["reversed", 100.0]
    assert found["random", 100.0] >= 0.64
    network, shown = network_of(run).eval(), cued(held, None)
    cue = shown.extra["cue"]
    with torch.no_grad():
        z1, z2 = network.encode(shown.floats(rows))
        probes = [LogisticRegression(max_iter=5000).fit(z[:250], cue[:250]).score(z[250:], cue[250:]) for z in (z1, z2)]
        assert probes[0] > 0.95
        assert probes[1] < 0.85
        # the cue of one image, the digit of another one that has the other cue
        donor = torch.stack([rows[cue != c][torch.arange(len(rows)) % int((cue != c).sum())] for c in (0, 1)])
        other = donor[cue, rows]
        made, patch = network.decode(z1[other], z2), torch.zeros(8, 8, dtype=torch.bool)
        patch[:3, :3] = True
        own, theirs = shown.floats(rows), shown.floats(other)

        def error(image: torch.Tensor, where: torch.Tensor) -> float:
            return float((made - image).square()[..., where].mean())

        assert error(theirs, patch) < 0.25 * error(own, patch)
        assert error(own, ~patch) < 0.6 * error(theirs, ~patch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_weight": -1.0}, r"label_weight must be in \[0, infinity\), got -1.0"),
        ({"label_weight": float("inf")}, "label_weight"),
        ({"beta": -0.1}, r"beta must be in \[0, infinity\), got -0.1"),
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"head": "tree"}, "head must be 'knn', 'linear' or 'mlp', got 'tree'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChromaVAE(**arguments)


def test_other_models_and_other_procedures_are_refused_with_a_way_out(small_digits):
    data = cued(small_digits)
    with pytest.raises(Incompatible, match="build the model with --model chroma-vae"):
        run_of(data, "mlp")
    with pytest.raises(Incompatible, match="Train it with --use chroma-vae, or take another model"):
        Run(build_model(SPEC, data), data)
    with pytest.raises(Incompatible, match="turns labels into mixtures"):
        run_of(data, transforms=[MixUp()])
    with pytest.raises(Incompatible, match="ChromaVAE never calls"):
        run_of(data, loss=GeneralizedCrossEntropy())


def test_too_many_neighbours_one_class_and_pixels_beyond_the_range_are_refused(small_digits):
    data = cued(small_digits)
    with pytest.raises(SpecError, match="neighbours must be at most the 200 training rows"):
        run_of(data, procedure=ChromaVAE(neighbours=201))
    run_of(data, procedure=ChromaVAE(head="linear", neighbours=201))
    with pytest.raises(DataError, match="at least 2 classes, found 1"):
        run_of(data.select(data.labels == 1))
    run = run_of(data)
    batch = batch_of(run)
    with pytest.raises(ValueError, match=r"bernoulli likelihood needs inputs in \[0, 1\], got"):
        run.procedure.loss(run, batch.replace(x=2 * batch.x))
    gaussian = run_of(data, "chroma-vae:likelihood=gaussian,sigma=0.3,width=8")
    batch = batch_of(gaussian)
    assert torch.isfinite(gaussian.procedure.loss(gaussian, batch.replace(x=2 * batch.x)))


@pytest.mark.parametrize("spec", ["chroma-vae:d1=0,d2=4,width=8", "chroma-vae:d1=4,d2=0,width=8"])
def test_one_block_alone_trains_and_predicts(small_digits, spec):
    data = cued(small_digits)
    run = fit(run_of(data, spec))
    assert torch.isfinite(run.predict(data)).all()
    assert network_of(run).head.is_fitted == ("d1=0" in spec)
