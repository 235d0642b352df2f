"""The page in a real browser, driven by the keyboard: fifty decisions, an undo, a second reviewer, a killed server."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import typer
import uvicorn
from chromium import CHROMIUM, Chromium, Page
from sample_reviews import TOKEN, Started, digits_of, review_of, served, wine_table

from weathered.review.pages import build_app
from weathered.review.serve import bound_socket

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found to open the page with")

DRAINED = "!Object.keys(localStorage).some((name) => name.startsWith('review-') && name !== 'review-letters')"
DECIDED = "Number(document.querySelector('[data-field=decided]').textContent)"
IN_FOCUS = "Number(document.querySelector('[aria-selected=true]').closest('li').dataset.row)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def enter(page: Page, port: int, token: str, name: str) -> Page:
    """Join by the keyboard."""
    page.goto(f"http://127.0.0.1:{port}/?token={token}")
    # the browser gives the field its focus some time after the page is complete
    page.until("document.activeElement.id === 'name'")
    page.type(name)
    page.until(f"document.getElementById('name').value === '{name}'")
    page.press("Enter")
    page.until("!!document.querySelector('[role=listbox]')")
    return page


def answer(folder: Path, port: int) -> None:
    """Serve the same review again and again; the port and then the tokens are printed, one a line."""
    listener = bound_socket(port)
    typer.echo(listener.getsockname()[1])
    app = build_app(review_of(digits_of(1000), folder, 120), TOKEN, lambda _, token: typer.echo(token))
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[listener])


def answering(folder: Path, port: int) -> Started:
    """A process that answers."""
    script = "import sys, pathlib, test_browser_review as t; t.answer(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    return Started("-c", script, str(folder), str(port))


def test_fifty_decisions_an_undo_a_second_reviewer_and_a_killed_server(browser, tmp_path):
    rows = review_of(digits_of(1000), tmp_path / "order", 120).suspects.tolist()
    with answering(tmp_path, 0) as server:
        port = int(server.output.readline())
        ann = enter(browser.page(), port, TOKEN, "ann")
        bob = enter(browser.page(), port, server.output.readline().strip(), "bob")
        pressed: list[tuple[int, str]] = []

        def press(number: int) -> None:
            key = "akks"[number % 4]
            ann.until("document.querySelector('[role=listbox]')?.getAttribute('aria-busy') === null")
            pressed.append((ann.value(IN_FOCUS), key))
            ann.press(key)

        for number in range(24):
            press(number)
        # the first page is done, so the next one comes by itself
        ann.until(f"document.getElementById('suspects').firstElementChild.dataset.row === '{rows[24]}'")
        # bob looks at the same first page and decides two of ann's rows otherwise
        bob.press("k")
        bob.until(f"{DRAINED} && {DECIDED} > 0")
        for number in range(24, 30):
            press(number)
        ann.until(DRAINED)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    # nobody answers: what is pressed now is kept in the browser
    for number in range(30, 40):
        press(number)
    ann.until("document.getElementById('status').textContent.startsWith('10 decisions not stored yet: the server')")
    with answering(tmp_path, port) as server:
        assert int(server.output.readline()) == port
        ann.until(DRAINED, 60)
        for number in range(40, 50):
            press(number)
        ann.until(f"{DRAINED} && !document.getElementById('status').hasAttribute('data-problem')")
        ann.press("u")
        ann.until(f"{DRAINED} && document.getElementById('status').textContent.includes('taken back')")
        assert ann.value(IN_FOCUS) == pressed[-1][0]
        # a new page, as after a crash of the browser, shows the same
        ann.goto(f"http://127.0.0.1:{port}/?status=mine")
        mine = ann.value(DECIDED)
        server.end(signal.SIGTERM)
    assert [row for row, _ in pressed] == rows[:50]
    review = review_of(digits_of(1000), tmp_path, 120)
    lines = review.store.since()
    made = [line for line in lines if line.reviewer == "ann" and line.action != "undo"]
    named = {"a": "accept", "k": "keep", "s": "skip"}
    assert [(line.row, line.action) for line in made] == [(row, named[key]) for row, key in pressed]
    undone = [line for line in lines if line.action == "undo"]
    assert [(line.reviewer, line.undone) for line in undone] == [("ann", made[-1].id)]
    assert [(line.row, line.action) for line in lines if line.reviewer == "bob"] == [(rows[0], "keep")]
    assert Counter(key for _, key in pressed[:49])["s"] == 12
    assert mine == 37
    with review.standing() as standing:
        # ann accepted what bob kept
        assert standing.disagreement.nonzero()[0].tolist() == [rows[0]]
    review.store.close()
    # while the server is away the network fails, under several names; nothing else may
    assert [text for text in ann.console + bob.console if "net::ERR_" not in text] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(review_of(digits_of(), tmp_path_factory.mktemp("site"))) as answers:
        yield answers


def test_moving_another_class_and_help_by_the_keyboard(browser, site):
    rows = site.review.suspects.tolist()
    page = enter(browser.page(), site.port, site.tokens[-1], "eve")
    page.look()
    assert page.value("document.activeElement.id") == f"suspect-{rows[0]}"
    columns = page.value("getComputedStyle(document.getElementById('suspects')).gridTemplateColumns.split(' ').length")
    for key, place in (
        ("l", 1),
        ("ArrowRight", 2),
        ("j", 1),
        ("ArrowDown", 1 + columns),
        ("ArrowUp", 1),
        ("End", 23),
        ("ArrowRight", 23),
        ("Home", 0),
        ("ArrowLeft", 0),
    ):
        page.press(key)
        assert page.value(IN_FOCUS) == rows[place], key
        assert page.value("document.activeElement.id") == f"suspect-{rows[place]}"
    assert page.value("document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1
    # letters that are typed into a field decide nothing
    page.press("o")
    page.type("ask")
    page.press("Enter")
    page.until("document.getElementById('status').textContent.includes(\"no class 'ask'\")")
    page.press("Escape")
    assert page.value("document.activeElement.id") == f"suspect-{rows[0]}"
    third = next(
        c for c in range(10) if c not in (site.review.audited.label[rows[0]], site.review.audited.suggested[rows[0]])
    )
    page.press("o")
    page.type(str(third))
    page.press("Enter")
    page.until(f"{DRAINED} && document.getElementById('status').textContent.includes('changed to {third}')")
    assert page.value(IN_FOCUS) == rows[1]
    # letters can be switched off for those whose screen reader or voice control sends them
    page.press("?")
    assert page.value("document.getElementById('keys').open && document.activeElement.tagName") == "SUMMARY"
    page.value("document.querySelector('#letters input').click()")
    page.value(f"document.getElementById('suspect-{rows[1]}').focus()")
    page.press("a")
    page.press("l")
    assert page.value(IN_FOCUS) == rows[1]
    page.value("document.querySelector('#letters input').click()")
    page.press("u")
    page.until(f"document.getElementById('status').textContent.includes('taken back') && {IN_FOCUS} === {rows[0]}")
    assert [line.action for line in site.review.store.since() if line.reviewer == "eve"] == ["relabel", "undo"]
    assert page.console == []


def test_buttons_do_what_keys_do_and_keep_their_focus(browser, site):
    rows = site.review.suspects.tolist()
    before = len(site.review.store.since())
    page = enter(browser.page(), site.port, site.tokens[-1], "tab")
    for action in ("accept", "skip"):
        page.value(f"document.querySelector('[data-action={action}]').focus()")
        page.press("Enter")
        page.until(DRAINED)
        assert page.value("document.activeElement.dataset.action") == action
    page.until(f"{IN_FOCUS} === {rows[2]}")

    # the page moves on before the server has answered
    name = site.review.audited.name[rows[1]]
    page.until(f"document.getElementById('status').textContent.startsWith('{name}: skipped')")
    stored = [(line.reviewer, line.row, line.action) for line in site.review.store.since()[before:]]
    assert stored == [("tab", rows[0], "accept"), ("tab", rows[1], "skip")]


def test_keys_pressed_ahead_decide_nothing_that_was_not_seen(browser, tmp_path):
    """At the end of a page further letters wait for nothing and change no decision."""
    review = review_of(digits_of(), tmp_path, 60)
    with served(review) as site:
        page = enter(browser.page(), site.port, TOKEN, "ann")
        for number in range(40):
            page.press("k" if number < 24 else "a")
        page.until(f"{DRAINED} && document.querySelector('[role=listbox]')?.getAttribute('aria-busy') === null")
        lines = review.store.since()
    assert len({line.row for line in lines}) == len(lines)
    assert [line.action for line in lines[:24]] == ["keep"] * 24
    assert [line.row for line in lines] == review.suspects[: len(lines)].tolist()


def test_what_another_decides_appears_without_a_reload(browser, site):
    page = enter(browser.page(), site.port, site.tokens[-1], "looking on")
    row = int(site.review.suspects[10])
    other = site.visitor("other")
    other.post("/decide", row=row, label=int(site.review.audited.label[row]), key="appears-1")
    page.until(f"document.querySelector('#suspect-{row} .others').textContent.startsWith('other: ')")


CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = Array.from(node.childNodes).some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const a = light(parse(getComputedStyle(node).color)), b = light(behind(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.textContent.trim().slice(0, 30), ratio]);
  }
  return low;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["pictures", "table"])
def test_contrast_names_and_no_sideways_scrolling(browser, tmp_path, kind, dark):
    """Texts have a contrast of 4.5 to 1, what takes keys has a name, a narrow window shows all without scrolling."""
    review = review_of(digits_of() if kind == "pictures" else wine_table(), tmp_path, 40)
    with served(review) as site:
        page = browser.page()
        page.look(dark=dark)
        enter(page, site.port, TOKEN, "ann")
        for key in "aks":
            page.press(key)
        page.until(DRAINED)
        other = site.visitor("bob")
        row = int(review.suspects[0])
        other.post("/decide", row=row, label=int(review.audited.label[row]), key="contrast-1")
        page.goto(f"http://127.0.0.1:{site.port}/?status=all")
        page.press("?")
        assert page.value(
            "!!Array.from(document.querySelectorAll('.flag')).find((flag) => flag.getClientRects().length)"
        )
        assert page.value(CONTRAST) == []
        tree = page._call("Accessibility.getFullAXTree")["nodes"]
        named = {
            "button",
            "option",
            "link",
            "textbox",
            "combobox",
            "checkbox",
            "listbox",
            "image",
            "progressbar",
            "region",
        }
        for node in tree:
            if not node["ignored"] and node["role"]["value"] in named:
                assert node["name"]["value"].strip(), node
        options = [node["name"]["value"] for node in tree if not node["ignored"] and node["role"]["value"] == "option"]
        assert any(re.search(r"given \S+.*suggested \S+.*score 0\.\d+", option) for option in options)
        assert page.value("Array.from(document.images).every((image) => image.complete && image.naturalWidth > 0)")
        page.look(dark=dark, width=360)
        assert page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert page.console == []
        if folder := os.environ.get("REVIEW_PICTURES"):
            for name, width in (("wide", 1280), ("narrow", 400)):
                page.look(dark=dark, width=width)
                page.screenshot(Path(folder) / f"{kind}-{'dark' if dark else 'light'}-{name}.png")
