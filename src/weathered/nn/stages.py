"""What backbones in stages share: their maps by indices, as timm's forward_intermediates takes them, and pooling."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def stage_numbers(indices: int | list[int] | None, stages: int) -> set[int]:
    """Numbers of stages from 0. indices: such numbers, or from the end as -1; a whole number n for the last n; None
    for all. Raises ValueError for indices out of range, or none.
    """
    if isinstance(indices, int):
        if not 1 <= indices <= stages:
            raise ValueError(f"the last n of {stages} stages needs n in [1, {stages}], got {indices}")
        return set(range(stages - indices, stages))
    chosen = list(range(stages)) if indices is None else indices
    if not chosen or not all(-stages <= i < stages for i in chosen):
        raise ValueError(f"indices must be stages in [{-stages}, {stages - 1}], at least one, got {chosen}")
    return {i % stages for i in chosen}


class StagedNetwork(nn.Module):
    """A backbone of stages, whose features are the last map averaged over positions; a method fills `stages`.

    `stage_input` says what a stage is given, where that is not the map before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"stages.{number}" for number in range(len(self.stages)))

    def stage_input(self, x: Tensor, number: int) -> Tensor:
        """What stage `number` is given, from the map before it, or from the images for stage 0."""
        return x

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, intermediates_only: bool = True
    ) -> list[Tensor]:
        """The feature maps after some of the stages, in the order of the stages; as timm's method of that name.

        indices: stages from 0, or from the end as -1; a whole number n for the last n; None for all.
        Raises ValueError for indices out of range, or if more than the maps is asked for.
        """
        if not intermediates_only:
            raise ValueError("forward_intermediates gives feature maps only, pass intermediates_only=True")
        wanted = stage_numbers(indices, len(self.stages))
        maps = []
        for number, stage in enumerate(self.stages[: max(wanted) + 1]):
            x = stage(self.stage_input(x, number))
            if number in wanted:
                maps.append(x)
        return maps

    def forward_features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.forward_intermediates(x, [-1])[0]

    def forward_head(self, x: Float[Tensor, "B D h w"], pre_logits: bool = True) -> Float[Tensor, "B D"]:
        return torch.mean(x, dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
