"""The page on which people judge, on loopback: a token in every call, nothing from outside, no method's name."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson

from kt.annotate import Study, check_name
from kt.errors import InputError, KtError
from kt.judge import CRITERIA

if TYPE_CHECKING:
    from aiohttp import web

HEADER = "X-KT-Token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ASSETS = {"annotate.css": "text/css", "annotate.js": "text/javascript"}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


class Page:
    """What the page asks and is told. Method names never leave this object: the page knows answers A and B."""

    def __init__(self, study: Study, token: str, annotator: str | None, *, show_gold: bool, open_page: bool) -> None:
        self.study, self.token, self.annotator = study, token, annotator
        self.show_gold, self.open_page = show_gold, open_page

    def start(self, annotator: str) -> dict[str, Any]:
        """Return an annotator's progress: for every item how many criteria are judged."""
        check_name(annotator)
        given = self.study.of(annotator)
        judged = [len(given.get(task.id, ())) for task in self.study.tasks]
        return {"annotator": annotator, "criteria": CRITERIA, "judged": judged}

    def item(self, annotator: str, number: int) -> dict[str, Any]:
        """Return one item as it is shown, with what this annotator has said of it."""
        check_name(annotator)
        if not 0 <= number < len(self.study.tasks):
            raise InputError(f"no item {number}: the study has {len(self.study.tasks)}")
        task = self.study.tasks[number]
        shown = {"id": task.id, "question": task.question, "answers": [task.text_a, task.text_b]}
        gold = task.gold if self.show_gold else None
        return {"number": number, **shown, "gold": gold, "choices": self.study.of(annotator, task.id).get(task.id, {})}

    def judge(self, body: Any) -> dict[str, Any]:
        """Store a judgement and return the item's choices as they now stand on the disk."""
        names = ("annotator", "id", "criterion", "choice")
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in names):
            raise InputError(f"a judgement is an object of {', '.join(names)}")
        self.study.judge(*(body[name] for name in names))
        return {"choices": self.study.of(body["annotator"], body["id"])[body["id"]]}


def make_app(page: Page) -> web.Application:
    """Return the application that serves a page."""
    from aiohttp import web

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse other hosts' names and calls without the token; say errors as JSON; close every door in the headers."""
        response: web.StreamResponse
        try:
            problem = refuse(request, page.token)
            response = _json({"error": problem}, 403) if problem else await handler(request)
        except KtError as error:
            response = _json({"error": str(error)}, 400 if isinstance(error, InputError) else 500)
        except web.HTTPException as error:
            response = _json({"error": error.reason}, error.status)
        response.headers.update(SECURITY)
        return response

    async def index(_: web.Request) -> web.Response:
        # Without a token in the URL (--no-token) the page itself hands it out: other sites still cannot read it.
        settings = {"annotator": page.annotator, "token": page.token if page.open_page else None}
        html = _asset("annotate.html").replace("{settings}", _attribute(orjson.dumps(settings).decode()))
        return web.Response(text=html, content_type="text/html")

    async def asset(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in ASSETS:
            raise web.HTTPNotFound
        return web.Response(text=_asset(name), content_type=ASSETS[name])

    async def start(request: web.Request) -> web.Response:
        return _json(page.start(request.query.get("annotator", "")))

    async def item(request: web.Request) -> web.Response:
        return _json(page.item(request.query.get("annotator", ""), int(request.match_info["number"])))

    async def judge(request: web.Request) -> web.Response:
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise InputError("the body is not JSON") from error
        return _json(page.judge(body))

    app = web.Application(middlewares=[guard], client_max_size=1 << 16)
    app.router.add_get("/", index)
    app.router.add_get("/assets/{name}", asset)
    app.router.add_get("/api/start", start)
    app.router.add_get(r"/api/item/{number:\d{1,9}}", item)
    app.router.add_post("/api/judgement", judge)
    return app


def refuse(request: web.Request, token: str) -> str | None:
    """Say why a request is refused: a Host that is not this machine (DNS rebinding), or a call without the token."""
    host = request.host.rsplit(":", 1)[0].strip("[]") if request.host != "::1" else request.host
    if host not in LOOPBACK:
        return "this page is for this machine alone"
    given = request.headers.get(HEADER, "")
    if request.path.startswith("/api/") and not secrets.compare_digest(given.encode(), token.encode()):
        return "the token in the URL is missing or old: open the address that kt annotate printed"
    return None


def _json(value: Any, status: int = 200) -> web.Response:
    from aiohttp import web

    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _asset(name: str) -> str:
    return files("kt").joinpath("pages", name).read_text("utf-8")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def listen(port: int) -> socket.socket:
    """Take a port of the loopback interface, 0 for any free one; InputError if it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)  # who calls before the application is up waits in this queue
    except OSError as error:
        listener.close()
        raise InputError(f"--port {port}: {error.strerror}; give another, or leave it out for a free one") from error
    return listener


def run(page: Page, listener: socket.socket) -> None:
    """Serve a page until Ctrl-C or SIGTERM."""
    from aiohttp import web

    web.run_app(make_app(page), sock=listener, print=None, access_log=None, shutdown_timeout=1.0)
