"""The network of Chroma-VAE: divergence and likelihood in closed form, the evidence bound, blocks that stay apart."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from weathered.core.errors import SpecError
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.nn.chroma_vae import LOG_VARIANCE, ChromaNetwork, negative_log_likelihood, standard_normal_kl
from weathered.nn.network import model_facts


def images(size: int = 40, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, *shape), generator=rng, dtype=torch.uint8)
    return Dataset.of(pixels, torch.arange(size) % classes)


def network(spec: str = "chroma-vae:d1=2,d2=5,width=16", data: Dataset | None = None) -> ChromaNetwork:
    made = build_model(spec, data or images())
    assert isinstance(made, ChromaNetwork)
    return made


@given(st.integers(0, 10**6))
def test_the_divergence_is_that_of_normal_distributions_and_adds_up_over_blocks(seed):
    rng = torch.Generator().manual_seed(seed)
    mean, log_variance = 2 * torch.randn(6, 7, generator=rng), 3 * torch.randn(6, 7, generator=rng)
    found = standard_normal_kl(mean, log_variance)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).sum(1)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert bool((found >= 0).all())
    parts = standard_normal_kl(mean[:, :2], log_variance[:, :2]) + standard_normal_kl(mean[:, 2:], log_variance[:, 2:])
    assert_close(found, parts, atol=1e-5, rtol=1e-5)


def test_the_divergence_of_the_prior_is_zero():
    assert standard_normal_kl(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_likelihoods_are_sums_over_pixels_in_nats():
    rng = torch.Generator().manual_seed(0)
    output, x = torch.randn(5, 2, 3, 3, generator=rng), torch.rand(5, 2, 3, 3, generator=rng)
    binary = (x > 0.5).float()
    expected = -Bernoulli(logits=output).log_prob(binary).flatten(1).sum(1)
    assert_close(negative_log_likelihood(output, binary, "bernoulli", 1.0), expected)
    expected = -Normal(output, 0.3).log_prob(x).flatten(1).sum(1)
    assert_close(negative_log_likelihood(output, x, "gaussian", 0.3), expected)


def expected_bound(x: torch.Tensor, decoder: nn.Linear, mean: torch.Tensor, variance: torch.Tensor, sigma: float):
    """Minus the mean of -log p(x | z) + KL over z, exact: a mean of a quadratic is that over 2 d points."""
    size = mean.shape[1]
    steps = math.sqrt(size) * torch.cat([torch.eye(size), -torch.eye(size)]).double()
    terms = [negative_log_likelihood(decoder(mean + variance.sqrt() * step), x, "gaussian", sigma) for step in steps]
    return -(torch.stack(terms).mean(0) + standard_normal_kl(mean, variance.log()))


def test_the_bound_is_below_the_evidence_and_reaches_it_with_the_exact_posterior():
    """x = W z + b + noise with orthogonal columns, whose posterior is a product."""
    rng, sigma = torch.Generator().manual_seed(0), 0.4
    basis = torch.linalg.qr(torch.randn(6, 3, generator=rng, dtype=torch.float64)).Q
    decoder = nn.Linear(3, 6).double()
    with torch.no_grad():
        decoder.weight.copy_(basis * torch.tensor([2.0, 0.7, 1.3]))
    x = torch.randn(8, 6, generator=rng, dtype=torch.float64)
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    evidence = MultivariateNormal(bias, weight @ weight.T + sigma**2 * torch.eye(6).double()).log_prob(x)
    variance = 1 / (1 + weight.square().sum(0) / sigma**2)
    mean = variance * ((x - bias) @ weight) / sigma**2
    with torch.no_grad():
        exact = expected_bound(x, decoder, mean, variance.expand(8, 3), sigma)
        assert_close(exact, evidence, atol=1e-4, rtol=0)
        for shift, scale in ((0.3, 1.0), (0.0, 2.0), (-0.2, 0.4)):
            off = expected_bound(x, decoder, mean + shift, (scale * variance).expand(8, 3), sigma)
            assert bool((off < evidence - 1e-3).all())


def test_the_label_reads_the_first_block_alone():
    made, x = network(), images().floats(torch.arange(12))
    mean, log_variance = made.posterior(x)
    z = (mean + (log_variance / 2).exp()).detach().requires_grad_(True)
    loss = nn.functional.cross_entropy(made.classify_shortcut(z[:, :2]), torch.arange(12) % 3)
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool(gradient[:, :2].any())
    assert not gradient[:, 2:].any()


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_fitted_network_predicts_by_the_second_block_alone(kind):
    data = images()
    made, x = network(data=data).eval(), data.floats(torch.arange(40))
    made.set_head(kind, 3)
    assert torch.equal(made(x), made.shortcut_logits(x))
    with torch.no_grad():
        made.head.fit(made.encode(x)[1], data.labels, seed=0)
        before, features = made(x), made.forward_features(x)
        assert not torch.equal(before, made.shortcut_logits(x))
        overwritten = features.clone()
        overwritten[:, :2] = 100.0
        overwritten[:, 7:] = 100.0
        assert torch.equal(made.forward_head(overwritten), before)
        assert torch.equal(made.forward_head(features, pre_logits=True), made.encode(x)[1])
        # deterministic: means, not draws
        assert torch.equal(made(x), before)
    overwritten[:, 2:7] = overwritten[:, 2:7].flip(0)
    assert not torch.equal(made.forward_head(overwritten), before)


@pytest.mark.parametrize("conv", ["false", "true"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_images_come_back_in_their_shape(shape, conv):
    data = images(6, shape)
    made, x = network(f"chroma-vae:d1=1,d2=3,width=16,conv={conv}", data), data.floats(torch.arange(6))
    z1, z2 = made.encode(x)
    assert (z1.shape, z2.shape) == ((6, 1), (6, 3))
    decoded = made.decode(z1, z2)
    assert decoded.shape == x.shape
    assert bool(((decoded > 0) & (decoded < 1)).all())
    assert made.shortcut_logits(x).shape == (6, 3)
    assert model_facts(made) >= {"features", "latent_blocks"}


def test_log_variances_are_kept_from_overflow():
    made, x = network(), images().floats(torch.arange(4))
    with torch.no_grad():
        last = made.blocks.encoder[-1]
        assert isinstance(last, nn.Linear)
        last.bias[7:] = 1e4
        assert bool((made.posterior(x)[1] == LOG_VARIANCE).all())
        assert bool(torch.isfinite(standard_normal_kl(*made.posterior(x))).all())


def test_without_a_first_block_there_is_no_shortcut_classifier_and_without_a_second_it_predicts():
    x = images().floats(torch.arange(5))
    plain = network("chroma-vae:d1=0,d2=4,width=8")
    assert plain.shortcut is None
    assert not plain.shortcut_logits(x).any()
    alone = network("chroma-vae:d1=4,d2=0,width=8").eval()
    assert torch.equal(alone(x), alone.shortcut_logits(x))
    assert alone(x).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("d1=1,d2=0", "d1 and d2 must be at least 0, and 2 together, got 1 and 0"),
        ("d1=-1,d2=5", "got -1 and 5"),
        ("width=0", "width and depth must be at least 1"),
        ("likelihood=poisson", "likelihood"),
        ("likelihood=gaussian,sigma=0.0", r"sigma must be in \(0, infinity\), got 0.0"),
        ("conv=true,width=18", "multiples of 4, got width 18 and 8 x 8 pixels"),
        ("latents=3", "no option 'latents'"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        network(f"chroma-vae:{options}")


def test_tables_other_heads_and_odd_sides_are_refused():
    with pytest.raises(SpecError, match="chroma-vae needs images"):
        build_model("chroma-vae", Dataset.of(torch.rand(6, 4), torch.arange(6) % 2))
    with pytest.raises(SpecError, match="takes no cosine head"):
        build_model("chroma-vae", images(), head="cosine")
    with pytest.raises(SpecError, match="10 x 10 pixels"):
        network("chroma-vae:conv=true", images(6, (1, 10, 10)))
