"""OpenAI-compatible servers (vLLM, SGLang, `transformers serve`, …) as `Describer`."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal
from PIL import Image

from spr.config import DescriberConfig, make_section
from spr.core.errors import ConfigError
from spr.core.progress import advance
from spr.grounding import Dialect, get_dialect
from spr.grounding.text import without_surrogates
from spr.models.describers.json_client import JsonClient, ServerError
from spr.models.families import FAMILIES
from spr.models.protocols import Answer, DescribeRequest
from spr.models.thinking import Thinking
from spr.records import TRUNCATED

_log = logging.getLogger(__name__)
_REASONING = Thinking("enable_thinking")
_MAX_ASPECT = {family.dialect: family.max_aspect for family in FAMILIES.values()}


class OpenAiDescriber:
    """Answers prompts about images through the chat completions of a server, with concurrent requests.

    Images are sent losslessly, as PNG in a data URL. Whether the same seed gives the same answer depends on the server,
    as do sampling settings (top-k, penalties) that ``request_fields`` does not set.

    Args:
        config: The config section, or the model's name on the server.
        dialect: A `Dialect` to be used as it is, instead of the section's.
        api_key: Sent as a bearer token; by default the value of the environment variable `api_key_env`.
        first_wait: Seconds before the first retry; the wait doubles with each further one.
        **fields: With a model's name: further fields of `DescriberConfig`, such as ``base_url``.

    Attributes:
        name: ``model@`` and the server's ``root`` or ``id`` for the model, or ``unlisted``.
        dialect: The dialect of its answers.

    Raises:
        ServerError: if no server answers at this URL, or it refuses the key.
        ConfigError: for a field that is unknown or out of range.
        GroundingError: for an unknown dialect.
    """

    def __init__(
        self,
        config: DescriberConfig | str,
        *,
        dialect: Dialect | str | None = None,
        api_key: str | None = None,
        first_wait: float = 1.0,
        **fields: Any,
    ) -> None:
        if isinstance(config, str):
            key = dialect.spec if isinstance(dialect, Dialect) else dialect
            fields = {"backend": "openai", "dialect": key, **fields}
        section = make_section(DescriberConfig, config, **fields)
        self.dialect = get_dialect(dialect or section.dialect or "")
        self.model, self.concurrency = section.model or "", section.concurrency
        self.server = JsonClient(
            section.base_url or "",
            key=api_key if api_key is not None else read_key(section.api_key_env),
            connect_timeout=section.connect_timeout,
            timeout=section.timeout,
            retries=section.retries,
            first_wait=first_wait,
        )
        sampling = {"temperature": section.temperature, "top_p": section.top_p, "max_tokens": section.max_new_tokens}
        reasoning = {"chat_template_kwargs": {_REASONING.option: True}} if section.thinking else {}
        self.fields = {**sampling, **reasoning, **section.request_fields}
        self.thinking = section.thinking
        removed_by_servers = self.dialect.special_tokens is not None and not self.dialect.servers_keep_tokens
        if removed_by_servers and "skip_special_tokens" not in self.fields:
            _log.warning(
                f"Dialect {self.dialect.key} marks boxes with special tokens, which most servers remove from answers: "
                "set describer.request_fields to {skip_special_tokens: false} if this server supports that field"
            )
        self.name = f"{self.model}@{_in_loop(self._identity)}"

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """One answer per request, in the order of the requests, with the server's ``finish_reason``.

        Reasoning that the server does not send apart stands before the answer, up to ``</think>``.

        An image that the family's processor refuses (Qwen: an aspect ratio above 200) is not sent; its answer is empty,
        without a reason.

        Raises:
            ServerError: if a request fails permanently; concurrent requests are cancelled.
        """
        return self.describe_each(requests, lambda _, __: None)

    def describe_each(
        self, requests: Sequence[DescribeRequest], answered: Callable[[int, Answer], None]
    ) -> list[Answer]:
        """Like `describe`; calls ``answered`` with a request's index and answer as soon as it arrives.

        The calls are never concurrent, but come from another thread. An exception that one raises ends the work.
        """

        async def ask_all() -> list[Answer]:
            slots, urls = asyncio.Semaphore(self.concurrency), _DataUrls(requests)
            async with self.server.client(self.concurrency) as client:

                async def one(number: int, request: DescribeRequest) -> Answer:
                    async with slots:
                        answer = await self._answer(client, request, urls)
                    answered(number, answer)
                    advance()
                    return answer

                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(one(k, request)) for k, request in enumerate(requests)]
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                return [task.result() for task in tasks]

        return _in_loop(ask_all) if requests else []

    async def _answer(self, client: httpx.AsyncClient, request: DescribeRequest, urls: _DataUrls) -> Answer:
        limit = _MAX_ASPECT.get(self.dialect.key)
        if limit is not None and max(request.image.size) > limit * min(request.image.size):
            return Answer("")
        url = await urls.of(request.image)
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.prompt}]
        fixed = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": False}
        seed = request.seed % 2**31  # accepted by every server: some store seeds in 32 bits
        fields = {"seed": seed, **self.fields, **fixed}
        body = {name: value for name, value in fields.items() if value is not None}
        width, height = request.image.size
        query = f" about {request.query.query_id}" if request.query is not None else ""
        about = f", asked{query} with an image of {width} × {height} px"
        return await self.server.ask(client, "/chat/completions", self._read, body, about=about)

    def _read(self, reply: Any) -> Answer:
        answer, message = parse_completion(reply), reply["choices"][0]["message"]
        # As vLLM and SGLang call reasoning that they send apart.
        apart = any(message.get(key) for key in ("reasoning_content", "reasoning"))
        # Only the tokens before the model's own show that it was reasoning when it was cut.
        cut = self.thinking and not apart and answer.finish_reason == TRUNCATED and _REASONING.end not in answer.text
        return replace(answer, text=_REASONING.marked(answer.text, opened=True)) if cut else answer

    async def _identity(self) -> str:
        """What the server's list of models calls the model."""
        try:
            async with self.server.client(1) as client:
                listed = await self.server.ask(client, "/models", _entries, retries=min(self.server.retries, 2))
        except ServerError as error:
            # Some servers have no such list, or one that fails. A missing server or a refused key is an error now.
            if error.status is None or error.status in (401, 403) or error.status < 400:
                raise
            return "unlisted"
        entry = next((entry for entry in listed if entry.get("id") == self.model), {})
        return str(entry.get("root") or entry.get("id") or "unlisted")


