"""The Arrow file system of an object store, with the time-outs and retries of a long run."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from gencls_core.errors import UsageError

if TYPE_CHECKING:
    # `gencls run --help` reads the settings, and their places, without Arrow.
    import pyarrow.fs as pafs

__all__ = ["S3_NUMBER_OPTIONS", "S3_TEXT_OPTIONS", "connect"]

S3_TEXT_OPTIONS = ("region", "endpoint_override", "scheme")
S3_NUMBER_OPTIONS = {"max_attempts": 5.0, "connect_timeout": 5.0, "request_timeout": 30.0}
"""Options of an S3 URI with what holds where it says nothing: tries of one request (the client
waits longer after each), seconds until a connection stands, and seconds without an answer."""


@lru_cache(maxsize=16)
def connect(scheme: str, options: str) -> pafs.FileSystem:
    """Give the file system for a URI's scheme and options, one per process.

    Raises:
        UsageError: when an option is unknown or not a number that can be.
    """
    import pyarrow.fs as pafs

    if scheme != "s3":
        filesystem, _ = pafs.FileSystem.from_uri(f"{scheme}://bucket/key?{options}")
        return filesystem
    given = {name: values[-1] for name, values in parse_qs(options).items()}
    texts = {name: given.pop(name) for name in S3_TEXT_OPTIONS if name in given}
    if given.keys() - S3_NUMBER_OPTIONS.keys():
        raise UsageError.of(
            "an S3 URI with unknown options",
            found=", ".join(sorted(given.keys() - S3_NUMBER_OPTIONS.keys())),
            expected=", ".join((*S3_TEXT_OPTIONS, *S3_NUMBER_OPTIONS)),
        )
    numbers = dict(S3_NUMBER_OPTIONS)
    for name, value in given.items():
        try:
            numbers[name] = float(value)
        except ValueError:
            numbers[name] = 0.0
        if not 0 < numbers[name] < 10**6:
            raise UsageError.of(f"an S3 URI with {name}={value}", expected="a number above 0")
    return pafs.S3FileSystem(
        **{**_endpoint_of_environment(), **texts},
        # Without it every small object costs three requests instead of one put.
        allow_delayed_open=True,
        # A write has failed or succeeded when it returns.
        background_writes=False,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(
            max_attempts=max(1, int(numbers["max_attempts"]))
        ),
        connect_timeout=numbers["connect_timeout"],
        request_timeout=numbers["request_timeout"],
    )


def _endpoint_of_environment() -> dict[str, str]:
    """Give the S3 server that AWS's own tools would use; Arrow's constructor does not look."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not named:
        return {}
    parts = urlsplit(named if "://" in named else f"https://{named}")
    return {"endpoint_override": parts.netloc + parts.path.rstrip("/"), "scheme": parts.scheme}
