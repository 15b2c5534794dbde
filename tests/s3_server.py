"""An S3 server on loopback, with a proxy in front of it that injects faults."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spr.core.paths import as_path

BUCKET = "bucket"
_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=a/b/us-east-1"
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose "METHOD /path?query" matches, after ``after`` others did.

    ``action`` is an HTTP status with an S3 code ("503 SlowDown"), "hang", "cut" (the connection breaks in the middle of
    the response's body), "cut after" (the server does the work, but the answer is lost), "deny conditions" (the headers
    If-Match and If-None-Match are removed, as a server that doesn't know them ignores them).
    """

    action: str
    pattern: str = ""
    times: float = float("inf")
    after: int = 0
    hits: int = field(default=0)


class S3:
    """A moto server and its proxy; `url` is the proxy's."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.backend = self._moto.get_host_and_port()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lag: float = 0.0
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._written: dict[str, float] = {}
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = "http://{}:{}".format(*self._proxy.server_address)
        connection = http.client.HTTPConnection(*self.backend)
        connection.request("PUT", f"/{BUCKET}", headers={"Authorization": _AUTHORIZATION})
        assert connection.getresponse().status == 200
        connection.close()

    def inject(self, action: str, pattern: str = "", *, times: float = float("inf"), after: int = 0) -> Fault:
        """Add a fault; the first one that matches applies."""
        fault = Fault(action, pattern, times, after)
        self.faults.append(fault)
        return fault

    def calm(self) -> None:
        """Remove all faults, and forget the requests."""
        self.released.set()
        self.released = threading.Event()
        with self._lock:
            self.faults, self.requests, self.lag, self._written = [], [], 0.0, {}

    def count(self, pattern: str) -> int:
        """The number of requests so far that match."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def due(self, request: str) -> str | None:
        """The action for a request, which is recorded."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if re.search(fault.pattern, request):
                    fault.hits += 1
                    if fault.after < fault.hits <= fault.after + fault.times:
                        return fault.action
        return None

    def written(self, path: str) -> None:
        """Note when an object was written, for listings that lag."""
        with self._lock:
            self._written[path] = time.monotonic()

    def hidden(self, key: str) -> bool:
        """Whether a listing does not show an object, or a prefix with all that is below it, yet."""
        path, now = f"/{BUCKET}/{key}", time.monotonic()
        below = [
            at for name, at in self._written.items() if name == path or (key[-1:] == "/" and name.startswith(path))
        ]
        return bool(below) and all(now - at < self.lag for at in below)

    def close(self) -> None:
        """Stop both servers."""
        self.released.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()


def _handler(s3: S3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action = s3.due(f"{self.command} {self.path}")
            if action == "hang":
                s3.released.wait(60)
                self.close_connection = True
                return
            if action is not None and action[:3].isdigit():
                status, _, code = action.partition(" ")
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self.send_response(int(status))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            if action == "deny conditions":
                headers = {k: v for k, v in headers.items() if k.lower() not in ("if-match", "if-none-match")}
            headers.setdefault("Authorization", _AUTHORIZATION)  # so that the objects can be read as a web server's
            upstream = http.client.HTTPConnection(*s3.backend, timeout=60)
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = upstream.getresponse()
            data = response.read()
            upstream.close()
            if self.command == "PUT" and response.status == 200:
                s3.written(self.path.partition("?")[0])
            if s3.lag and "list-type=2" in self.path:
                entries = rb"<(Contents|CommonPrefixes)>.*?</\1>"
                data = re.sub(entries, lambda e: b"" if s3.hidden(_key(e[0])) else e[0], data, flags=re.DOTALL)
            if action == "cut after":
                self._cut()
                return
            self.send_response(response.status)
            length = response.headers.get("Content-Length") if self.command == "HEAD" else len(data)
            for name, value in response.headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if action == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self._cut()
            elif self.command != "HEAD":
                self.wfile.write(data)

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815

    return Handler


def _key(entry: bytes) -> str:
    found = re.search(rb"<(?:Key|Prefix)>(.*?)<", entry)
    return found[1].decode() if found else ""


def environment(s3: S3) -> dict[str, str]:
    """The environment variables with which SPR uses the server."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3.url,
        "SPR_STORAGE_TIMEOUT": "20",
    }


@pytest.fixture(scope="session")
def s3_server():
    """The server, started once."""
    server = S3()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server without faults, which SPR uses in this test."""
    for name, value in environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3_server.calm()
    yield s3_server
    s3_server.calm()


@pytest.fixture
def bucket(s3, request):
    """A folder of its own in the bucket."""
    assert s3.url
    # Not the test's name, which may contain an error's code: obstore looks for these in answers.
    return as_path(
        f"s3://{BUCKET}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}-{time.monotonic_ns()}"
    )


def upload(folder: Path, target: Path) -> None:
    """Copy a local folder into a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
