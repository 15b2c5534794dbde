"""A server that is asked for JSON over HTTP, again where that may help; what can't get better stops with one error."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import httpx

from spr.core.errors import SprError

Answer = TypeVar("Answer")

LONGEST_WAIT = 600.0
"""Seconds; a server that asks to be left alone for longer ends the run instead."""
LONGEST_BACKOFF = 60.0
"""Seconds between two tries where the server names none."""
LARGEST_REPLY = 2**24
"""Bytes; no description is that long."""
TELL_EVERY = 10.0
"""Seconds between two warnings about a server that is asked again."""

_log = logging.getLogger(__name__)
_AGAIN = {408, 425, 429}  # and all from 500 on
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_QUOTED = 400  # characters of a server's message


class ServerError(SprError):
    """A server can't be reached, goes on failing, or refuses what it is asked."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(what, got=got, expected=expected, fix=fix)
        self.status = status


class _Again(Exception):  # noqa: N818 - it stops nothing
    """Worth another try, after ``wait`` seconds if the server says so."""

    def __init__(self, problem: str, wait: float | None = None, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.wait, self.status = problem, wait, status


class JsonClient:
    """Asks for JSON with bounded patience.

    Tried again: connections that are refused, dropped or silent; status 408, 425, 429 and 5xx; replies that are no JSON
    (a proxy's page) or not the JSON that was asked for. Between two tries it waits as long as ``Retry-After`` says,
    else ``first_wait`` · 2ⁿ seconds, at most `LONGEST_BACKOFF`, times a random ½ to 1. The trouble is logged as a
    warning, every `TELL_EVERY` seconds.

    Args:
        base_url: Such as ``http://127.0.0.1:8000/v1``.
        key: Sent as a bearer token. It is in no error, also where the server repeats it.
        connect_timeout: Seconds until a connection stands.
        timeout: Seconds a try may take in all, with the connection and the server's queue.
        retries: Further tries after the first.
        first_wait: Seconds before the second try.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        connect_timeout: float = 10.0,
        timeout: float = 300.0,
        retries: int = 8,
        first_wait: float = 1.0,
    ) -> None:
        self.base_url, self.key = base_url.rstrip("/"), key
        self.connect_timeout, self.timeout = connect_timeout, timeout
        self.retries, self.first_wait = retries, first_wait
        self._told = -math.inf

    def client(self, connections: int) -> httpx.AsyncClient:
        """A client for `ask`, to be used in ``async with``."""
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key is not None else {},
            timeout=httpx.Timeout(self.timeout, connect=self.connect_timeout, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # What runs on this machine is not behind the proxy that the environment may name.
            trust_env=httpx.URL(self.base_url).host not in _LOCAL,
            verify=_certificates(),
        )

    async def ask(
        self,
        client: httpx.AsyncClient,
        path: str,
        read: Callable[[Any], Answer],
        body: Mapping[str, Any] | None = None,
        *,
        about: str = "",
        retries: int | None = None,
    ) -> Answer:
        """What ``read`` makes of the reply; ``body`` is posted, without one it is a GET.

        Args:
            client: Of `client`.
            path: Below the base URL, with its slash.
            read: The JSON → the answer; raises `ValueError` if it isn't what was asked for, which is tried again.
            body: JSON.
            about: What the request is about, for errors.
            retries: Instead of the server's own.

        Raises:
            ServerError: after the last try, or at once where none would help; its ``status`` is that of the last reply.
        """
        url, tries = self.base_url + path, 1 + (self.retries if retries is None else retries)
        problem = _Again("nothing")
        for number in range(tries):
            try:
                async with asyncio.timeout(self.timeout):
                    return read(await self._once(client, url, body, about))
            except TimeoutError:
                problem = _Again(f"no answer within {self.timeout:g} s")
            except httpx.RequestError as error:
                problem = _Again(self._quote(f"{type(error).__name__}: {error}"))
            except ValueError as error:
                problem = _Again(f"a reply without an answer: {self._quote(str(error))}")
            except _Again as again:
                problem = again
            wait = self._wait(number, problem.wait)
            if wait > LONGEST_WAIT:
                raise ServerError(
                    f"{url} asks to be left alone{about}",
                    got=f"{problem.problem}, Retry-After: {problem.wait:.0f} s",
                    expected=f"at most {LONGEST_WAIT:.0f} s",
                    fix="give the same command later: what was answered is kept",
                    status=problem.status,
                )
            if number + 1 < tries:
                self._tell(f"{url}: {problem.problem}; asked again in {wait:.0f} s")
                await asyncio.sleep(wait)
        raise ServerError(
            f"{url} gives no answer{about}",
            got=f"{problem.problem} ({tries} {'tries' if tries > 1 else 'try'})",
            expected="JSON of an OpenAI-compatible server",
            fix="look at the server and at describer.base_url, or raise describer.timeout or describer.retries; "
            "then give the same command: what was answered is kept",
            status=problem.status,
        )

    async def _once(self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None, about: str) -> Any:
        # Not httpx's own JSON: half a surrogate pair in a text goes over as its escape.
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        async with client.stream(method, url, content=content, headers=headers) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > LARGEST_REPLY:
                    raise _Again(f"a reply of more than {LARGEST_REPLY // 2**20} MiB")
        status = response.status_code
        if status in _AGAIN or status >= 500:
            message = f"status {status}: {self._message(data)}"
            raise _Again(message, seconds(response.headers.get("Retry-After")), status)
        if status >= 300:
            raise self._refused(response, url, data, about)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise _Again(f"no JSON: {self._message(data)}", status=status) from None

    def _refused(self, response: httpx.Response, url: str, data: bytearray, about: str) -> ServerError:
        status = response.status_code
        got = f"status {status}: {self._message(data)}"
        if status < 400:
            fix = f"set describer.base_url to where it sends: {response.headers.get('Location', 'unknown')}"
            return ServerError(f"{url} lies elsewhere", got=got, fix=fix, status=status)
        if status in (401, 403):
            fix = "name in describer.api_key_env an environment variable that holds a key of this server"
            return ServerError(f"{url} does not let us in", got=got, fix=fix, status=status)
        if status in (404, 405):
            fix = "mend describer.model or describer.base_url, which mostly ends in /v1"
            return ServerError(f"{url} does not know what is asked for{about}", got=got, fix=fix, status=status)
        fix = "mend what it names: describer.max_new_tokens, describer.request_fields, describer.model or the prompts"
        return ServerError(f"{url} refuses the request{about}", got=got, fix=fix, status=status)

    def _tell(self, trouble: str) -> None:
        """Warn, but not once a request: a server in trouble fails all that are under way."""
        if time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            _log.warning(trouble)

    def _wait(self, number: int, asked: float | None) -> float:
        jitter = random.uniform(0.5, 1.0)
        if asked is not None:
            return asked + jitter * self.first_wait  # so that all who wait don't come back at once
        return min(self.first_wait * 2.0**number, LONGEST_BACKOFF) * jitter

    def _message(self, data: bytes | bytearray) -> str:
        """What a reply says, for people: the message of an error in JSON, a page's title, or the text."""
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
        return words[:_QUOTED] or "nothing"


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # 40 ms, once a process instead of once a client


def seconds(retry_after: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number or a date (RFC 9110 §10.2.3); None if it says nothing.

    >>> seconds("7"), seconds("soon"), seconds(None)
    (7.0, None, None)
    >>> seconds("Wed, 25 Nov 2026 08:00:30 GMT", datetime(2026, 11, 25, 8, tzinfo=UTC))
    30.0
    """
    if retry_after is None:
        return None
    try:
        number = float(retry_after)
        return max(number, 0.0) if math.isfinite(number) else None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return max((when - (now or datetime.now(UTC))).total_seconds(), 0.0)
