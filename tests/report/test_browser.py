"""The report in a real browser: nothing on the console, every image loads, sorting and folding work by keyboard."""

import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from synthetic_report import HOSTILE_END, comparison_report

from chromium_flags import CHROMIUM, QUIET
from weathered.report.build import build_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found to open the report with")

FLAGS = (*QUIET, "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom")

PROBE = """
addEventListener("load", () => {
  const found = { images: [], sorts: {} };
  for (const image of document.images) found.images.push([image.complete, image.naturalWidth]);
  const table = document.querySelector("#ranking table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const column = (i) => Array.from(table.tBodies[0].rows, (row) => row.cells[i].textContent);
  const press = (i) => { const b = heads[i].querySelector("button"); b.focus(); b.click(); };
  const state = () => heads.map((head) => head.getAttribute("aria-sort"));
  found.heads = heads.map((head) => head.textContent);
  for (const i of [1, 2, 5, 9]) {
    press(i); const up = column(i), upState = state();
    press(i); found.sorts[i] = [up, column(i), upState, state()];
  }
  const buttons = heads.map((head) => head.querySelector("button"));
  found.focusable = buttons.every((button) => { button.focus(); return document.activeElement === button; });
  const details = Array.from(document.querySelectorAll("details:not([data-alternative])"));
  document.querySelector("[data-fold=open]").click(); found.unfolded = details.every((d) => d.open);
  document.querySelector("[data-fold=close]").click(); found.folded = details.every((d) => !d.open);
  dispatchEvent(new Event("beforeprint")); found.printed = details.every((d) => d.open);
  dispatchEvent(new Event("afterprint")); found.afterwards = details.every((d) => !d.open);
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.title = document.title;
  const charts = document.querySelectorAll("#verdict svg, #curves svg[role=img]");
  found.drawn = Array.from(charts, (chart) => chart.getBoundingClientRect().height);
  const styled = getComputedStyle(document.querySelector(".line"));
  found.line = [styled.stroke, styled.fill];
  const out = document.createElement("pre");
  out.id = "found"; out.textContent = JSON.stringify(found); document.body.append(out);
});
"""


def browse(path: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The page after its scripts ran, and what it wrote to the console."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def with_probe(path: Path) -> Path:
    """A copy of the report with the probe added, allowed by a hash of its own in the copy's policy."""
    html = path.read_text(encoding="utf-8")
    code = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    assert html.count("script-src '") == 1
    html = html.replace("script-src '", f"script-src 'sha256-{code}' '").replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    copy = path.with_name("probe.html")
    copy.write_text(html, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return build_report(comparison_report(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def found(report, tmp_path_factory):
    dom, console = browse(with_probe(report), tmp_path_factory.mktemp("profile"), "--window-size=1200,900")
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert match, console
    text = match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return {**json.loads(text), "console": console}


def test_the_untouched_report_writes_nothing_to_the_console(report, tmp_path):
    dom, console = browse(report, tmp_path)
    assert console == []
    assert "beats ce by" in dom


def test_the_console_is_really_read(report, tmp_path):
    """A script that the policy forbids must show up, or the test above could not fail."""
    html = report.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'owned'</script></body>")
    copy = tmp_path / "forbidden.html"
    copy.write_text(html, encoding="utf-8")
    dom, console = browse(copy, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
    assert "<title>owned" not in dom


def test_no_errors_and_the_title_is_the_reports(found):
    assert found["console"] == []
    assert found["title"].endswith(HOSTILE_END)


def test_every_image_loads(found):
    assert len(found["images"]) == 11
    assert all(complete and width > 0 for complete, width in found["images"])


def test_sorting_by_number_and_by_name(found):
    names, values, gaps = (found["sorts"][i] for i in ("1", "2", "5"))
    assert names[0] == ["ce", "jocor", "ldam+drw", "logitclip", "mixup"]
    assert names[1] == names[0][::-1]
    assert values[0] == sorted(values[0], key=float)
    assert values[1] == values[0][::-1]
    signed = [0.0 if text == "baseline" else float(text.replace("−", "-")) for text in gaps[0]]
    assert signed == sorted(signed)
    assert min(signed) < 0 < max(signed)


def test_times_sort_by_length_and_not_by_letters(found):
    up = found["sorts"]["9"][0]
    assert up == ["8.4 s", "39.4 s", "1 min 10 s", "1 min 41 s", "2 min 12 s"]


def test_sort_state_is_announced(found):
    for column, (_, _, first, second) in found["sorts"].items():
        assert [state for state in first if state] == ["ascending"]
        assert first[int(column)] == "ascending"
        assert second[int(column)] == "descending"
    assert found["focusable"]


def test_folding_and_printing(found):
    assert found["unfolded"]
    assert found["folded"]
    assert found["printed"]
    assert found["afterwards"]


def test_charts_are_drawn_in_the_style_sheets_colours(found):
    assert all(height > 100 for height in found["drawn"])
    assert found["line"] == ["rgb(0, 114, 178)", "none"]


def test_dark_mode_in_a_narrow_window_without_sideways_scrolling(report, tmp_path):
    probe = with_probe(report)
    dom, _ = browse(probe, tmp_path / "dark", "--blink-settings=preferredColorScheme=0", "--window-size=500,900")
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert match
    seen = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["line"][0] == "rgb(92, 179, 238)"
    assert seen["wide"] <= 0
