"""A chat server of the standard library that does what a test tells it, and misbehaves in every way."""

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from spr.models.describers.openai import OpenAiDescriber
from spr.models.protocols import DescribeRequest
from spr.records import RegionObject, RegionQuery


class Raw:
    """A raw reply: status, headers and body; ``cut`` announces more bytes than are sent."""

    def __init__(self, body: bytes | str = b"", status: int = 200, cut: bool = False, **headers: str) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.status, self.cut = status, cut
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


DROP, HANG = object(), object()


class ChatServer:
    """``answer(number, body)`` says what the request with that number gets: a text, a `Raw`, `DROP` or `HANG`.

    Attributes:
        bodies: What was posted, in the order in which it came.
        keys: Their ``Authorization`` headers.
        most: The most requests that were being answered at once.
        models: What ``/models`` gets.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int, dict[str, Any]], Any] = lambda *_: "a cup"
        self.models: Any = Raw(json.dumps({"data": [{"id": "m", "root": "owner/model"}]}))
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.now = self.most = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.http = _Http(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the default of 5 refuses the sixth connection


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            with server.lock:
                server.keys.append(self.headers.get("Authorization"))
            self.give(server.models if self.path == "/v1/models" else Raw("Not Found", 404))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.keys.append(self.headers.get("Authorization"))
                server.now += 1
                server.most = max(server.most, server.now)
            try:
                known = self.path == "/v1/chat/completions"
                self.give(server.answer(number, body) if known else Raw("Not Found", 404))
            finally:
                with server.lock:
                    server.now -= 1

        def give(self, reply: Any) -> None:
            if reply is HANG:
                server.closing.wait(20)
            if reply is DROP or reply is HANG:
                self.close_connection = True
                return
            if isinstance(reply, str):
                message = {"role": "assistant", "content": reply}
                reply = Raw(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + 100 * reply.cut))
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = self.close_connection or reply.cut

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has disconnected
                super().handle()

    return Handler


@pytest.fixture
def server():
    chat = ChatServer()
    yield chat
    chat.close()


@pytest.fixture
def raw() -> type[Raw]:
    return Raw


@pytest.fixture
def drop() -> object:
    return DROP


@pytest.fixture
def hang() -> object:
    return HANG


@pytest.fixture
def describer(server) -> Callable[..., OpenAiDescriber]:
    """A describer that uses the server; waits between retries are a thousandth of the default."""

    def make(**changes: Any) -> OpenAiDescriber:
        settings = {"base_url": server.url, "dialect": "llava", "retries": 3, "first_wait": 0.001, **changes}
        return OpenAiDescriber("m", **settings)

    return make


@pytest.fixture
def ask() -> Callable[..., DescribeRequest]:
    """``seed`` → a request with that seed and its own image unless one is given."""

    def make(number: int = 0, image: Image.Image | None = None, prompt: str = "What is there?") -> DescribeRequest:
        image = image or Image.new("RGB", (30 + number, 20), (number, 90, 200))
        window = (0.0, 0.0, float(image.width), float(image.height))
        part = RegionObject("a", "cup", window, inside=True)
        query = RegionQuery(f"{number}/0", str(number), "1.png", image.width, image.height, window, "a", (part,))
        return DescribeRequest(image, prompt, number, query, window)

    return make
