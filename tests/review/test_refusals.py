"""What the page refuses: strangers, other hosts and sites, paths, markup, forms that do not fit."""

import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
import torch
from sample_reviews import HOSTILE, TOKEN, Visitor, digits_of, review_of, served


def test_without_a_token_nothing_is_served(site):
    stranger = Visitor(site.port)
    for path in ("/", "/image/0.png", "/corrections.csv", "/corrections.parquet", "/state?rows=1", "/?status=all"):
        status, _, text = stranger.ask("GET", path)
        assert status == 403, path
        assert "digits" not in text.partition("</title>")[2]
    for path in ("/decide", "/undo", "/join"):
        assert stranger.post(path, row=1, label=2, key="key-00000000", token="wrong", name="x")[0] == 403
    for token in ("", "wrong", TOKEN[:-1], "ä"):
        assert stranger.ask("GET", f"/?token={quote(token)}")[0] == 403
    stranger.cookies[f"review-{site.review.store.fact('audit')[:12]}"] = "guessed"
    assert stranger.ask("GET", "/")[0] == 403


def test_a_token_works_once_and_only_when_a_name_is_given(tmp_path):
    with served(review_of(digits_of(), tmp_path)) as site:
        for _ in range(3):
            # links are looked at ahead by browsers and mail programs
            assert Visitor(site.port).ask("GET", f"/?token={TOKEN}")[0] == 200
        for name in ("", "   ", "=cmd", "a,b", "a\0b", "x" * 41, "<b>", "-x"):
            status, headers, _ = Visitor(site.port).ask("POST", "/join", {"token": TOKEN, "name": name})
            assert status == 422
            assert "set-cookie" not in headers
        first = Visitor(site.port)
        status, headers, _ = first.ask("POST", "/join", {"token": TOKEN, "name": " Ann  de la Tour "})
        assert status == 303
        for part in ("HttpOnly", "SameSite=strict", "Path=/"):
            assert part in headers["set-cookie"]
        assert "You are <b>Ann de la Tour</b>" in first.get("/")
        assert Visitor(site.port).ask("POST", "/join", {"token": TOKEN, "name": "bob"})[0] == 403
        assert Visitor(site.port).ask("GET", f"/?token={TOKEN}")[0] == 403
        again = Visitor(site.port)
        fields = {"token": site.tokens[-1], "name": "Ann de la Tour"}
        status, _, text = again.ask("POST", "/join", fields)
        assert status == 409
        assert "has joined before" in text
        assert again.ask("POST", "/join", {**fields, "same": "yes"})[0] == 303
        assert len(set(site.tokens)) == 3


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "127.0.0.1:8x", "", "[::1]"]
)
def test_names_that_someone_points_at_this_machine_are_refused(site, ann, host):
    assert ann.ask("GET", "/", headers={"host": host})[0] == 403


def test_the_local_names_are_answered(site, ann):
    for host in ("127.0.0.1", f"localhost:{site.port}", "localhost"):
        assert ann.ask("GET", "/", headers={"host": host})[0] == 200
    assert ann.ask("GET", "/", headers={"host": None})[0] in (400, 403)


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_forms_of_other_sites_are_refused(site, ann, origin):
    row = int(site.review.suspects[0])
    before = len(site.review.store.since())
    fields = {"row": row, "label": 3, "key": "key-00000000", "back": ""}
    assert ann.ask("POST", "/decide", fields, {"origin": origin})[0] == 403
    assert len(site.review.store.since()) == before
    assert ann.ask("PUT", "/decide", fields)[0] == 403


def test_every_answer_carries_the_policy(site, ann):
    for path, kept in (
        ("/", "no-store"),
        ("/image/3.png", "private"),
        ("/nowhere", "no-store"),
        ("/assets/review.js", "no-cache"),
    ):
        _, headers, _ = ann.ask("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert kept in headers["cache-control"]


class Attributes(HTMLParser):
    """The names of all attributes in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names |= {name for name, _ in attrs}


def test_pages_hold_no_inline_scripts_and_no_other_hosts(ann):
    text = ann.get("/?status=all")
    assert re.findall(r"<script[^>]*>", text) == ['<script src="/assets/review.js" defer>']
    assert not [name for name in Attributes(text).names if name.startswith("on") or name in ("style", "srcdoc")]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", text)


def test_class_names_are_text_and_never_markup(site, ann):
    text = ann.get("/?status=all&class=0")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert unescape(re.search(r'class="given">([^<]*)<', text)[1]) == HOSTILE[0]
    assert "{{ 7 * 7 }}" in ann.get("/?status=all")
    status, _, text = ann.post(
        "/decide", json=False, row=int(site.review.suspects[0]), key="key-00000000", **{"class": "<b>x"}
    )
    assert status == 400
    assert "<b>x" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/image/200.png", "/image/-1.png", "/image/1e0.png", "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd.png",
        "/image/٣.png", "/image/../../etc/passwd", "/image//etc/passwd.png", "/image/0.png/../../../etc/passwd",
        "/image/99999999999999.png", "/assets/../store.py", "/assets/%2e%2e/store.py", "/assets/base.html.jinja",
        "/assets/review.sqlite", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_only_rows_by_number_and_three_assets_are_files(ann, path):
    status, _, text = ann.ask("GET", quote(path, safe="/%"))
    assert status == 404
    assert "root:" not in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"row": "x"}, "there is no row 'x'"),
        ({"row": "200"}, "there is no row '200'"),
        ({"row": "CLEAN"}, "is not among the suspects"),
        ({"label": "10"}, "there is no class number 10"),
        ({"label": "", "class": "thre"}, "there is no class 'thre'"),
        ({"key": ""}, "no key of its own"),
        ({"key": "<x>" * 5}, "no key of its own"),
        ({"back": "status=never"}, "there is no status"),
        ({"back": "&".join(f"junk{i}=1" for i in range(21))}, "more than 20 fields"),
    ],
)
def test_what_a_form_says_wrong_is_one_sentence(site, ann, fields, sentence):
    clean = int((~torch.from_numpy(site.review.audited.suspected)).nonzero()[0])
    before = len(site.review.store.since())
    sent = {"row": int(site.review.suspects[9]), "label": "1", "key": "key-00000077", "back": "", **fields}
    sent = {name: str(clean) if value == "CLEAN" else value for name, value in sent.items()}
    status, _, text = ann.post("/decide", **sent)
    assert status == 400
    assert sentence in text
    assert len(site.review.store.since()) == before


def test_forms_that_are_none_or_too_large_are_refused(ann):
    assert ann.ask("POST", "/decide", {"row": 1}, {"content-type": "application/json"})[0] == 400
    assert ann.ask("POST", "/decide", {"row": "1" * 70000})[0] == 400
    assert ann.ask("POST", "/decide", {f"f{i}": 1 for i in range(60)})[0] == 400
