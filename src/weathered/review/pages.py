"""The web application: which address answers what. Texts and arrangement are in the templates."""

import re
import uuid
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from weathered.core.errors import DataError, SpecError, WeatheredError
from weathered.core.spec import near
from weathered.review.export import corrections, encoded
from weathered.review.guard import Guard
from weathered.review.joining import Door, NameTaken, Refused
from weathered.review.query import Query
from weathered.review.review import Review
from weathered.review.views import Views, progress_texts

LARGEST_FORM = 1 << 16
ASSETS = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
EXPORTS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
LONGEST_NUMBER = 12
MOST_ROWS = 200
MONTH_SECONDS = 30 * 24 * 3600


def build_app(review: Review, token: str, joined: Callable[[str, str], None] | None = None) -> FastAPI:
    """The application of one review.

    token: lets one reviewer in, who is then known by a cookie that outlives the server. joined: told the name of each
    who came in and the token for the next.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages(review, Door(review.store, token, joined))
    app.get("/")(pages.suspects)
    app.get("/state")(pages.state)
    app.get("/image/{row}.png")(pages.image)
    app.get("/corrections.{kind}")(pages.export)
    app.get("/assets/{name}")(pages.asset)
    app.post("/join")(pages.join)
    app.post("/decide")(pages.decide)
    app.post("/undo")(pages.undo)
    app.exception_handler(WeatheredError)(pages.problem)
    app.exception_handler(404)(pages.nothing_there)
    app.add_middleware(Guard)
    return app


class Pages:
    """What the addresses of a review answer. Every one but the assets needs a session or a link that still works."""

    def __init__(self, review: Review, door: Door):
        self.review, self.door, self.views = review, door, Views(review)
        self._assets = {name: files("weathered.review").joinpath("templates", name).read_bytes() for name in ASSETS}
        # a cookie belongs to all ports, and other reviews may be open on them
        self._cookie = f"review-{self.views.version}"
        self._templates = Environment(
            loader=PackageLoader("weathered.review"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["new_key"] = lambda: str(uuid.uuid4())

    def suspects(self, request: Request) -> Response:
        """A page of suspects; with a token the page on which a reviewer gives a name."""
        if (token := request.query_params.get("token")) is not None:
            if not self.door.fits(token):
                raise Refused("this link was used before, or belongs to a server that has ended")
            return self._page("join.html.jinja", token=token, name="", problem="", taken=False)
        reviewer = self._reviewer(request)
        query = Query.parse(request.query_params, len(self.review.class_names))
        return self._page(
            "suspects.html.jinja",
            page=self.views.page(query, reviewer),
            filters=self.views.filters(query),
            query=query,
            reviewer=reviewer,
            class_names=self.review.class_names,
        )

    def state(self, request: Request, rows: str = "") -> Response:
        """Marks of the rows on a page, and the progress, as they are now."""
        reviewer = self._reviewer(request)
        asked = [self._row(text) for text in rows.split(",")[:MOST_ROWS]]
        return JSONResponse(self._state([row for row in asked if row is not None], reviewer))

    def image(self, request: Request, row: str) -> Response:
        """The picture of a training row, by its number and nothing else."""
        self._reviewer(request)
        known = self._row(row)
        if known is None or self.views.pictures is None:
            return self._error(request, f"there is no picture of a row '{row[:40]}'", 404)
        try:
            content = self.views.pictures.png(known)
        except DataError as error:
            return self._error(request, f"the picture of row {row} is gone since the audit: {error}", 410)
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})

    def export(self, request: Request, kind: str) -> Response:
        """The corrections so far, as a file."""
        self._reviewer(request)
        if kind not in EXPORTS:
            return self._error(request, f"corrections are written as csv or parquet, not as '{kind[:40]}'", 404)
        with self.review.standing() as standing:
            lines = corrections(self.review.audited, self.review.class_names, standing).lines
        headers = {"content-disposition": f'attachment; filename="corrections.{kind}"'}
        return Response(encoded(kind, lines), media_type=EXPORTS[kind], headers=headers)

    def asset(self, name: str) -> Response:
        """The style sheet, the script and the icon."""
        if name not in ASSETS:
            return Response("There is no such file.", 404, media_type="text/plain")
        return Response(self._assets[name], media_type=ASSETS[name], headers={"cache-control": "no-cache"})

    async def join(self, request: Request) -> Response:
        """Take a name and a token for a session."""
        form = await read_form(request)
        token, name = form.get("token", ""), form.get("name", "")
        try:
            secret = await run_in_threadpool(self.door.join, token, name, form.get("same") == "yes")
        except NameTaken as error:
            return self._page("join.html.jinja", 409, token=token, name=name, problem=str(error), taken=True)
        except SpecError as error:
            return self._page("join.html.jinja", 422, token=token, name=name, problem=str(error), taken=False)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, secret, max_age=MONTH_SECONDS, httponly=True, samesite="strict")
        return answer

    async def decide(self, request: Request) -> Response:
        """Store what a reviewer says of a suspect."""
        return await self._change(request, self._decide)

    async def undo(self, request: Request) -> Response:
        """Take back the reviewer's last decision."""
        return await self._change(request, self._undo)

    async def _change(
        self, request: Request, act: Callable[[Mapping[str, str], Query, str, str], tuple[dict[str, Any], Query]]
    ) -> Response:
        reviewer = await run_in_threadpool(self._reviewer, request)
        form = await read_form(request)
        key = form.get("key", "")
        if not re.fullmatch(r"[0-9A-Za-z-]{8,64}", key):
            raise SpecError("the request carries no key of its own; load the page again.")
        query = Query.parse_text(form.get("back", ""), len(self.review.class_names))
        answer, back = await run_in_threadpool(act, form, query, reviewer, key)
        if _wants_json(request):
            return JSONResponse({**answer, "address": back.address})
        return RedirectResponse(back.address, 303)

    def _decide(self, form: Mapping[str, str], query: Query, reviewer: str, key: str) -> tuple[dict[str, Any], Query]:
        row, text = self._row(form.get("row", "")), form.get("label", "")
        if row is None:
            raise SpecError(f"there is no row '{form.get('row', '')[:40]}' in the training set.")
        if text == "skip":
            label = None
        elif text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER:
            label = int(text)
        else:
            label = self._class_named(form.get("class", ""))
        self.review.decide(row, label, reviewer, key)
        following = self.views.following(query, row, reviewer)
        return self._state([row], reviewer), query.at(query.start, following)

    def _undo(self, form: Mapping[str, str], query: Query, reviewer: str, key: str) -> tuple[dict[str, Any], Query]:
        line = self.review.store.undo(reviewer, key)
        if line is None:
            return self._state([], reviewer), query
        return self._state([line.row], reviewer), query.at(query.start, line.row)

    def _state(self, rows: list[int], reviewer: str) -> dict[str, Any]:
        with self.review.standing() as standing:
            marks = [self.views.mark(row, reviewer, standing)._asdict() for row in rows]
            progress = self.review.progress(standing)
        return {"marks": marks, "progress": progress_texts(progress)}

    def _row(self, text: str) -> int | None:
        """A training row by its number, None where there is no such row."""
        good = text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER
        return int(text) if good and int(text) < len(self.review.audited) else None

    def _class_named(self, name: str) -> int:
        names = self.review.class_names
        if (found := name if name in names else name.strip()) not in names:
            raise SpecError(f"there is no class '{found[:80]}'.{near(found[:80], names)}")
        return names.index(found)

    def _reviewer(self, request: Request) -> str:
        secret = request.cookies.get(self._cookie)
        reviewer = None if secret is None else self.review.store.reviewer_of(secret)
        if reviewer is None:
            raise Refused("every reviewer needs a link of their own")
        return reviewer

    async def problem(self, request: Request, error: Exception) -> Response:
        """One sentence for whatever a reviewer or the machine did wrong."""
        status = 403 if isinstance(error, Refused) else 503 if isinstance(error, DataError) else 400
        return self._error(request, str(error), status)

    async def nothing_there(self, request: Request, error: Exception) -> Response:
        return self._error(request, "there is no such page", 404)

    def _error(self, request: Request, sentence: str, status: int) -> Response:
        if _wants_json(request):
            return JSONResponse({"problem": sentence}, status)
        return self._page("problem.html.jinja", status, sentence=sentence, refused=status == 403)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(
            title=self.review.title, version=self.views.version, **values
        )
        return HTMLResponse(text, status)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises SpecError if it is too large or not encoded as a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise SpecError("the request is not a form.")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_FORM:
            raise SpecError(f"the form is larger than {LARGEST_FORM} bytes.")
    try:
        return dict(parse_qsl(content.decode(), keep_blank_values=True, max_num_fields=50, errors="strict"))
    except ValueError as error:
        raise SpecError("the form is not encoded as browsers do it.") from error


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")
