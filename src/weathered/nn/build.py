"""Models by name: `cnn_small`, `resnet`, `mlp`, `vit`, `linf-net`, `chroma-vae`, `unet` for pixels, `clip-cnn` for
clips; any of timm as `timm:NAME`.
"""

from typing import Any

import torch
from torch import nn

from weathered.core.errors import SpecError
from weathered.core.rng import derive_seed
from weathered.core.spec import check_options, near, parse
from weathered.data.dataset import Dataset
from weathered.nn.chroma_vae import LatentBlocks, chroma_network
from weathered.nn.clip_cnn import ClipCNN
from weathered.nn.cnn_small import CNNSmall
from weathered.nn.linf_net import LinfNet, linf_network
from weathered.nn.mlp import MLP
from weathered.nn.network import Network, assemble, seeded
from weathered.nn.resnet import ResNet
from weathered.nn.unet import UNet
from weathered.nn.vit import vit

MODELS = {
    "cnn_small": CNNSmall,
    "resnet": ResNet,
    "mlp": MLP,
    "vit": vit,
    "unet": UNet,
    "linf-net": LinfNet,
    "chroma-vae": LatentBlocks,
    "clip-cnn": ClipCNN,
}


def build_model(spec: str, dataset: Dataset, *, head: str = "linear", seed: int = 0) -> Network:
    """Build and initialise the model a recipe names.

    spec: `cnn_small:width=32`, `resnet:depth=26`, `mlp:depth=3`, `vit:patch=2`,
    `linf-net:width=512`, `chroma-vae:d1=2,d2=12`, `clip-cnn:width=12`, `timm:resnet18`,
    `timm:resnet18:pretrained=true`.
    dataset: gives input shape, classes and normalisation. head: `linear` or `cosine`.
    Raises SpecError for an unknown name or option, with a suggestion.
    """
    with seeded(derive_seed(seed, "model")):
        body = _body(spec, dataset)
        if isinstance(body, LinfNet):
            return linf_network(body, dataset, head)
        if isinstance(body, LatentBlocks):
            return chroma_network(body, dataset, head)
        return assemble(body, dataset, head)


def _body(spec: str, dataset: Dataset) -> nn.Module:
    if dataset.is_segmentation != (spec.partition(":")[0].strip() == "unet"):
        wanted = "a model that labels pixels" if dataset.is_segmentation else "one label for each sample, not pixels"
        named = "--model unet, or unet:encoder=resnet18" if dataset.is_segmentation else "--model cnn_small or mlp"
        raise SpecError(f"model {spec} does not fit these data, which need {wanted}; use {named}.")
    if spec.startswith("timm:"):
        return _timm_body(spec.removeprefix("timm:"), dataset)
    name, options = parse(spec)
    if name not in MODELS:
        raise SpecError(f"no model '{name}'.{near(name, MODELS)} There are {', '.join(MODELS)} and timm:NAME.")
    shape = dataset.inputs.shape
    if name == "clip-cnn":
        if not dataset.is_clip:
            raise SpecError(f"{name} needs clips, but the data are {dataset.kind}; use --model {_fitting(dataset)}.")
        given: dict[str, Any] = {"in_channels": shape[1]}
    elif name != "mlp":
        _need_images(name, dataset)
        flat = name in ("linf-net", "chroma-vae")
        given = {"input_shape": shape} if flat else {"in_channels": shape[0]}
        given |= {"image_size": tuple(shape[1:])} if name == "vit" else {}
    else:
        given = {"input_shape": shape}
    kind = MODELS[name]
    check_options(name, kind, options, hidden=tuple(given))
    try:
        body = kind(**given, **options)
    except ValueError as error:
        raise SpecError(f"model {spec}: {error}.") from error
    if name == "unet":
        _try_maps(body, spec, shape)
    return body


def _fitting(dataset: Dataset) -> str:
    """A model for the data."""
    return "cnn_small" if dataset.is_image else "clip-cnn" if dataset.is_clip else "mlp"


def _need_images(name: str, dataset: Dataset) -> None:
    if not dataset.is_image:
        raise SpecError(f"{name} needs images, but the data are {dataset.kind}; use --model {_fitting(dataset)}.")


def _try_maps(body: nn.Module, spec: str, shape: tuple[int, ...]) -> None:
    """Raise SpecError unless the network takes images of this shape and gives maps of their size."""
    try:
        with torch.no_grad():
            maps = body.eval()(torch.zeros(1, *shape))
        if maps.shape[2:] != shape[1:]:
            raise RuntimeError(f"its maps have the size {tuple(maps.shape[2:])}")
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        size = "x".join(map(str, shape))
        raise SpecError(f"model {spec} does not work on {size} images: {reason}.") from error
    body.train()


def _timm_body(rest: str, dataset: Dataset) -> nn.Module:
    import timm

    name, options = parse(rest)
    pretrained = options.pop("pretrained", False)
    if options:
        raise SpecError(f"timm:{name} has no option '{next(iter(options))}'. It has: pretrained.")
    _need_images(f"timm:{name}", dataset)
    if not timm.is_model(name):
        raise SpecError(f"timm has no model '{name}'.{near(name, timm.list_models())}")
    channels, height, width = dataset.inputs.shape
    extra: dict[str, Any] = {"img_size": (height, width)} if "vit" in name or "deit" in name else {}
    try:
        body = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels, **extra)
        with torch.no_grad():
            features = body.eval()(torch.zeros(2, channels, height, width))
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"timm:{name} does not work on {channels}x{height}x{width} images: {reason}.") from error
    body.num_features = features.shape[1]
    return body.train()
