"""Tricks: methods that change a run's settings or an option of its model, and nothing else."""

from collections.abc import Sequence

from weathered.core.errors import Incompatible
from weathered.core.settings import Settings
from weathered.core.spec import parse, render


class Trick:
    """One change of settings or of the model; made twice it is made once.

    A method names what it sets in `changes`, and overrides `settings` or `model`. Two that set the same are refused.
    """

    changes: str

    def settings(self, settings: Settings) -> Settings:
        """The settings with the change made. Raises Incompatible if they do not allow it."""
        return settings

    def model(self, spec: str) -> str:
        """The model, as a recipe names it, with the change made. Raises Incompatible if it has no such option."""
        return spec


def with_option(spec: str, key: str, value: str | bool, method: str) -> str:
    """A `resnet` specification with one more option. method: who asks for it, for errors.

    Raises Incompatible for another model, which has no such option, or where the option is given another value.
    """
    name = spec.partition(":")[0].strip()
    if name != "resnet":
        raise Incompatible(
            f"{method} sets the option '{key}' of the model resnet, which {spec} does not have. Remove {method}, or "
            "use --model resnet."
        )
    _, options = parse(spec)
    said = options.get(key, value)
    if said != value:
        raise Incompatible(
            f"{method} makes the model's {key} {value}, but the recipe's model says {key}={said}. Drop one of the two."
        )
    return render(name, {**options, key: value})


def with_tricks(tricks: Sequence[Trick], settings: Settings, model: str) -> tuple[Settings, str]:
    """Settings and model after all tricks. Raises Incompatible as the tricks do."""
    for trick in tricks:
        settings, model = trick.settings(settings), trick.model(model)
    return settings, model
