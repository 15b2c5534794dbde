"""A page for one user of this machine, served on 127.0.0.1 under an address that nobody else knows."""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import msgspec

from spr.core.documents import parse_json
from spr.core.errors import RunError
from spr.core.terminal import echo

HOST = "127.0.0.1"
LARGEST_BODY = 2**20
"""Bytes of a request's body at most."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Reply(NamedTuple):
    """The answer to a request: HTTP status, body and content type."""

    status: int
    body: bytes
    kind: str = "application/json"


def json_reply(status: int, value: Any) -> Reply:
    """A reply with a JSON value; non-finite numbers become null."""
    return Reply(status, msgspec.json.encode(value))


class LocalServer:
    """Serves what ``answer`` returns, in threads, to those who know the token in the address.

    Every request must name this server in ``Host``, which keeps pages of other sites out that have their own name point
    here (DNS rebinding). Requests that change something must be JSON of this page's origin; no header allows another.

    Args:
        answer: Called with method, path below the token, and the body's JSON value (None for GET).
        port: The port; 0 for any free one.
        token: The secret in the address; by default a new one.

    Raises:
        RunError: if the port can't be used.
    """

    def __init__(self, answer: Callable[[str, str, Any], Reply], *, port: int = 0, token: str | None = None) -> None:
        self._token = secrets.token_urlsafe(24) if token is None else token
        token_bytes = self._token.encode()

        class Handler(_Handler):
            reply_to = staticmethod(answer)
            token = token_bytes

        try:
            self._server = _Server((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            fix = "choose another --port, or leave it out for any free one"
            raise RunError(f"Port {port} can't be used", got=error, fix=fix) from None
        self.port = Handler.port = int(self._server.server_address[1])
        Handler.listener = self._server.socket

    @property
    def address(self) -> str:
        """The page's address, with its secret."""
        return f"http://{HOST}:{self.port}/{self._token}/"

    def serve(self) -> None:
        """Serve until `stop` is called from another thread, or an exception such as KeyboardInterrupt."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Make `serve` return."""
        self._server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError | socket.timeout):
            echo(f"spr: a request failed: {type(error).__name__}: {error}", err=True)


class _Handler(BaseHTTPRequestHandler):
    reply_to: Callable[[str, str, Any], Reply]
    token: bytes
    port: int
    listener: socket.socket
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "spr", ""
    timeout = 60

    def do_GET(self) -> None:
        self._send(self._answer("GET"))

    def do_POST(self) -> None:
        self._send(self._answer("POST"))

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their paths contain the token."""

    def _answer(self, method: str) -> Reply:
        port = self.port
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        if self.listener.fileno() < 0:
            return self._refuse(503, "the server has stopped")
        if self.headers.get("Host") not in hosts:
            return self._refuse(403, "wrong host")
        token, _, path = self.path.removeprefix("/").partition("?")[0].partition("/")
        if not hmac.compare_digest(token.encode(), self.token):
            return self._refuse(404, "not found")
        if method == "GET":
            return self.reply_to(method, path, None)
        if self.headers.get("Origin", f"http://{HOST}:{port}") not in {f"http://{host}" for host in hosts}:
            return self._refuse(403, "wrong origin")
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            return self._refuse(415, "the body must be JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self._refuse(411, "the body's length is missing")
        if len(length) > 9 or int(length) > LARGEST_BODY:
            return self._refuse(413, f"the body has more than {LARGEST_BODY:,} bytes")
        data = self.rfile.read(int(length))
        try:
            return self.reply_to(method, path, parse_json(data))
        except ValueError as error:
            return json_reply(422, {"problem": str(error)})

    def _refuse(self, status: int, problem: str) -> Reply:
        self.close_connection = True  # the body was not read
        return json_reply(status, {"problem": problem})

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)


def open_browser(address: str) -> bool:
    """Open the address in a graphical browser, if there is a screen; False if none was opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a text browser would take over the terminal
    return webbrowser.open(address)
