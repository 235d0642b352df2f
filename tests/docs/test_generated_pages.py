"""The generated pages: complete, true to the ledger, and plain about claims that were not seen."""

import pytest
from pages import CLAIMED, check_command, commands, recipes

from weathered.assemble import import_part, resolve
from weathered.cli.snippets import snippet
from weathered.core.facts import FACTS, traits_of
from weathered.recipe import Recipe
from weathered.registry import ENTRIES, PROBLEMS


def record(verdict, low, high):
    return {
        "slug": "x", "claim": "A beats B.", "data": "digits", "metric": "accuracy, in [0, 1]", "higher_is_better": True,
        "arms": ["a", "b"], "main": "a", "baseline": "b", "seeds": [0, 1, 2], "seconds": 3.0,
        "values": {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.4, 0.4]}, "difference": (low + high) / 2, "interval": [low, high],
        "versions": {"torch": "2"}, "verdict": verdict,
    }  # fmt: skip


def test_every_method_has_a_page_with_all_sections(generated):
    for entry in ENTRIES:
        text = (generated / "methods" / f"{entry.slug}.md").read_text()
        assert text.startswith(f"# {entry.slug}\n")
        for heading in ("## On the command line", "## Options", "## What it computes", "## Measured here"):
            assert heading in text, f"{entry.slug} lacks {heading}"


@pytest.mark.parametrize("slug", CLAIMED)
def test_every_card_has_use_cost_and_advice(generated, slug):
    text = (generated / "methods" / f"{slug}.md").read_text()
    for heading in ("## Alone\n\n```python", "## Cost\n\n", "## When to use it, and when not\n\n"):
        assert heading in text


def test_pages_show_the_snippet_that_the_command_prints_unless_a_note_has_its_own(generate, generated):
    for entry in ENTRIES:
        text = (generated / "methods" / f"{entry.slug}.md").read_text()
        own = (generate.read_note(entry.slug) or {}).get("Alone")
        assert f"## Alone\n\n{own or f'```python{chr(10)}{snippet(entry.slug)}```'}" in text


def test_a_method_without_a_note_points_to_its_card(generate):
    for entry in ENTRIES:
        assert generate.read_note(entry.slug) or entry.card, f"{entry.slug} has neither a note nor a card"


def test_notes_belong_to_methods_and_have_their_sections(generate, tmp_path, monkeypatch):
    slugs = {entry.slug for entry in ENTRIES}
    assert {path.stem for path in (generate.DOCS / "notes").glob("*.md")} <= slugs
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mixup.md").write_text("## Alone\n\nx\n\n## When\n\ny\n")
    with pytest.raises(ValueError, match=r"mixup.md must hold the sections Cost, When, got Alone, When"):
        generate.read_note("mixup")


def test_the_table_lists_every_method_under_each_of_its_problems(generated):
    text = (generated / "methods" / "index.md").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == [*PROBLEMS, "any problem"]
    for entry in ENTRIES:
        for problem in entry.problems or ("any problem",):
            assert f"[{entry.slug}]({entry.slug}.md)" in sections[problem]


def test_all_facts_are_explained(generated):
    text = (generated / "methods" / "_facts.md").read_text()
    assert all(f"| `{fact}` | {meaning}" in text for fact, meaning in FACTS.items())


def test_all_commands_on_generated_pages_exist(generated):
    rows = commands((generated / "methods").glob("*.md"))
    assert {row.split()[1] for row in rows} >= {"show", "train", "compare", "audit"}
    for row in sorted(rows):
        check_command(row)


def test_commands_give_auxiliary_data_to_methods_that_need_them(generated):
    for entry in ENTRIES:
        needs = traits_of(import_part(entry)).needs if entry.path else {}
        rows = [
            row
            for row in commands([generated / "methods" / f"{entry.slug}.md"])
            if not row.startswith("weathered show")
        ]
        for fact in needs:
            if fact.startswith("aux:"):
                assert rows
                assert all(f"--aux {fact.removeprefix('aux:')}=" in row for row in rows)


def test_all_recipes_on_generated_pages_resolve(generated):
    shown = recipes((generated / "methods").glob("*.md"))
    assert shown
    for tree in shown:
        recipe = Recipe.from_tree(tree)
        resolve((*recipe.use, *recipe.data.make))


def test_intervals_of_shares_stay_shares(generate):
    shares = record("shown", 0.1, 0.3) | {"values": {"a": [0.9, 1.0, 1.0], "b": [0.0, 0.0, 0.1]}}
    assert ", 1.000] |" in generate.claim_block(shares)
    assert "[0.000, " in generate.claim_block(shares)
    assert ", 1.110] |" in generate.claim_block(shares | {"metric": "nats"})


@pytest.mark.parametrize(
    ("verdict", "low", "high", "said"),
    [
        ("shown", 0.1, 0.3, "**Shown.**"),
        ("not shown", -0.1, 0.3, "**Not shown at this scale.**"),
        ("reversed", -0.3, -0.1, "**Reversed at this scale.**"),
    ],
)
def test_claims_say_what_was_measured(generate, verdict, low, high, said):
    text = generate.claims_page({"x": record(verdict, low, high), "y": None})
    assert said in text
    assert f"[{low:+.3f}, {high:+.3f}]" in text
    assert "| a | claimed to be better | 0.600 |" in text
    assert "| b | baseline | 0.400 |" in text
    assert "1 of 2 claims are measured" in text
    assert "Not measured yet: y." in text


def test_an_unknown_interval_and_secondary_figures_are_shown(generate):
    unknown = record("not shown", 0.1, 0.3) | {
        "interval": [None, None],
        "seeds": [0],
        "values": {"a": [0.5], "b": [0.25]},
        "also": [{"metric": "share kept, in [0, 1]", "values": {"a": [0.125], "b": [0.75]}}],
    }
    text = generate.claims_page({"x": unknown})
    assert "95 % interval not known." in text
    assert "without a verdict: share kept, in \\[0, 1\\]." in text
    assert "| a | 0.125 | not known |" in text
    assert "inf" not in text
    assert "None" not in text


def test_docstrings_keep_their_characters(generate):
    shown = generate.markdown("First *one*_line_ a < b, in [0, 1].\n\nSecond:\n\n    x_i * y_i < z\n\nThird `k_1`.")
    assert "First \\*one\\*\\_line\\_ a &lt; b, in \\[0, 1\\]." in shown
    assert "```text\nx_i * y_i < z\n```" in shown
    assert "Third `k_1`." in shown
