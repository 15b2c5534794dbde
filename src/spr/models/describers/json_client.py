"""A client for JSON over HTTP that retries temporary failures and turns all others into one clear error.

httpx sends the requests and tenacity retries them. Added here: which failures are temporary, a time limit for the whole
reply, and errors that quote the server but never the API key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar, cast

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from spr.core.errors import SprError
from spr.core.terminal import count_text, one_line

Reply = TypeVar("Reply")

MAX_REPLY_BYTES = 2**24

_log = logging.getLogger(__name__)
_MAX_RETRY_AFTER = 600.0  # seconds; a server that asks for a longer wait is an error
_MAX_BACKOFF = 60.0  # seconds between two tries, if the server sends no Retry-After
_WARN_EVERY = 10.0  # seconds between two warnings about a server that fails
_ssl_context = cache(httpx.create_ssl_context)  # takes 40 ms, so once per process
_TEMPORARY = {408, 425, 429}  # and everything from 500 on
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_MAX_QUOTE = 400  # characters of a server's message


class ServerError(SprError):
    """A server can't be reached, keeps failing, or refuses a request. ``status`` is that of the last reply, if any."""

    def __init__(self, what: str, *, status: int | None = None, **details: Any) -> None:
        super().__init__(what, **details)
        self.status = status


