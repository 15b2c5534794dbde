"""Connections to object stores (S3, Google Cloud Storage, Azure Blob Storage, web servers) and their errors.

Credentials, region and endpoint come from the environment variables that each vendor documents: ``AWS_*``, ``GOOGLE_*``
and ``AZURE_*``. Requests that fail for a passing reason are repeated with growing pauses. `TIMEOUT_VARIABLE` sets how
long a request may take with all its repetitions.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spr.core.errors import InputError, SprError, StorageError, missing_package

if TYPE_CHECKING:
    from obstore.store import ObjectStore

TIMEOUT_VARIABLE = "SPR_STORAGE_TIMEOUT"
_TIMEOUT = 120.0
"""Seconds after which a request has succeeded or failed, repetitions included."""
_LAST_TRY = 0.25
"""The share of that time that a single try may take."""
_MOST_RETRIES = 30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0
KINDS = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage", "http": "HTTP", "https": "HTTPS"}
"""The schemes of URLs and what they mean."""
READ_ONLY = frozenset({"http", "https"})

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile: `aws configure export-credentials --format env`)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_STATIC = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
    "AWS_METADATA_ENDPOINT",
)
_STATUS = re.compile(r"status code: (\d{3}[^:\n]*)")
_CODE, _MESSAGE = re.compile(r"<Code>([^<]*)</Code>"), re.compile(r"<Message>([^<]*)</Message>")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist")
_DEBUG = "\n\nDebug source:"
_FULL = re.compile(r"\b507\b|QuotaExceeded|StorageFull|InsufficientStorage")
_stores: dict[tuple[int, str, str, str], ObjectStore] = {}
"""By process (connections don't survive a fork), scheme, bucket, and what the environment says."""


def connect(scheme: str, bucket: str) -> ObjectStore:
    """The store of a bucket, of a container, or of a web server; one per process.

    Raises:
        SprError: if the package obstore is not installed.
        InputError: if there are no credentials, or they are malformed.
    """
    known = str(sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "GOOGLE_", "AZURE_", "SPR_"))))
    key = os.getpid(), scheme, bucket, known
    if key not in _stores:
        _stores[key] = _connect(scheme, bucket)
    return _stores[key]


def _connect(scheme: str, bucket: str) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ModuleNotFoundError as error:
        raise missing_package(error, f"{scheme}://{bucket}") or error from None
    endpoint = scheme + "://" if scheme in READ_ONLY else _endpoint(scheme)
    total = request_timeout()
    last = total * _LAST_TRY
    options: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=last),
            "connect_timeout": timedelta(seconds=min(last, 10)),
            "allow_http": endpoint.startswith("http://"),
        },
        "retry_config": {
            "max_retries": _MOST_RETRIES,
            "retry_timeout": timedelta(seconds=total - last),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_PAUSE),
                "max_backoff": timedelta(seconds=min(_LONGEST_PAUSE, last)),
                "base": 2,
            },
        },
    }
    if scheme == "s3" and not any(os.environ.get(name) for name in _STATIC):
        _check_metadata_service(bucket)
    try:
        if scheme == "s3":
            return S3Store(bucket, **options)
        if scheme == "gs":
            return GCSStore(bucket, **options)
        if scheme == "az":
            return AzureStore(bucket, **options)
        return HTTPStore.from_url(f"{scheme}://{bucket}", **options)
    except (BaseError, ValueError) as error:
        got, fix = _plain(str(error)), f"set {_CREDENTIALS.get(scheme, 'a valid URL')}"
        raise InputError(f"{scheme}://{bucket} can't be opened", got=got, fix=fix) from None


def _endpoint(scheme: str) -> str:
    return next((value for name in _ENDPOINTS[scheme] if (value := os.environ.get(name))), "")


def request_timeout() -> float:
    """Seconds that a request may take, repetitions included."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise InputError(f"The environment variable {TIMEOUT_VARIABLE} is not valid", got=text, expected="1 to 3600")
    return seconds


def _check_metadata_service(bucket: str) -> None:
    """Without credentials in the environment, only a machine of the cloud has some; elsewhere asking takes minutes."""
    try:
        socket.create_connection(("169.254.169.254", 80), timeout=2).close()
    except OSError:
        fix = f"set {_CREDENTIALS['s3']}; for a public bucket: AWS_SKIP_SIGNATURE=true"
        raise InputError(f"There are no credentials for s3://{bucket}", fix=fix) from None


def explained(error: Exception, url: str, action: str) -> Exception:
    """The error to raise for one that a store gave: what was asked, of which URL, and how to fix it.

    A missing object is a FileNotFoundError; everything else that is not a program's mistake is a `StorageError`.
    ``action`` is a participle, such as "read".
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    text, scheme = str(error), urlsplit(url).scheme
    bucket = f"{scheme}://{urlsplit(url).netloc}"
    if isinstance(error, SprError):
        return error
    if _NO_BUCKET.search(text):
        fix = "check the name; SPR does not create buckets"
        return StorageError(f"There is no bucket {bucket}", got=f"{url} was to be {action}", fix=fix)
    if isinstance(error, FileNotFoundError | ValueError) or "KeyTooLong" in text:
        # A ValueError: no object can have this name.
        return FileNotFoundError(errno.ENOENT, "No such object", url)
    if not isinstance(error, BaseError | OSError | NotImplementedError):
        return error
    what, got = f"{url} can't be {action}", _plain(text)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or got.startswith(("401", "403")):
        need = _CREDENTIALS.get(scheme)
        fix = f"check the permissions for {bucket}" + (f" and the credentials: {need}" if need else "")
        return StorageError(what, got=got, fix=fix)
    if _FULL.search(text):
        return StorageError(what, got=f"the store is full ({got})", fix="free some space, then run the command again")
    if "timed out" in text or "TimedOut" in text:
        got = f"no answer within {request_timeout():g} s"
    check = "check the network"
    if scheme in _ENDPOINTS:
        check += f" and the endpoint ({_endpoint(scheme) or 'the default'})"
    fix = f"{check}, then run the command again; {TIMEOUT_VARIABLE} sets how long SPR tries"
    return StorageError(what, got=got, fix=fix)


def is_broken_answer(error: Exception) -> bool:
    """Whether the connection broke within the body of an answer."""
    message = str(error).partition(_DEBUG)[0]
    return type(error).__name__ == "GenericError" and re.search("body error|response body", message) is not None


def _plain(text: str) -> str:
    """The readable part of a store's error."""
    found = [match[1].strip() for pattern in (_STATUS, _CODE, _MESSAGE) if (match := pattern.search(text))]
    if not found:
        found = [text.partition(_DEBUG)[0]]
    return " ".join(": ".join(found).split())[:300]
