"""A server for a page that only the user of this machine can open.

It listens on 127.0.0.1. Every address begins with a random token, so that other users of the machine and other sites in
the browser can't guess it; the headers ``Host`` and ``Origin`` must name the server itself, so that a site can't reach
it under a name of its own (DNS rebinding). Pages can load nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from spr.core.errors import ConfigError

LARGEST = 64 * 2**20
"""Bytes of a request's body that are accepted."""
TIMEOUT = 30.0
"""Seconds that a browser may take to send its request."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Request(NamedTuple):
    """The fields of the address after ``?``, and the body."""

    query: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    """What a browser receives."""

    body: bytes
    kind: str = "application/json"
    status: int = 200


Routes: TypeAlias = Mapping[tuple[str, str], Callable[[Request], Reply]]
"""By method and path without the token, such as ``("GET", "page.css")``; ``("GET", "")`` is the page itself."""


class LocalServer(ThreadingHTTPServer):
    """A server of some routes; also a context manager, which closes it.

    Args:
        routes: What is served. They are called from several threads.
        port: The port; 0 is any free one.

    Attributes:
        address: The address of the page, with its token.

    Raises:
        ConfigError: if the port is in use, or must not be used.
    """

    daemon_threads = True

    def __init__(self, routes: Routes, port: int = 0) -> None:
        self.routes, self.token = routes, secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            fix = "choose another --port, or leave it out"
            raise ConfigError(f"Port {port} can't be used", got=error.strerror, fix=fix) from None
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def serve_until_interrupted(self) -> None:
        """Serve until Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close their connection."""


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    timeout = TIMEOUT
    server_version, sys_version = "spr", ""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: the token would be in the log."""

    def _answer(self, method: str) -> None:
        reply = self._reply(method)
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, **_HEADERS, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def _reply(self, method: str) -> Reply:
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in self.server.hosts:
            return _refusal(403, "wrong host")
        if origin is not None and urlsplit(origin).netloc not in self.server.hosts:
            return _refusal(403, "wrong origin")
        address = urlsplit(self.path)
        token, _, path = address.path.removeprefix("/").partition("/")
        route = self.server.routes.get((method, unquote(path)))
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or route is None:
            return _refusal(404, "not found")
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True
            return _refusal(413, f"more than {LARGEST:,} bytes, or no length")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return _refusal(400, "the request is cut")
        try:
            return route(Request(dict(parse_qsl(address.query, keep_blank_values=True)), body))
        except Exception as error:  # the page shows it; the server goes on
            return _refusal(500, f"{type(error).__name__}: {error}")


def _refusal(status: int, reason: str) -> Reply:
    return Reply(reason.encode(), "text/plain; charset=utf-8", status)
