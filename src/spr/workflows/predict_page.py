"""The local page of `spr predict --serve`: choose an image, ask about it, and see the boxes."""

from __future__ import annotations

import html
import threading
from pathlib import Path
from typing import Any

from spr.config import DescriberConfig, PromptsConfig
from spr.core.documents import parse_json
from spr.core.errors import InputError, SprError
from spr.core.images import ImageSource
from spr.core.local_server import LocalServer, Reply, Request, problem, to_json
from spr.models.protocols import Describer
from spr.models.registry import load_describer
from spr.records import check_box
from spr.workflows.predict import Question, ask

LARGEST_IMAGE = 64 * 2**20
"""Bytes of an image at most."""
_FILES = Path(__file__).parent / "templates"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def open_page(
    settings: DescriberConfig | Describer, prompts: PromptsConfig | None = None, port: int = 0
) -> LocalServer:
    """Load the model, and make the server of the page; its ``serve`` serves it."""
    describer = load_describer(settings) if isinstance(settings, DescriberConfig) else settings
    lock = threading.Lock()

    def answer(request: Request) -> Reply:
        try:
            question = _question(request)
            image = ImageSource(Path()).load("the chosen image", data=request.body)
            with lock:  # one question at a time: the model's memory is not meant for several
                (found,) = ask([image], settings, question, prompts)
        except SprError as error:
            return problem(400, str(error))
        return to_json(found.to_json())

    page = _file("predict.html")
    files = {"": page._replace(body=page.body.replace(b"{model}", html.escape(describer.name).encode()))}
    files |= {name: _file(name) for name in ("predict.js", "predict.css")}

    def reply(method: str, path: str, request: Request) -> Reply:
        if (method, path) == ("POST", "ask"):
            return answer(request)
        return files[path] if method == "GET" and path in files else problem(404, "not found")

    return LocalServer(reply, port, largest=LARGEST_IMAGE)


def _question(request: Request) -> Question:
    try:
        asked: Any = parse_json(request.query.get("question", ""))
        region = asked.get("region")
        texts = [asked.get(name) for name in ("find", "prompt")]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError("a text is not a text")
        return Question(None if region is None else check_box(region, where="The region"), *texts)
    except SprError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError("The question can't be read", got=error) from None


def _file(name: str) -> Reply:
    path = _FILES / name
    return Reply(path.read_bytes(), f"{_KINDS[path.suffix]}; charset=utf-8")