class _DataUrls:
    """Images as data URLs, each encoded once and kept until its last request has it."""

    def __init__(self, requests: Sequence[DescribeRequest]) -> None:
        self.left = Counter(id(request.image) for request in requests)
        self.tasks: dict[int, asyncio.Task[str]] = {}

    async def of(self, image: Image.Image) -> str:
        key = id(image)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(asyncio.to_thread(data_url, image))
        url = await self.tasks[key]
        self.left[key] -= 1
        if not self.left[key]:
            del self.tasks[key]
        return url


def data_url(image: Image.Image) -> str:
    """An RGB image as a data URL, losslessly as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # takes half the time of the default 6, for a few per cent more bytes
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def parse_completion(reply: Any) -> Answer:
    """The answer in a chat completion, or `ValueError`; empty if it has no text. Unpaired surrogates become U+FFFD.

    The reason ``stop`` becomes ``stop_string`` if the server names the stop string, as vLLM (``stop_reason``) and
    SGLang (``matched_stop``) do.
    """
    text, choice = _text(reply), reply["choices"][0]
    reason = choice.get("finish_reason")
    if reason == "stop" and any(isinstance(choice.get(key), str) for key in ("stop_reason", "matched_stop")):
        reason = "stop_string"
    return Answer(text, reason if isinstance(reason, str) else None)


def _text(reply: Any) -> str:
    match reply:
        case {"choices": [{"message": {"content": None}}, *_]}:
            return ""
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return without_surrogates(text)
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
            return without_surrogates("".join(text for text in texts if isinstance(text, str)))
    raise ValueError(str(reply)[:200])


def read_key(variable: str | None) -> str | None:
    """The API key in an environment variable; None if the config names no variable."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        fix = f"export {variable}=…, or remove describer.api_key_env for a server without keys"
        raise ConfigError("The environment variable in `describer.api_key_env` has no key", got=variable, fix=fix)
    if not (key.isascii() and key.isprintable()):
        fix = f"set {variable} to the key and nothing else"
        raise ConfigError(f"The key in {variable} is invalid", got="characters other than printable ASCII", fix=fix)
    return key


def _entries(reply: Any) -> list[dict[str, Any]]:
    match reply:
        case {"data": [*listed]}:
            return [entry for entry in listed if isinstance(entry, dict)]
    raise ValueError(str(reply)[:200])


def _in_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine function in an event loop of its own thread: works in notebooks, and Ctrl-C stops it at once."""
    with start_blocking_portal() as portal:
        return portal.call(work)
