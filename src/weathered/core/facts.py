"""Facts: what data and models provide and parts need or break, and the check that refuses wrong combinations."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from weathered.core.errors import Incompatible

FACTS: Mapping[str, str] = MappingProxyType(
    {
        "image": "inputs are images (B, C, H, W)",
        "clip": "inputs are video clips (B, T, C, H, W)",
        "table": "inputs are rows of numbers (B, D)",
        "range01": "inputs lie in [0, 1]",
        "hard_target": "each sample has exactly one label",
        "uniform_pixels": "every pixel of an input carries the same mixture of labels",
        "num_classes": "the number of classes is known",
        "class_counts": "the number of training samples of each class is known",
        "index": "each sample has a row number that is stable over epochs",
        "mask": "each pixel of an image has a label",
        "caption": "each image has a caption, as word ids",
        "caption_loss": "the procedure learns from captions",
        "group": "each sample belongs to a group, such as a sensitive attribute or a domain",
        "features": "the model offers forward_features, forward_head and get_classifier",
        "stage_features": "the model offers the feature maps of its inner stages",
        "linear_head": "the model ends in a linear classifier",
        "cosine_head": "the model ends in a cosine classifier, so its logits lie in [-1, 1]",
        "vit_tokens": "the model works on a sequence of patch tokens",
        "linf_distances": "all layers of the model are Linf distances, so that it is 1-Lipschitz",
        "latent_blocks": "the model is an autoencoder with two blocks of latents, one of which predicts the label",
        "outlier_class": "the model has an output for outliers beside those of its classes",
        "teacher": "a trained teacher model is given",
        "validation": "a validation split is given",
        "aux": "an auxiliary data set is given (named, as in aux:ood)",
        "tokens": "inputs are sequences of token ids",
        "graph": "inputs are graphs",
        "field": "inputs and targets are sampled fields",
    }
)

SLOTS = ("sampler", "transform", "procedure", "loss", "reweight", "term", "stepper")
"""The slots of a run, in the order in which a step reaches them."""

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "image": "use image data",
        "clip": "use clips:400, or clip-folder:PATH",
        "table": "use tabular data",
        "range01": "use images, which reach models in [0, 1]",
        "cosine_head": "build the model with head=cosine",
        "linear_head": "build the model with head=linear",
        "features": "use cnn_small, resnet, mlp or a timm model",
        "outlier_class": "train with --use cnc-ood",
        "stage_features": "use cnn_small, resnet or a timm convolutional network",
        "validation": "hold some out with --validation 0.1",
        "class_counts": "use classification data",
        "group": "name the column that holds them with --group-column",
        "caption": "use captions:400, or name the column that holds them with --caption-column",
        "caption_loss": "train with --use contrastive",
        "vit_tokens": "use a timm vision transformer",
        "linf_distances": "build the model with --model linf-net",
        "latent_blocks": "build the model with --model chroma-vae",
        "aux": "give some with --aux ood=patches or --aux ood=folder:PATH",
    }
)


OWN_PROCEDURE: Mapping[str, str] = MappingProxyType({"latent_blocks": "chroma-vae"})
"""Facts of models that nothing but one procedure, which needs them, can train."""


def _known(fact: str) -> bool:
    return fact.partition(":")[0] in FACTS


@dataclass(frozen=True)
class Traits:
    """What a part needs, breaks and calls.

    needs: fact -> why. breaks: fact -> how, for the parts that come after. honours: for a procedure, the slots it
    really calls; provides: facts that it adds to those of data and model. batchwise: the part looks across the batch,
    so the engine gathers it over devices. per_pixel: the part also works where pixels are labelled; losses that need no
    more than classes do without saying so.
    evens_classes: the part alone makes up for unequal class sizes, so that a second one would do it twice.
    """

    needs: Mapping[str, str] = field(default_factory=dict)
    breaks: Mapping[str, str] = field(default_factory=dict)
    honours: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    batchwise: bool = False
    per_pixel: bool = False
    evens_classes: bool = False

    def __post_init__(self) -> None:
        for fact in (*self.needs, *self.breaks, *self.provides):
            if not _known(fact):
                raise ValueError(f"unknown fact '{fact}', the facts are: {', '.join(FACTS)}")
        for slot in self.honours:
            if slot not in SLOTS:
                raise ValueError(f"unknown slot '{slot}', the slots are: {', '.join(SLOTS)}")


class HasTraits(Protocol):
    @property
    def traits(self) -> Traits: ...


def name_of(part: object) -> str:
    """How messages call a part: the name of its class, or of the function."""
    return getattr(part, "__name__", None) or type(part).__name__


def traits_of(part: object) -> Traits:
    """The declared traits of a part; a plain function has none."""
    return getattr(part, "traits", Traits())


def check(facts: Sequence[str] | set[str], parts: Sequence[tuple[str, object]], procedure: object) -> None:
    """Refuse a combination before the first batch.

    facts: what data and model provide. parts: (slot, part) in any order. procedure: the run's procedure.
    Warns of parts that each make up for unequal class sizes.
    Raises Incompatible, naming the parts, the reason and a way out.
    """
    provided = set(facts) | traits_of(procedure).provides
    honours = traits_of(procedure).honours
    broken: dict[str, tuple[object, str]] = {}
    ordered = sorted([*parts, ("procedure", procedure)], key=lambda item: SLOTS.index(item[0]))
    for slot, part in ordered:
        if "mask" in provided and not _per_pixel(slot, part):
            raise Incompatible(
                f"{name_of(part)} works on one label for each sample, but these data have one for each pixel. Remove "
                "it; losses of logits and labels, class weights, steppers and crop-flip work on pixels."
            )
        if part is not procedure and slot not in honours:
            raise Incompatible(
                f"{name_of(part)} fills the slot '{slot}', which {name_of(procedure)} never calls, so it would change "
                f"nothing. Remove {name_of(part)}, or use a procedure that honours '{slot}'."
            )
        _require(provided, broken, slot, part)
        for fact, how in traits_of(part).breaks.items():
            broken.setdefault(fact, (part, how))
    if twice := evened_twice([part for _, part in ordered]):
        warnings.warn(twice, stacklevel=3)


def check_trainable(facts: set[str], procedure: object) -> None:
    """Raise Incompatible for a model that another procedure alone can train. facts: of data and model."""
    for fact, slug in OWN_PROCEDURE.items():
        if fact in facts and fact not in traits_of(procedure).needs:
            raise Incompatible(
                f"{name_of(procedure)} cannot train this model ({FACTS[fact]}). Train it with --use {slug}, or take "
                "another model."
            )


def evened_twice(parts: Sequence[object]) -> str | None:
    """What to warn of where several parts each make up for unequal class sizes, None where at most one does."""
    names = [name_of(part) for part in parts if traits_of(part).evens_classes]
    if len(names) < 2:
        return None
    return (
        f"{' and '.join(names)} each make up for unequal class sizes, so together they do it twice and favour rare "
        "classes over frequent ones; drop one."
    )


PIXEL_FACTS = frozenset({"hard_target", "num_classes", "class_counts", "linear_head", "cosine_head"})
"""What a loss may need and still be asked for each pixel."""


def _per_pixel(slot: str, part: object) -> bool:
    """Whether a part works on labels of pixels: it says so, or is a loss that cannot tell pixels from samples."""
    traits = traits_of(part)
    plain_loss = slot == "loss" and not traits.batchwise and set(traits.needs) <= PIXEL_FACTS
    return traits.per_pixel or plain_loss or slot == "stepper"


def _require(provided: set[str], broken: Mapping[str, tuple[object, str]], slot: str, part: object) -> None:
    for fact, why in traits_of(part).needs.items():
        if fact in broken:
            culprit, how = broken[fact]
            swap = slot == "transform" and not set(traits_of(part).breaks) & set(traits_of(culprit).needs)
            way_out = f"Put {name_of(part)} before {name_of(culprit)}, or drop one." if swap else "Drop one of the two."
            raise Incompatible(
                f"{name_of(part)} needs '{fact}' ({why}), but {name_of(culprit)} runs earlier and {how}. {way_out}"
            )
        if fact not in provided:
            remedy = REMEDIES.get(fact.partition(":")[0])
            hint = f" To provide it, {remedy}." if remedy else f" It means: {FACTS[fact.partition(':')[0]]}."
            raise Incompatible(f"{name_of(part)} needs '{fact}' ({why}), but data and model do not provide it.{hint}")
