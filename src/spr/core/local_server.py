"""A server for a page that only the user of this machine can open.

It listens on 127.0.0.1. Every address begins with a random token, so that other users of the machine and other sites in
the browser can't guess it; the headers ``Host`` and ``Origin`` must name the server itself, so that a site can't reach
it under a name of its own (DNS rebinding). Pages can load nothing from elsewhere.
"""

from __future__ import annotations

import os
import secrets
import sys
import webbrowser
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import msgspec

from spr.core.documents import parse_json
from spr.core.errors import ConfigError
from spr.core.terminal import echo

HOST = "127.0.0.1"
LARGEST = 2**20
"""Bytes of a request's body that are accepted by default."""
TIMEOUT = 60.0
"""Seconds that a browser may take to send its request."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Request(NamedTuple):
    """The fields of the address after ``?``, the body, and its media type."""

    query: Mapping[str, str]
    body: bytes
    kind: str


class Reply(NamedTuple):
    """What a browser receives."""

    body: bytes
    kind: str = "application/json"
    status: int = 200


Answer: TypeAlias = Callable[[str, str, Request], Reply]
"""The reply to a method, a path without the token ("" is the page itself) and a request."""


class LocalServer(ThreadingHTTPServer):
    """Serves what ``answer`` returns; also a context manager, which closes it.

    Args:
        answer: Called from several threads. What it raises is a reply with status 500.
        port: The port; 0 is any free one.
        token: The secret in the address; by default a new one.
        largest: Bytes of a request's body at most.

    Attributes:
        address: The address of the page, with its token.

    Raises:
        ConfigError: if the port is in use, or must not be used.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Answer, port: int = 0, *, token: str | None = None, largest: int = LARGEST) -> None:
        self.answer, self.largest = answer, largest
        self.token = secrets.token_urlsafe(24) if token is None else token
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            fix = "choose another --port, or leave it out for any free one"
            raise ConfigError(f"Port {port} can't be used", got=error, fix=fix) from None
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"

    def serve(self) -> None:
        """Serve until `shutdown` is called from another thread, or an exception such as KeyboardInterrupt."""
        with self:
            self.serve_forever(poll_interval=0.2)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Browsers that close their connection are ignored."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            echo(f"spr: a request failed: {type(error).__name__}: {error}", err=True)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "spr", ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their paths contain the token."""

    def _answer(self, method: str) -> None:
        reply = self._reply(method)
        self.send_response(reply.status)
        lines = {"Content-Type": reply.kind, **_HEADERS, "Content-Length": str(len(reply.body))}
        if self.close_connection:
            lines["Connection"] = "close"
        for name, value in lines.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def _reply(self, method: str) -> Reply:
        if self.server.socket.fileno() < 0:
            return self._refuse(503, "the server has stopped")
        if self.headers.get("Host") not in self.server.hosts:
            return self._refuse(403, "wrong host")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            return self._refuse(403, "wrong origin")
        address = urlsplit(self.path)
        token, _, path = address.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self._refuse(404, "not found")
        length = self.headers.get("Content-Length", "0" if method == "GET" else "")
        if not (length.isascii() and length.isdecimal()):
            return self._refuse(411, "the body's length is missing")
        if len(length) > 12 or int(length) > self.server.largest:
            return self._refuse(413, f"the body has more than {self.server.largest:,} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self._refuse(400, "the request is cut")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        try:
            return self.server.answer(method, path, Request(query, body, kind))
        except Exception as error:  # the page shows it; the server stays up
            return problem(500, f"{type(error).__name__}: {error}")

    def _refuse(self, status: int, reason: str) -> Reply:
        self.close_connection = True  # the body was not read
        return problem(status, reason)


def to_json(value: Any, status: int = 200) -> Reply:
    """A reply with a JSON value; non-finite numbers become null."""
    return Reply(msgspec.json.encode(value), status=status)


def problem(status: int, reason: str) -> Reply:
    """A reply that says what is wrong, as ``{"problem": reason}``."""
    return to_json({"problem": reason}, status)


def json_only(answer: Callable[[str, str, Any], Reply]) -> Answer:
    """An answer to requests whose bodies are JSON: it gets the value, or None for GET.

    What a form or a script of another site can send without asking first is refused with status 415. A ValueError,
    also of the answer, is status 422.
    """

    def checked(method: str, path: str, request: Request) -> Reply:
        if method != "GET" and request.kind != "application/json":
            return problem(415, "the body must be JSON")
        try:
            return answer(method, path, None if method == "GET" else parse_json(request.body))
        except ValueError as error:
            return problem(422, str(error))

    return checked


def open_browser(address: str) -> bool:
    """Open the address in a graphical browser, if there is a screen; False if none was opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a text browser would take over the terminal
    return webbrowser.open(address)
