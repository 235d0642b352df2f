"""Which stages of a backbone are meant by indices as timm's forward_intermediates takes them."""


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