class _TemporaryError(Exception):
    """A failure after which the request is sent again, after ``retry_after`` seconds if the server says so."""

    def __init__(self, problem: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(problem)
        self.retry_after, self.status = retry_after, status


@dataclass(eq=False, repr=False)
class JsonClient:
    """Requests JSON from a server.

    Retried are: connections that are refused, dropped or silent; status 408, 425, 429 and 5xx; replies that are not
    the expected JSON. Between two tries it waits for ``Retry-After``, up to 10 minutes, or else for `backoff` seconds.
    Failures are logged as warnings, at most every 10 seconds.

    Args:
        base_url: The URL that paths are appended to, such as ``http://127.0.0.1:8000/v1``.
        key: API key, sent as a bearer token. No error contains it, even if the server repeats it.
        connect_timeout: Time limit for opening a connection, in seconds.
        timeout: Time limit for a try as a whole, in seconds, including the time in the server's queue.
        retries: Number of retries after the first try.
        first_wait: Wait before the first retry, in seconds.
        sleep: Coroutine function that waits for a number of seconds.
    """

    base_url: str
    _: KW_ONLY
    key: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 300.0
    retries: int = 8
    first_wait: float = 1.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _last_warning: float = -math.inf

    def client(self, connections: int) -> httpx.AsyncClient:
        """An HTTP client for `ask`, to be used with ``async with``."""
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key is not None else {},
            timeout=httpx.Timeout(self.timeout, connect=self.connect_timeout, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # A server on this machine is not behind the proxy that the environment may define.
            trust_env=httpx.URL(self.base_url).host not in _LOCAL,
            verify=_ssl_context(),
        )

    async def ask(
        self,
        client: httpx.AsyncClient,
        path: str,
        read: Callable[[Any], Reply],
        body: Mapping[str, Any] | None = None,
        *,
        about: str = "",
        retries: int | None = None,
    ) -> Reply:
        """POST ``body`` as JSON to a path that starts with a slash, or GET it without one, and return ``read(reply)``.

        ``read`` converts the parsed JSON; it raises `ValueError` for an unexpected reply, which is then retried.
        ``about``, what the request is about, is appended to error messages.

        Raises:
            ServerError: after the last try, or at once if a retry can't help.
        """
        url, tries = self.base_url.rstrip("/") + path, 1 + (self.retries if retries is None else retries)

        async def attempt() -> Reply:
            try:
                async with asyncio.timeout(self.timeout):
                    return read(await self._send(client, url, body, about))
            except TimeoutError:
                raise _TemporaryError(f"no answer within {self.timeout:g} s") from None
            except httpx.RequestError as error:
                raise _TemporaryError(self._quote(f"{type(error).__name__}: {error}")) from None
            except ValueError as error:
                raise _TemporaryError(f"a reply without an answer: {self._quote(str(error))}") from None

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TemporaryError),
            stop=stop_after_attempt(tries),
            sleep=self.sleep,
            wait=self._wait,
            before_sleep=lambda state: self._warn(url, state),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except _TemporaryError as problem:
            got = f"{problem} ({count_text(tries, 'tries')})"
            expected = "JSON from an OpenAI-compatible server"
            check = "check the server and describer.base_url, or raise describer.timeout or describer.retries"
            fix = f"{check}; then run the same command again: finished answers are kept"
            what = f"{url} gives no answer{about}"
            raise ServerError(what, got=got, expected=expected, fix=fix, status=problem.status) from None

    async def _send(self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None, about: str) -> Any:
        # httpx would encode half a surrogate pair as UTF-8, which fails. json.dumps escapes it.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        async with client.stream("GET" if body is None else "POST", url, content=content, headers=headers) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MAX_REPLY_BYTES:
                    raise _TemporaryError(f"a reply of more than {MAX_REPLY_BYTES // 2**20} MiB")
        status = response.status_code
        if status in _TEMPORARY or status >= 500:
            problem = f"status {status}: {self._message(data)}"
            retry_after = parse_retry_after(response.headers.get("Retry-After"))
            if retry_after is not None and retry_after > _MAX_RETRY_AFTER:
                what = f"{url} asks for a longer wait than SPR allows{about}"
                got, expected = f"{problem}, Retry-After: {retry_after:.0f} s", f"at most {_MAX_RETRY_AFTER:.0f} s"
                fix = "run the same command again later: finished answers are kept"
                raise ServerError(what, got=got, expected=expected, fix=fix, status=status)
            raise _TemporaryError(problem, retry_after=retry_after, status=status)
        if status >= 300:
            raise self._refusal(response, url, data, about)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _TemporaryError(f"not JSON: {self._message(data)}", status=status) from None

    def _refusal(self, response: httpx.Response, url: str, data: bytearray, about: str) -> ServerError:
        match status := response.status_code:
            case 401 | 403:
                what = f"{url} refuses access"
                fix = "set describer.api_key_env to an environment variable that holds a key of this server"
            case 404 | 405:
                what = f"{url} does not have what is requested{about}"
                fix = "correct describer.model or describer.base_url, which usually ends in /v1"
            case _ if status < 400:
                what = f"{url} redirects to another URL, which is not followed"
                fix = f"set describer.base_url to the new location: {response.headers.get('Location', 'unknown')}"
            case _:
                what = f"{url} refuses the request{about}"
                fields = "describer.max_new_tokens, describer.request_fields, describer.model or the prompts"
                fix = f"correct the field that the server names: {fields}"
        return ServerError(what, got=f"status {status}: {self._message(data)}", fix=fix, status=status)

    def _wait(self, state: RetryCallState) -> float:
        retry_after = _problem(state).retry_after
        if retry_after is None:
            return backoff(state.attempt_number, self.first_wait)
        # The random part keeps waiting requests from all coming back at the same moment.
        return retry_after + random.uniform(0.5, 1.0) * self.first_wait

    def _warn(self, url: str, state: RetryCallState) -> None:
        # A server in trouble fails all concurrent requests: one warning is enough.
        if time.monotonic() - self._last_warning >= _WARN_EVERY:
            self._last_warning = time.monotonic()
            _log.warning(one_line(f"{url}: {_problem(state)}; retrying in {state.upcoming_sleep:.0f} s"))

    def _message(self, data: bytes | bytearray) -> str:
        """The readable part of a reply: the message of a JSON error, the title of a page, or the text."""
        text = data[: 2**16].decode("utf-8", "replace")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
            return self._quote(title[1] if title else re.sub(r"<[^<>]*>", " ", text))
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        return self._quote(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))

    def _quote(self, text: str) -> str:
        text = text.replace(self.key, "***") if self.key else text
        words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return words[:_MAX_QUOTE] or "nothing"


def _problem(state: RetryCallState) -> _TemporaryError:
    return cast(_TemporaryError, state.outcome and state.outcome.exception())


def backoff(attempt: int, first_wait: float = 1.0) -> float:
    """Seconds to wait after a failed attempt, counted from 1: doubled each time up to 60, times ½ to 1."""
    return float(min(first_wait * 2.0 ** (attempt - 1), _MAX_BACKOFF) * random.uniform(0.5, 1.0))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number or a date (RFC 9110 §10.2.3); None if neither.

    >>> parse_retry_after("7"), parse_retry_after("soon"), parse_retry_after(None)
    (7.0, None, None)
    >>> parse_retry_after("Wed, 25 Nov 2026 08:00:30 GMT", datetime(2026, 11, 25, 8, tzinfo=UTC))
    30.0
    """
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        number = float(value)
        return max(number, 0.0) if math.isfinite(number) else None
    with contextlib.suppress(ValueError):
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return max((when - (now or datetime.now(UTC))).total_seconds(), 0.0)
    return None
