"""The table of a comparison whose arms were crossed: one method in each row, another in each column."""

from collections.abc import Mapping

from rendering import table


def crossed_tables(means: Mapping[str, str], refused: Mapping[str, str], metric: str) -> list[str]:
    """Blocks of markdown: what each pair reached or that it was refused, and why; none where no arms were crossed.

    means: arm -> its figure as text. refused: arm -> reason. A pair is an arm `a+b` where `a` and `b` are arms, too.
    """
    arms = {**means, **refused}
    pairs = {(one, other): f"{one}+{other}" for one in arms for other in arms if f"{one}+{other}" in arms}
    if len(pairs) < 4:
        return []
    rows = list(dict.fromkeys(one for one, _ in pairs))
    columns = list(dict.fromkeys(other for _, other in pairs))
    reasons = list(dict.fromkeys(refused.values()))
    mark = {name: f"no ({reasons.index(reason) + 1})" for name, reason in refused.items()}

    def cell(arm: str | None) -> str:
        return "" if arm is None else means.get(arm, mark.get(arm, ""))

    body = [("alone", "", *(cell(other) for other in columns))]
    body += [(f"`{one}`", cell(one), *(cell(pairs.get((one, other))) for other in columns)) for one in rows]
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return [
        f"The same as a table of pairs, {metric}; a number in brackets is the reason of a refusal, given below.",
        table(("", "alone", *(f"`{other}`" for other in columns)), body),
        *(["\n".join(told)] if told else []),
    ]
