"""The page and what it asks for, on this machine only.

Who may ask: whoever has the token, under a name that this server is known by, from this page. What
goes out is JSON, a JPEG made here, or one of the page's own files; images are asked for by number,
so that no key is ever part of an address. The page may load nothing from elsewhere.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from bliss_index.devices import usable_processors
from bliss_index.errors import (
    BlissError,
    InvalidInputError,
    MissingDependencyError,
    OutputError,
    install_line,
)
from bliss_index.review.catalogue import Filters
from bliss_index.review.pictures import SIDES, Thumbnails
from bliss_index.review.session import ReviewSession

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError(
        f"review needs Starlette and uvicorn ({error}); {install_line('review')}"
    ) from error

HOST = "127.0.0.1"
FIRST_PORT = 8700
_PORTS = 20
_LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]"))
_FILES = {
    "page.js": "text/javascript",
    "grid.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_MOST_BYTES = 1 << 20
_AT_ONCE = 64
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]


def listen(port: int | None = None) -> socket.socket:
    """Listen on this machine only.

    Parameters
    ----------
    port : int, default=None
        0 for any that is free; None for the first free one from 8700 on.

    Raises
    ------
    OutputError
        The port is taken.
    """
    tried = range(FIRST_PORT, FIRST_PORT + _PORTS) if port is None else [port]
    reason = ""
    for number in tried:
        # With its protocol named, asyncio sends small answers at once.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
        else:
            return listener
    raise OutputError(
        f"cannot listen on {HOST}, port {' to '.join(str(n) for n in {tried[0], tried[-1]})}: "
        f"{reason}; --port 0 takes any that is free"
    )


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer until the process is asked to end."""
    make_server(app).run(sockets=[listener])


