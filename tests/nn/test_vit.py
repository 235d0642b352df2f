"""The small vision transformer: shapes, options that do not fit, and what it offers to methods."""

import pytest
import torch

from weathered.core.errors import SpecError
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model


def test_tokens_features_and_logits_have_their_shapes(digits):
    model = build_model("vit:patch=2,width=16,depth=1,heads=2", digits, seed=0)
    x = digits.floats(torch.arange(3))
    tokens = model.forward_features(x)
    assert tokens.shape == (3, 1 + 16, 16)
    assert model.forward_head(tokens, pre_logits=True).shape == (3, 16)
    assert torch.allclose(model.forward_head(tokens), model(x), atol=1e-6)
    assert model(x).shape == (3, 10)


def test_a_run_knows_that_it_works_on_tokens(small_digits):
    settings = Settings(epochs=1, batch_size=50)
    on_tokens = Run(build_model("vit:patch=4,width=8,depth=1,heads=1", small_digits), small_digits, settings=settings)
    on_maps = Run(build_model("cnn_small:width=8", small_digits), small_digits, settings=settings)
    assert "vit_tokens" in on_tokens.facts
    assert "vit_tokens" not in on_maps.facts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit:patch=3", "patch must divide the image, 8x8, got 3"),
        ("vit:width=30,patch=2", "width must be a multiple of heads, got 30 and 4"),
        ("vit:depth=0,patch=2", "must be at least 1"),
        ("vit:size=2", "size"),
    ],
)
def test_options_that_do_not_fit_are_refused(digits, spec, message):
    with pytest.raises(SpecError, match=message):
        build_model(spec, digits)


def test_tables_are_refused(wine):
    with pytest.raises(SpecError, match="use --model mlp"):
        build_model("vit", wine)


def test_a_narrow_network_sees_where_patches_lie_from_the_start(digits):
    """The same patches in another order are other features; with positions near 0 they would be the same."""
    model = build_model("vit:patch=2,width=32,depth=2,heads=4", digits, seed=0).eval()
    x = digits.floats(torch.arange(64))
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)
    shuffled = patches[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    y = shuffled.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert torch.equal(y.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    with torch.no_grad():
        before, after = (model.forward_head(model.forward_features(z), pre_logits=True) for z in (x, y))
    assert float((after - before).abs().mean()) > 0.02
