"""The report as a file: escaped, self-contained, with a text alternative for each chart, n and interval everywhere."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from synthetic_report import HOSTILE, HOSTILE_END, HOSTILE_FILE, MEANS, comparison_report, single_report

from weathered.audit.result import Chart, Series
from weathered.report.build import build_report, render
from weathered.report.charts import draw
from weathered.report.model import ReportArm, ReportInput
from weathered.report.pictures import data_uri
from weathered.report.svg import labels, share_ticks, tick_texts, ticks
from weathered.report.text import Unit, cell, number, p_value, seconds
from weathered.stats import mean_interval, paired_comparison

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with attributes, the text by tag, and whether tags are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> str:
        return " ".join(words for name, words in self.texts if name == tag)


@pytest.fixture(scope="module")
def html() -> str:
    return render(comparison_report())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_tags_are_closed_in_order(page):
    assert not page.open


def test_hostile_names_stay_text(page, html):
    assert len(page.all("script")) == 1
    assert "document.title" not in page.text("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("h1")) == 1
    shown = "".join(words for _, words in page.texts)
    for words in (HOSTILE, HOSTILE_FILE, HOSTILE_END):
        assert words not in html
        assert words in shown


def test_nothing_points_outside(page, html):
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), target
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", html)


def test_the_policy_allows_exactly_the_files_own_style_and_script(page):
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_each_link_has_its_target(page):
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"] for a in page.all("a")} <= {f"#{name}" for name in ids}


def test_charts_have_text_alternatives(html, page):
    images = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert len(images) == 1 + 2 + 2 * 5
    assert all(a["role"] == "img" and a["aria-label"] for a in images)
    for svg in re.findall(r'<svg viewBox[^>]*role="img".*?</svg>', html, re.S):
        assert re.match(r"<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", svg)
    assert html.count("Numbers of this chart") == len(images) - 1
    assert all(a["alt"] for a in page.all("img"))


def test_verdict_comes_first_and_ranking_is_complete(html):
    assert (
        html.index("beats ce by") < html.index('id="ranking"') < html.index('id="curves"') < html.index('id="audits"')
    )
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index('id="ranking"') : html.index("What each arm")], re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:]]
    assert [row[1] for row in cells] == ["logitclip", "jocor", "mixup", "ce", "ldam+drw"]
    for row in cells:
        assert re.fullmatch(r"\d+\.\d to \d+\.\d", row[3])
        assert row[4] == "3"
        assert row[1] == "ce" or re.fullmatch(r"[+−]\d+\.\d to [+−]\d+\.\d", row[6])


def test_arms_that_are_level_share_a_rank_and_their_difference_is_not_known():
    values = {"ce": (0.5, 0.75), "a": (0.5, 0.75), "b": (0.25, 0.25), "c": (0.75, 0.5)}
    found = tuple(
        ReportArm(name, (), v, mean_interval(v), 0.0123, None if name == "ce" else paired_comparison(v, values["ce"]))
        for name, v in values.items()
    )
    html = render(ReportInput("t", "accuracy", "digits", found, "ce"))
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index('id="ranking"') : html.index("What each arm")], re.S)
    cells = {row[1]: row for row in (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:])}
    assert [cells[name][0] for name in ("ce", "a", "c", "b")] == ["1", "1", "1", "4"]
    assert cells["a"][5:9] == ["0.0", "not known", "not known", "not known"]
    assert cells["c"][5] == "0.0"
    assert re.match("−.* to [+]", cells["c"][6])
    assert cells["b"][3] == "not known"
    assert cells["b"][9] == "12 ms"


def test_notes_stand_below_their_curves_and_shares_are_in_per_cent():
    report = replace(comparison_report(), test_note="Read the first so.", loss_note="Read the second so.")
    html = render(report)
    first, second = re.findall(r'<p class="quiet">(After the last|Mean over seeds)(.*?)</p>', html)
    assert first[1].endswith("over seeds. Read the first so.")
    assert second[1].endswith("over seeds. Read the second so.")
    assert "ce 84.2\u00a0%" in first[1]
    assert "test accuracy in %" in html
    assert "%" not in second[1].replace("95 %", "")


def test_sort_buttons_are_in_headers(html, page):
    assert html.count('<th scope="col"') == len(re.findall(r'<th scope="col"[^>]*><button type="button">', html))
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in regions)


def test_no_infinity_or_nan_is_shown():
    for report in (comparison_report(), comparison_report(seeds=1), comparison_report(seeds=2), single_report()):
        shown = " ".join(words for tag, words in Page(render(report)).texts if tag not in ("style", "script"))
        assert not re.search(r"\b(inf|nan|None|True|False)\b", shown)


def test_single_run_is_the_same_page_without_comparison():
    html = render(single_report())
    assert "ce reaches" in html
    assert "one seed" in html
    assert "Holm" not in html
    assert not Page(html).open


def test_a_report_repeats_byte_for_byte_and_replaces_what_was_there(tmp_path, html):
    path = tmp_path / "new" / "report.html"
    assert build_report(comparison_report(), path) == path
    assert path.read_text(encoding="utf-8") == html
    build_report(single_report(), path)
    assert "ce reaches" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("shape", "mode"), [((1, 8, 8), "L"), ((3, 9, 5), "RGB"), ((2, 4, 4), "L"), ((5, 4, 4), "L")])
def test_pictures_keep_their_pixels(shape, mode):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    kind, _, code = data_uri(image).partition(",")
    assert kind == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(code)))
    assert picture.mode == mode
    assert picture.size == (shape[2], shape[1])
    expected = image.transpose(1, 2, 0) if mode == "RGB" else image.mean(0).round()
    assert np.array_equal(np.asarray(picture), expected)


def test_large_pictures_become_thumbnails():
    code = data_uri(np.zeros((3, 3000, 1500), np.uint8)).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (80, 160)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8)), np.zeros((3, 0, 8), np.uint8)])
def test_bad_pictures_are_refused(image):
    with pytest.raises(ValueError, match="uint8 picture"):
        data_uri(image)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.83, 0.91), (-3, 1200), (5, 5), (0, 0), (1e-9, 3e-9), (-7, -7)])
def test_ticks_cover_the_data_at_round_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 12
    assert low != 0 or high != 1 or tick_texts(found) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def coordinates(svg: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {name}="(-?[\d.]+)"', svg)]


@pytest.mark.parametrize("kind", ["line", "bar"])
@pytest.mark.parametrize(
    "series",
    [
        (Series("one point", [1.0], [0.5], [0.4], [0.6]),),
        (Series("unknown", [1.0, 2.0], [0.5, None], [None, None], [None, None]),),  # pyright: ignore[reportArgumentType]
        (Series("constant", [1, 2, 3], [2.0, 2.0, 2.0]),),
        (Series("words", ["a", "b"], [-3.0, 4.0]), Series("other words", ["b", "c"], [1.0, 2.0])),
        tuple(Series(f"series {k}", ["x", "y"], [k / 9, 1 - k / 9]) for k in range(9)),
        (),
    ],
)
def test_charts_of_odd_data_stay_inside_their_frame(kind, series):
    drawing = draw(Chart("t", kind, "x", "y", series, "what it shows"))
    height = float(re.findall(r'viewBox="0 0 480 (\d+)"', drawing.svg)[0])
    for name, limit in (
        ("x", 480),
        ("x1", 480),
        ("x2", 480),
        ("cx", 480),
        ("y", height),
        ("y1", height),
        ("cy", height),
    ):
        assert all(-0.01 <= value <= limit + 0.01 for value in coordinates(drawing.svg, name)), name
    assert "nan" not in drawing.svg
    assert len(drawing.rows) == sum(len(s.x) for s in series)


@pytest.mark.parametrize("values", [[2.305, 2.31], [0.0, 100.0], [0.99995, 0.99999], [-0.25, 12345.0]])
def test_ticks_leave_room_for_the_name_of_the_axis(values):
    svg = draw(Chart("t", "line", "x", "y", (Series("s", [1, 2], values),), "d")).svg
    name = float(re.findall(r"translate\((\d+) ", svg)[0]) + 7
    for x, words in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end">([^<]*)<', svg):
        assert float(x) - 8.5 * len(words) >= name, words


def test_labels_that_would_be_cut_alike_keep_their_ends():
    names = [
        "ce",
        "scaling+warm-up+cosine without scaling",
        "scaling+warm-up+cosine without cosine",
        "another long one",
    ]
    found = labels(names, 14)
    assert found == ["ce", "…thout scaling", "…ithout cosine", "another long…"]
    assert max(map(len, found)) <= 14


def test_axes_of_shares_end_where_shares_do():
    assert share_ticks(80, 80, "test accuracy in %")[-1] == 100
    assert share_ticks(0, 0, "test accuracy in %")[0] == 0
    assert share_ticks(80, 80, "seconds")[-1] > 100
    assert share_ticks(95, 104, "test accuracy in %")[-1] >= 104


def test_bars_start_at_zero_and_are_as_long_as_their_values():
    svg = draw(Chart("t", "bar", "x", "y", (Series("s", ["a", "b"], [0.25, 0.5]),), "d")).svg
    short, long = coordinates(svg, "width")
    assert long == pytest.approx(2 * short, abs=0.02)


def test_series_differ_in_more_than_colour():
    svg = draw(Chart("t", "line", "x", "y", tuple(Series(str(k), [1, 2], [k, k]) for k in range(8)), "d")).svg
    looks = re.findall(r'class="line (s\d)" stroke-dasharray="([^"]+)"', svg)
    assert len(looks) == len(set(looks)) == 8


def test_numbers_as_text():
    assert [number(v) for v in (3, 12345, 0.12345, -0.5, 1e-5, float("inf"), None)] == [
        "3", "12\u202f345", "0.123", "−0.500", "1e−05", "–", "–",
    ]  # fmt: skip
    assert [p_value(p).replace("\u00a0", " ") for p in (0.0, 0.0004, 0.0216, 1.0)] == [
        "p < 0.001",
        "p < 0.001",
        "p = 0.022",
        "p = 1.000",
    ]
    assert [seconds(s) for s in (8.44, 59.99, 200, 7500)] == ["8.4 s", "60.0 s", "3 min 20 s", "2 h 05 min"]
    assert [seconds(s) for s in (0.0, 0.0004, 0.0123, 0.9994, 0.9996)] == [
        "under 1 ms", "under 1 ms", "12 ms", "999 ms", "1.0 s",
    ]  # fmt: skip
    share = Unit.of(True)
    assert [share.gap(v) for v in (0.0123, -0.0123, 0.0004, 0.0)] == [
        "1.2 points", "1.2 points", "less than 0.1 points", "0.0 points",
    ]  # fmt: skip
    assert [share.signed(v) for v in (0.0123, -0.0123, 0.0004, -0.0004, 0.0)] == ["+1.2", "−1.2", "0.0", "0.0", "0.0"]
    assert cell(0.5).sort == "0.5"
    assert cell("").sort == cell(None).sort == ""


def test_all_arms_are_in_the_interval_chart(html):
    overview = html[html.index('role="img"') : html.index('id="ranking"')]
    assert all(name in overview for name in MEANS)
    assert overview.count('class="dot') == 15
