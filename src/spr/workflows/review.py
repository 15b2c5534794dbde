"""`spr review`: a page on which people accept, reject and correct the pairs of a run."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

import spr.report
from spr.core.errors import GroundingError, RunError, SprError
from spr.core.image_metadata import forget_metadata
from spr.core.images import ImageProblem
from spr.core.local_server import LocalServer, Reply, json_only, problem, to_json
from spr.core.plots import CSS
from spr.core.progress import Progress
from spr.grounding import get_dialect
from spr.records import PreferencePair
from spr.report.payload import GalleryIndex, pair_payload
from spr.runs.edits import edited_pair, numbered_answer, to_numbered
from spr.runs.reader import JoinedPair, Run
from spr.runs.reviews import Decision, ReviewFile, Reviews, decision, pair_sha256, resolve

SIDE = 1600
"""Maximum length of an image's longer side on the page, in pixels."""
_LOSSLESS = 256  # images up to this size are sent as PNG, because JPEG artefacts would show
_TEMPLATES = Path(__file__).parent / "templates"
_REPORT = Path(spr.report.__path__[0]) / "templates"
_FILES = {
    "": (_TEMPLATES / "review.html", "text/html; charset=utf-8"),
    "review.js": (_TEMPLATES / "review.js", "text/javascript; charset=utf-8"),
    "editor.js": (_TEMPLATES / "editor.js", "text/javascript; charset=utf-8"),
    "review.css": (_TEMPLATES / "review.css", "text/css; charset=utf-8"),
    "report.css": (_REPORT / "report.css", "text/css; charset=utf-8"),
    "pair.js": (_REPORT / "pair.js", "text/javascript; charset=utf-8"),
}