def make_server(app: Starlette) -> uvicorn.Server:
    """Make what answers with the application; it ends when its ``should_exit`` is set, too."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off",
        ws="none", limit_concurrency=_AT_ONCE * 4, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def make_app(
    session: ReviewSession, token: str, *, cookie: str = "bliss_review", hosts: tuple[str, ...] = ()
) -> Starlette:
    """Make the application.

    Parameters
    ----------
    session : ReviewSession
        What it shows and changes.
    token : str
        Who has it may ask.
    cookie : str, default="bliss_review"
        Name of the cookie that keeps it.
    hosts : tuple of str, default=()
        Names under which a proxy serves the page, beside those of this machine.
    """
    routes = _Routes(session)
    posts = {"judge": routes.judge, "undo": routes.undo, "draw": routes.draw,
             "propose": routes.propose, "accept": routes.accept}  # fmt: skip
    gets = {
        "facts": routes.facts, "view": routes.view, "rows": routes.rows, "image": routes.image,
        "picture": routes.picture, "draws": routes.draws, "proposal": routes.proposal,
    }  # fmt: skip
    app = Starlette(
        routes=[
            Route("/", routes.page),
            *(Route(f"/{name}", routes.file) for name in _FILES),
            *(Route(f"/{name}", handler) for name, handler in gets.items()),
            *(Route(f"/{name}", handler, methods=["POST"]) for name, handler in posts.items()),
        ]
    )
    guard = _Guard(token, cookie, _LOCAL | {name.lower() for name in hosts})
    app.add_middleware(guard.around)
    return app


class _Guard:
    """Refuses requests under other names, from other pages, or without the token."""

    def __init__(self, token: str, cookie: str, hosts: frozenset[str]) -> None:
        self._token = token.encode()
        self._cookie = cookie
        self._hosts = hosts

    def around(self, inner: Any) -> Any:
        async def ask(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope, receive)
            refused = self._refusal(request)
            if refused is not None:
                await refused(scope, receive, send)
                return

            async def answer(message: Any) -> None:
                if message["type"] == "http.response.start":
                    known = {name.lower() for name, _ in message["headers"]}
                    message["headers"] += [
                        (name.lower().encode(), value.encode())
                        for name, value in _HEADERS.items()
                        if name.lower().encode() not in known
                    ]
                    if "token" in request.query_params:
                        cookie = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict"
                        message["headers"].append((b"set-cookie", cookie.encode()))
                await send(message)

            await inner(scope, receive, answer)

        return ask

    def _refusal(self, request: Request) -> Response | None:
        host = _name_of(request.headers.get("host", ""))
        if host not in self._hosts:
            return _refused(
                f"This page is not served under the name {host!r}. If a proxy of yours serves it: "
                "bliss-index review --allow-host NAME"
            )
        given = request.query_params.get("token") or request.cookies.get(self._cookie) or ""
        if not secrets.compare_digest(given.encode(errors="replace"), self._token):
            return _refused("The token is missing or wrong: open the address that review printed.")
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "same-origin")
            if origin is not None and _name_of(origin.partition("://")[2]) not in self._hosts:
                return _refused(f"This request comes from another page: {origin!r}.")
            if site not in ("same-origin", "none"):
                return _refused(f"This request comes from another site: {site!r}.")
            if request.headers.get("content-type") != "application/json":
                return _refused("Only application/json is taken.")
        return None


def _name_of(host: str) -> str:
    """A host without its port."""
    name, _, port = host.lower().rpartition(":")
    return name if port.isdigit() and name else host.lower()


def _refused(text: str) -> Response:
    return PlainTextResponse(text, 403, dict(_HEADERS))


class _Routes:
    """What may be asked for."""

    def __init__(self, session: ReviewSession) -> None:
        self._session = session
        self._pictures = Thumbnails(session.inputs.images)
        self._decoding = anyio.Semaphore(usable_processors())
        folder = resources.files("bliss_index.review")
        self._files = {name: folder.joinpath(name).read_bytes() for name in (*_FILES, "page.html")}

    async def page(self, request: Request) -> Response:
        return Response(self._files["page.html"], media_type="text/html; charset=utf-8")

    async def file(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return Response(self._files[name], media_type=_FILES[name])

    async def facts(self, request: Request) -> Response:
        return await _answer(self._session.facts)

    async def draws(self, request: Request) -> Response:
        return await _answer(self._session.draws)

    async def proposal(self, request: Request) -> Response:
        return await _answer(self._session.proposal)

    async def propose(self, request: Request) -> Response:
        given = await _body(request)
        group, name = str(given.get("group")), str(given.get("name"))
        return await _answer(lambda: self._session.propose(group, name))

    async def accept(self, request: Request) -> Response:
        await _body(request)
        return await _answer(self._session.accept)

    async def view(self, request: Request) -> Response:
        def make() -> Any:
            given = dict(request.query_params)
            verdict, draw = given.pop("verdict", None), given.pop("draw", None)
            return self._session.make_view(_filters(given), verdict, draw)

        return await _answer(make)

    async def rows(self, request: Request) -> Response:
        given = request.query_params

        def read() -> Any:
            view, first, count = (
                given.get("view", ""),
                _whole(given, "first"),
                _whole(given, "count"),
            )
            return self._session.rows(view, first, count)

        return await _answer(read)

    async def image(self, request: Request) -> Response:
        return await _answer(lambda: self._session.detail(_whole(request.query_params, "id")))

    async def picture(self, request: Request) -> Response:
        async with self._decoding:
            if await request.is_disconnected():  # it was scrolled away
                return Response(status_code=499)
            return await _answer(lambda: self._picture(request))

    def _picture(self, request: Request) -> Response:
        if request.query_params.get("of") != self._session.catalogue.name:
            raise KeyError  # a number is that of an image of one catalogue
        size = request.query_params.get("size", "small")
        if size not in SIDES:
            raise InvalidInputError(f"size {size!r} is not one of {', '.join(SIDES)}")
        key = self._session.key_of(_whole(request.query_params, "id"))
        content, missing = self._pictures.find(key, SIDES[size])
        if content is None:
            return JSONResponse({"error": missing}, 404)
        headers = {"Cache-Control": "private, max-age=600"}
        return Response(content, media_type="image/jpeg", headers=headers)

    async def judge(self, request: Request) -> Response:
        given = await _body(request)
        return await _answer(
            lambda: self._session.judge(
                str(given.get("view")), _ranges(given.get("ranges")), str(given.get("verdict"))
            )
        )

    async def undo(self, request: Request) -> Response:
        await _body(request)
        return await _answer(self._session.undo)

    async def draw(self, request: Request) -> Response:
        given = await _body(request)

        def make() -> Any:
            size, threshold = given.get("size"), given.get("threshold")
            if type(size) is not int or not isinstance(threshold, (int, float, type(None))):
                raise InvalidInputError(f"size {size!r} and threshold {threshold!r} are no numbers")
            return self._session.draw(str(given.get("of")), size, threshold)

        return await _answer(make)


async def _answer(make: Callable[[], Any]) -> Response:
    """Do something in a thread, and answer with what it returns or with its error."""
    try:
        made = await run_in_threadpool(make)
    except KeyError:
        return JSONResponse({"error": "this view is no longer kept"}, 410)
    except OutputError as error:
        return JSONResponse({"error": str(error)}, 507)
    except BlissError as error:
        return JSONResponse({"error": str(error)}, 400)
    return made if isinstance(made, Response) else JSONResponse(made)


async def _body(request: Request) -> dict[str, Any]:
    """Read a JSON object of at most a mebibyte; an empty one where it is none."""
    data = b""
    try:
        async for block in request.stream():
            data += block
            if len(data) > _MOST_BYTES:
                return {}
        values = json.loads(data)
    except (ValueError, RecursionError, ClientDisconnect):
        return {}
    return values if isinstance(values, dict) else {}


def _filters(given: dict[str, str]) -> Filters:
    values: dict[str, Any] = dict(given)
    for name, text in given.items():
        if name not in Filters.__dataclass_fields__:
            raise InvalidInputError(f"there is no filter {name!r}")
        if name in ("least", "most", "pull"):
            values[name] = _number(name, text)
    return Filters(**values)


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number != number:
        raise InvalidInputError(f"{name} {value!r} is no number")
    return number


def _whole(given: Any, name: str) -> int:
    value = given.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 12):
        raise InvalidInputError(f"{name} {value!r} is no number of an image")
    return int(value)


def _ranges(given: Any) -> list[tuple[int, int]]:
    if not isinstance(given, list) or not given:
        raise InvalidInputError(f"ranges {given!r} are no list of places")
    for one in given:
        if not (isinstance(one, list) and len(one) == 2 and all(type(n) is int for n in one)):
            raise InvalidInputError(f"{one!r} is no range of places")
    return [(first, end) for first, end in given]
