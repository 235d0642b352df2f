"""The pages as a browser without scripts meets them."""

import csv
import io
import re
import threading
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from sample_reviews import Visitor, digits_of, review_of, served, wine_table

from weathered.core.errors import SpecError
from weathered.data.dataset import Dataset
from weathered.review.query import Query
from weathered.review.review import STATUSES, Selection


class Forms(HTMLParser):
    """The forms of a page outside of templates: action, fields, and the name and value of each button."""

    def __init__(self, text: str):
        super().__init__()
        self.forms, self.links, self._inert = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._inert += tag == "template"
        if self._inert:
            return
        if tag == "form":
            self.forms.append({"action": given["action"], "fields": {}, "buttons": {}})
        elif tag == "input" and self.forms and given.get("name"):
            self.forms[-1]["fields"][given["name"]] = given.get("value", "")
        elif tag == "button" and self.forms:
            name = given.get("data-action") or ""
            self.forms[-1]["buttons"][name] = (given.get("formaction"), given.get("name"), given.get("value"))
        elif tag == "a":
            self.links.append(given.get("href", ""))

    def handle_endtag(self, tag):
        self._inert -= tag == "template"


def click(visitor: Visitor, page: str, button: str, **typed: str) -> str:
    """Press a button of the page as it stands, and return the page that follows."""
    for form in Forms(page).forms:
        if button in form["buttons"] and (not typed or set(typed) <= set(form["fields"])):
            instead, name, value = form["buttons"][button]
            fields = {**form["fields"], **typed, **({name: value} if name else {})}
            status, headers, text = visitor.ask("POST", instead or form["action"], fields)
            assert status == 303, text
            return visitor.get(headers["location"])
    raise AssertionError(f"no button {button}")


def test_pictures_are_the_pixels_of_their_rows(site, ann):
    for row in (0, 7, 199):
        _, headers, text = ann.ask("GET", f"/image/{row}.png")
        assert headers["content-type"] == "image/png"
        pixels = torch.tensor(list(Image.open(io.BytesIO(text.encode("latin-1"))).tobytes())).reshape(8, 8)
        assert torch.equal(pixels.to(torch.uint8), site.review.dataset.inputs.fetch(torch.tensor([row]))[0, 0])


def test_it_works_without_any_script(tmp_path):
    """Buttons are forms: each decision leads to the next suspect, other filters and pages are links."""
    review = review_of(digits_of(), tmp_path)
    rows = review.suspects.tolist()
    with served(review) as site:
        ann = site.visitor("ann")
        page = ann.get("/")
        page = click(ann, page, "accept")
        assert "changed to" in re.search(r'role="status">([^<]*)<', page)[1]
        page = click(ann, page, "keep")
        page = click(ann, page, "skip")
        given = int(review.audited.label[rows[3]])
        third = next(c for c in range(10) if c not in (given, review.audited.suggested[rows[3]]))
        page = click(ann, page, "", **{"class": f" {third} "})
        page = click(ann, page, "accept")
        page = click(ann, page, "undo")
        lines = review.store.since()
        assert [(line.row, line.action) for line in lines] == [
            (rows[0], "accept"), (rows[1], "keep"), (rows[2], "skip"), (rows[3], "relabel"), (rows[4], "accept"),
            (rows[4], "undo"),
        ]  # fmt: skip
        assert lines[3].label == third
        shown = [int(row) for row in re.findall(r'<li data-row="(\d+)"', page)]
        assert shown == rows[4:28]
        assert f'id="suspect-{rows[4]}" aria-current="true"' in page
        following = next(link for link in Forms(page).links if "start=" in link and "focus" not in link)
        shown = [int(row) for row in re.findall(r'<li data-row="(\d+)"', ann.get(following))]
        assert shown == rows[28:52]
        assert [int(row) for row in re.findall(r'<li data-row="(\d+)"', ann.get("/?status=skipped"))] == [rows[2]]
        # sent again by a reload, a form is stored once
        form = Forms(page).forms[1]
        for _ in range(2):
            assert ann.ask("POST", "/decide", {**form["fields"], "label": "3"})[0] == 303
        assert len(review.store.since()) == 7


def test_filters_show_what_they_say(site):
    review = site.review
    ann, bob = site.visitor("filter ann"), site.visitor("filter bob")

    def rows(visitor, query):
        return [int(row) for row in re.findall(r'<li data-row="(\d+)"', visitor.get(f"/?{query}"))]

    first, second, third = review.suspects[:3].tolist()
    given, suggested = int(review.audited.label[first]), int(review.audited.suggested[first])
    assert all(review.audited.label[row] == given for row in rows(ann, f"status=all&class={given}"))
    pair = rows(ann, f"status=all&pair={given}-{suggested}")
    assert first in pair
    assert all((review.audited.label[r], review.audited.suggested[r]) == (given, suggested) for r in pair)
    ann.post("/decide", row=first, label=suggested, key="filter-01")
    bob.post("/decide", row=first, label=given, key="filter-02")
    ann.post("/decide", row=second, label=suggested, key="filter-03")
    ann.post("/decide", row=third, label="skip", key="filter-04")
    assert rows(ann, "status=disagreement") == [first]
    assert rows(ann, "status=mine") == [first, second]
    assert rows(bob, "status=second") == [second]
    assert rows(ann, "status=skipped") == [third]
    assert rows(ann, "")[0] == review.suspects[3]
    assert rows(bob, "")[0] == third
    text = ann.get("/?status=disagreement")
    assert f"filter bob: {unescape(review.class_names[given])}"[:12] in text
    assert '<span class="flag">disagreement</span>' in text
    assert "1 disagreement" in text


