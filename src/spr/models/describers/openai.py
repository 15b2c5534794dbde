"""Any OpenAI-compatible server (vLLM, SGLang, `transformers serve`, …) as a `Describer`."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal
from PIL import Image

from spr.config import DescriberConfig, make_section
from spr.core.errors import ConfigError
from spr.grounding import Dialect, get_dialect
from spr.grounding.prose import without_surrogates
from spr.models.describers.json_client import JsonClient, ServerError
from spr.models.families import FAMILIES
from spr.models.protocols import DescribeRequest

OWN_FIELDS = ("model", "messages", "stream", "n")
"""Fields of a request that are ours alone."""
_log = logging.getLogger(__name__)
_SEED_BITS = 31  # what every server takes: some keep seeds in 32 bits
_MAX_ASPECT = {family.dialect: family.max_aspect for family in FAMILIES.values()}


class OpenAiDescriber:
    """Answers prompts about images by a server's chat completions, many at a time, in the order of the requests.

    An image goes as PNG in a data URL, so the server sees the very pixels. The same seed gives the same answer only as
    far as the server keeps that promise. What else decides a sample there (top-k, penalties of the model's generation
    config) is the server's; ``request_fields`` can say more.

    Args:
        config: The config section, or the model's name on the server.
        dialect: A `Dialect` to be used as it is, instead of the section's.
        api_key: Sent as a bearer token; by default the value of the environment variable `api_key_env`.
        first_wait: Seconds before the first retry; the wait doubles with each further one.
        **fields: With a model's name: further fields of `DescriberConfig`, such as ``base_url``.

    Attributes:
        name: ``model@identity``, the identity being ``root`` or else ``id`` in the server's list of models, or
            ``unlisted``.
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
            fields = {
                "backend": "openai",
                "dialect": dialect.spec if isinstance(dialect, Dialect) else dialect,
                **fields,
            }
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
        self.fields = {**sampling, **section.request_fields}
        removed_by_servers = self.dialect.special_tokens is not None and not self.dialect.servers_keep_tokens
        if removed_by_servers and "skip_special_tokens" not in self.fields:
            _log.warning(
                f"Dialect {self.dialect.key} marks boxes with special tokens, which servers mostly take out: "
                "set describer.request_fields to {skip_special_tokens: false}, if this one knows that field"
            )
        self.name = f"{self.model}@{_in_loop(self._identity)}"

    def describe(self, requests: Sequence[DescribeRequest]) -> list[str]:
        """One raw answer a request, in their order, whatever the order in which the server gives them.

        An image that the family's processor refuses (Qwen: one side over 200 times the other) is not asked about, and
        gets the empty answer, which names no object and is dropped as such.

        Raises:
            ServerError: if a request fails for good; others under way are given up.
        """
        return self.describe_each(requests, lambda _, __: None)

    def describe_each(self, requests: Sequence[DescribeRequest], answered: Callable[[int, str], None]) -> list[str]:
        """`describe` that tells each answer as it comes, by the number of its request, so that it can be kept.

        Args:
            requests: As for `describe`.
            answered: Called one at a time, from another thread; what it raises ends the work.
        """

        async def ask_all() -> list[str]:
            turns, urls = asyncio.Semaphore(self.concurrency), _DataUrls(requests)
            async with self.server.client(self.concurrency) as client:

                async def one(number: int, request: DescribeRequest) -> str:
                    async with turns:
                        answer = await self._answer(client, request, urls)
                    answered(number, answer)
                    return answer

                tasks = [asyncio.create_task(one(k, request)) for k, request in enumerate(requests)]
                try:
                    return list(await asyncio.gather(*tasks))
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return _in_loop(ask_all) if requests else []

    async def _answer(self, client: httpx.AsyncClient, request: DescribeRequest, urls: _DataUrls) -> str:
        limit = _MAX_ASPECT.get(self.dialect.key)
        if limit is not None and max(request.image.size) > limit * min(request.image.size):
            return ""
        url = await urls.of(request.image)
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.prompt}]
        own = {"model": self.model, "messages": [{"role": "user", "content": content}], "stream": False}
        fields = {"seed": request.seed % 2**_SEED_BITS, **self.fields, **own}
        body = {name: value for name, value in fields.items() if value is not None}
        width, height = request.image.size
        what = f" about {request.query.query_id}" if request.query is not None else ""
        about = f", asked{what} with an image of {width} × {height} px"
        return await self.server.ask(client, "/chat/completions", answer_text, body, about=about)

    async def _identity(self) -> str:
        """What the server says that the model is."""
        try:
            async with self.server.client(1) as client:
                listed = await self.server.ask(client, "/models", _entries, retries=min(self.server.retries, 2))
        except ServerError as error:
            # Some have no such list, or one that fails. Not to be there, or to let nobody in, is an error now.
            if error.status is None or error.status in (401, 403) or error.status < 400:
                raise
            return "unlisted"
        entry = next((entry for entry in listed if entry.get("id") == self.model), {})
        return str(entry.get("root") or entry.get("id") or "unlisted")


class _DataUrls:
    """Images as data URLs: each encoded once, and kept only until its last request has it."""

    def __init__(self, requests: Sequence[DescribeRequest]) -> None:
        self.left = Counter(id(request.image) for request in requests)
        self.made: dict[int, asyncio.Task[str]] = {}

    async def of(self, image: Image.Image) -> str:
        key = id(image)
        if key not in self.made:
            self.made[key] = asyncio.create_task(asyncio.to_thread(data_url, image))
        url = await self.made[key]
        self.left[key] -= 1
        if not self.left[key]:
            del self.made[key]
        return url


def data_url(image: Image.Image) -> str:
    """An RGB image as a data URL: PNG, which loses nothing."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # half the time of the usual 6, a few per cent more bytes
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def answer_text(reply: Any) -> str:
    """The text of a chat completion; an answer without text is empty, halves of surrogate pairs become U+FFFD.

    Raises:
        ValueError: if it is none.

    >>> answer_text({"choices": [{"message": {"content": "a cup"}}]})
    'a cup'
    """
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(str(reply)[:200]) from None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise ValueError(str(reply)[:200])
    return without_surrogates(content or "")


def read_key(variable: str | None) -> str | None:
    """The API key in an environment variable; None where the config names none.

    Raises:
        ConfigError: if the variable is not set, or holds what no header can.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        fix = f"export {variable}=…, or leave describer.api_key_env out for a server without keys"
        raise ConfigError("The variable that `describer.api_key_env` names holds no key", got=variable, fix=fix)
    if not (key.isascii() and key.isprintable()):
        fix = f"set {variable} to the key alone"
        raise ConfigError(f"The key in {variable} can't be one", got="other than printable ASCII", fix=fix)
    return key


def _entries(reply: Any) -> list[dict[str, Any]]:
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list):
        raise ValueError(str(reply)[:200])
    return [entry for entry in listed if isinstance(entry, dict)]


def _in_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine function in a loop of its own thread: also within notebooks, and Ctrl-C gives it up at once."""
    with start_blocking_portal() as portal:
        return portal.call(work)