def review(
    run: Path,
    *,
    reviewer: str | None = None,
    port: int = 0,
    token: str | None = None,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the page until it is interrupted (KeyboardInterrupt).

    Decisions are appended to ``RUN/reviews.jsonl``. The run is not locked: a training may read its pairs meanwhile.

    Args:
        run: A run folder with finished pairs.
        reviewer: Whose decisions they are; None: the page asks.
        port: The port on 127.0.0.1; 0 for any free one.
        token: The secret in the address; None for a new one.
        ready: Called with the address once the page can be opened.

    Raises:
        RunError: if the run has no pairs, another process reviews it, or the port or file can't be used.
    """
    with ReviewFile(run_with_pairs(run)) as file:
        session = ReviewSession(run, file, reviewer)
        server = LocalServer(json_only(session.answer), port, token=token)
        ready(server.address)
        server.serve()


def run_with_pairs(run: Path) -> Path:
    """The run's path, or a `RunError` unless it is a run with pairs."""
    if not Run(run).finished("pairs").rows:
        raise RunError(f"{run} has no pairs", fix=f"`spr show {run}` lists why they were dropped")
    return run


class ReviewSession:
    """The pairs of a run as they were when the page was started, and the decisions about them."""

    def __init__(self, run: Path, file: ReviewFile, reviewer: str | None = None) -> None:
        source = Run(run)
        self._name, self._reviewer = run.resolve().name, reviewer
        self._images, self._unmatched = source.config.annotations.image_source, source.config.pairing.unmatched
        self._file, self._reviews, self._lock = file, Reviews.read(run), Lock()
        self._items: list[bytes] = []  # pickled, which takes a tenth of the memory
        self._keys: list[tuple[str, str]] = []  # id and SHA-256 of each pair
        self._answers: dict[str, Decision] = {}  # the edits that the page may return to, by their ids
        index = GalleryIndex()
        with Progress("review", source.finished("pairs").rows, "pairs") as progress:
            for shard in source.shards():
                for item in shard.pairs:
                    index.add(pair_payload(item, {}, unmatched=self._unmatched))
                    self._items.append(pickle.dumps(item))
                    self._keys.append((item.pair.pair_id, pair_sha256(item.pair)))
                    for made in self._about(-1).values():
                        self._remember(made)
                    progress.advance()
        columns = index.to_json(page_size=1, total=len(self._items))
        columns["id"] = [key for key, _ in self._keys]  # two pairs of one query differ in their kind
        self._index = {"run": self._name, "reviewer": reviewer, **columns}
        self._image = lru_cache(maxsize=32)(self._make_image)

    def answer(self, method: str, path: str, body: Any) -> Reply:
        """The reply to a request of the page; a `ValueError` for a body that can't be a request of it."""
        if method == "GET" and path in _FILES:
            file, kind = _FILES[path]
            return Reply(file.read_bytes() + (CSS.encode() if path == "report.css" else b""), kind)
        match method, path.split("/"):
            case "GET", ["index"]:
                return to_json(self._index)
            case "GET", ["state", name]:
                return to_json(self._state(unquote(name)))
            case "GET", ["pair", number, name] if self._has(number):
                return to_json(self._pair(int(number), unquote(name)))
            case "GET", ["image", number] if self._has(number):
                image = self._image(self._item(int(number)).pair.file_name, int(number))
                return image if isinstance(image, Reply) else problem(404, image["problem"])
            case "POST", ["decide"]:
                return self._decide(body)
        return problem(404, "not found")

    def _has(self, number: str) -> bool:
        return number.isdecimal() and len(number) < 10 and int(number) < len(self._items)

    def _item(self, number: int) -> JoinedPair:
        item: JoinedPair = pickle.loads(self._items[number])  # noqa: S301 (pickled by this process)
        return item

    def _about(self, number: int) -> dict[str, Decision]:
        return dict(self._reviews.about(*self._keys[number]))

    def _remember(self, made: Decision) -> str | None:
        if made.action != "edit":
            return None
        content = json.dumps([made.pair, made.chosen, [span.to_row() for span in made.chosen_spans]])
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._answers[key] = made
        return key

    def _state(self, name: str) -> dict[str, Any]:
        """For each pair, what this reviewer and what all together have decided."""
        with self._lock:
            found = [self._about(number) for number in range(len(self._items))]
        mine = [made.get(name) for made in found]
        return {
            "mine": [own and {"action": own.action, "answer": self._remember(own)} for own in mine],
            "outcomes": [resolve(made.values()).state for made in found],
        }

    def _status(self, number: int, name: str) -> dict[str, Any]:
        """A reviewer's decision and the outcome; those of others only once the reviewer has decided, or in conflict."""
        made = self._about(number)
        own, outcome = made.get(name), resolve(made.values()).state
        shown = own is not None or outcome == "conflict"
        return {
            "mine": own and {"action": own.action, "answer": self._remember(own)},
            "outcome": outcome,
            "others": {who: d.action for who, d in made.items() if who != name} if shown else {},
        }

    def _pair(self, number: int, name: str) -> dict[str, Any]:
        item = self._item(number)
        dialect = get_dialect(item.answers["chosen"].dialect)
        with self._lock:
            status = self._status(number, name)
        image = self._image(item.pair.file_name, number)
        image = image if isinstance(image, dict) else {"src": f"image/{number}"}
        answer = status["mine"] and status["mine"]["answer"]
        edited = item if answer is None else item.with_chosen(_with_answer(item.pair, self._answers[answer]))
        # Phrases of an edited answer refer to its own words, not to the candidate's.
        unmatched = self._unmatched if answer is None else "remove_phrase"
        payload = pair_payload(edited, image, unmatched=unmatched)
        if answer is not None:
            payload["sides"]["chosen"]["what"] = "Chosen, edited"

        def editable(pair: PreferencePair, base: str | None) -> dict[str, Any]:
            grounded = numbered_answer(pair, dialect)
            boxes = [[round(value, 1) for value in box] for box in grounded.boxes]
            return {"text": to_numbered(grounded), "boxes": boxes, "base": base}

        return {
            **status,
            "number": number,
            "payload": payload,
            "edit": editable(edited.pair, answer),
            "original": editable(item.pair, None),
            "prose": dialect.keeps_prose,
        }

    def _decide(self, body: Any) -> Reply:
        """Save a decision; 422 for one that can't be made, 503 for one that could not be saved."""
        if not isinstance(body, dict) or not self._has(str(body.get("pair"))):
            raise ValueError("not a pair of this run")
        number, name, action = int(body["pair"]), body.get("reviewer"), body.get("action")
        item = self._item(number)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError("a reviewer needs a name")
        try:
            edited = self._edited(item, body) if action == "edit" else None
            if edited is not None and _same_answer(edited, item.pair):
                edited, action = None, "accept"
            made = decision(name.strip(), item.pair, action, edited)  # type: ignore[arg-type]
        except GroundingError as error:
            return problem(422, " ".join(str(error).split()))
        try:
            with self._lock:
                self._file.append(made)
                self._reviews.add(made)
                self._remember(made)
                return to_json(self._status(number, name.strip()))
        except SprError as error:
            return problem(503, error.what + (f": {error.got}" if error.got else ""))

    def _edited(self, item: JoinedPair, body: dict[str, Any]) -> PreferencePair:
        """The pair with an edit that was made before (``answer``), or the text and boxes that were edited just now."""
        known = body.get("answer", body.get("base"))
        made = self._answers.get(str(known))
        if known is not None and (made is None or made.pair != item.pair.pair_id):
            raise ValueError("an unknown answer")
        base = item.pair if made is None else _with_answer(item.pair, made)
        if body.get("answer") is not None:
            return base
        text, boxes = body.get("text"), body.get("boxes")
        if not isinstance(text, str) or not isinstance(boxes, list):
            raise ValueError("an edit needs text and boxes")
        numbers = all(isinstance(value, int | float) for box in boxes if isinstance(box, list) for value in box)
        if not numbers or not all(box is None or isinstance(box, list) for box in boxes):
            raise ValueError("boxes are lists of numbers")
        return edited_pair(base, text, boxes, get_dialect(item.answers["chosen"].dialect))

    def _make_image(self, file_name: str, number: int) -> Reply | dict[str, Any]:
        pair = self._item(number).pair
        try:
            image = forget_metadata(self._images.thumbnail(file_name, (pair.width, pair.height), SIDE))
        except ImageProblem as problem:
            return {"problem": problem.reason, "detail": str(problem)}
        sink, small = io.BytesIO(), max(image.size) <= _LOSSLESS
        image.save(sink, "PNG" if small else "JPEG", quality=88)
        return Reply(sink.getvalue(), "image/png" if small else "image/jpeg")


def _with_answer(pair: PreferencePair, made: Decision) -> PreferencePair:
    return replace(pair, chosen=made.chosen or pair.chosen, chosen_spans=made.chosen_spans)


def _same_answer(edited: PreferencePair, pair: PreferencePair) -> bool:
    boxes = [[box for span in one.chosen_spans for box in span.boxes] for one in (edited, pair)]
    return edited.chosen == pair.chosen and boxes[0] == boxes[1]