def test_addresses_are_read_back_and_bad_ones_are_one_sentence(ann):
    for query in (
        Query(),
        Query(Selection("disagreement", 3, (4, 5)), 25, 17),
        Query(Selection("all"), focus=0),
        Query(Selection(given=0, pair=(0, 9))),
    ):
        assert Query.parse_text(query.text, 10) == query
    for status in STATUSES:
        assert Query.parse({"status": status, "class": "", "pair": ""}, 10).selection == Selection(status)
    for bad in (
        "status=opne",
        "class=10",
        "class=x",
        "pair=3",
        "pair=3-4-5",
        "start=-1",
        "focus=1e5",
        "start=" + "9" * 5000,
    ):
        with pytest.raises(SpecError):
            Query.parse_text(bad, 10)
        assert ann.ask("GET", f"/?{bad}")[0] == 400
    assert ann.ask("GET", "/?start=999999&focus=777777")[0] == 200


def test_corrections_are_downloaded(site):
    eve = site.visitor("eve")
    row = int(site.review.suspects[30])
    eve.post("/decide", row=row, label=int(site.review.audited.suggested[row]), key="download-1")
    _, headers, text = eve.ask("GET", "/corrections.csv")
    assert 'filename="corrections.csv"' in headers["content-disposition"]
    assert str(3 * row) in [line["row"] for line in csv.DictReader(io.StringIO(text))]
    assert eve.ask("GET", "/corrections.parquet")[0] == 200
    assert eve.ask("GET", "/corrections.xlsx")[0] == 404


def test_rows_of_a_table_are_shown_beside_what_is_usual(tmp_path):
    review = review_of(wine_table(), tmp_path, suspects=30)
    with served(review) as site:
        ann = site.visitor("ann")
        text = ann.get("/")
        assert "<img" not in text
        assert "median of" in text
        assert "unlike given" in text
        assert ann.ask("GET", "/image/0.png")[0] == 404
        assert "29 of" not in text
        click(ann, text, "accept")
    assert [line.action for line in review.store.since()] == ["accept"]


def test_the_last_decision_and_an_audit_without_suspects_are_said(tmp_path):
    with served(review_of(digits_of(), tmp_path / "one", suspects=1)) as site:
        ann = site.visitor("ann")
        page = click(ann, ann.get("/"), "accept")
        assert "Every suspect is decided." in page
        assert "Suspects 1 to 1 of 1" in click(ann, page, "undo")
    with served(review_of(digits_of(), tmp_path / "none", suspects=0)) as site:
        assert "The audit suspects no label." in site.visitor("ann").get("/")


def test_a_picture_that_is_gone_is_one_sentence_and_the_page_goes_on(tmp_path):
    class Gone:
        shape, dtype, in_memory = (1, 8, 8), torch.uint8, False

        def __len__(self):
            return 200

        def fetch(self, index):
            from weathered.data.images import BadImage

            raise BadImage("photos/7.png: there is no such file.")

        def select(self, index):
            return self

    digits = digits_of()
    with served(review_of(Dataset(Gone(), digits.labels, digits.class_names, name="gone"), tmp_path)) as site:
        ann = site.visitor("ann")
        status, _, text = ann.ask("GET", "/image/7.png", headers={"accept": "application/json"})
        assert status == 410
        assert "the picture of row 7 is gone since the audit: photos/7.png: there is no such file." in text
        assert "Suspects 1 to 24" in ann.get("/")


def test_a_hundred_requests_at_once_lose_nothing(tmp_path):
    """A hundred decisions by four people at the same moment, every other one sent twice."""
    review = review_of(digits_of(), tmp_path, suspects=100)
    with served(review) as site:
        people = [site.visitor(f"person {i}") for i in range(4)]
        start, failed = threading.Barrier(100), []

        def send(number: int) -> None:
            row = int(review.suspects[number])
            start.wait()
            for _ in range(1 + number % 2):
                fields = {"row": row, "label": number % 10, "key": f"at-once-{number}"}
                status, _, text = people[number % 4].post("/decide", **fields)
                if status != 200:
                    failed.append(text)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = review.store.since()
    assert failed == []
    expected = {(int(review.suspects[n]), f"person {n % 4}", n % 10) for n in range(100)}
    assert {(line.row, line.reviewer, line.label) for line in lines} == expected
    assert len(lines) == 100
