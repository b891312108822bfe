"""A place in an object store (`s3://bucket/key`, `gs://…`), used as a `pathlib.Path` is used.

Only the part of `pathlib` that a run directory needs, over `pyarrow.fs`. An object store has no
rename and no folders: a file is written by one put, which replaces what stood there or changes
nothing, and a "folder" is what its keys begin with.

Every failure of the store itself (not "there is no such object") becomes a StoreError with the
place, so that no caller has to know the errors of five client libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

from gencls_core.errors import StoreError, UsageError
from gencls_core.store_client import connect

if TYPE_CHECKING:
    import pyarrow.fs as pafs

__all__ = ["Location", "RemotePath", "RemoteStat", "as_location", "store_failure", "uri_of"]

READ_BYTES = 16 << 20
"""An object is read in parts of at most this size."""


@dataclass(frozen=True)
class RemoteStat:
    """Size in bytes and time of the last change (seconds since 1970, by the store's clock)."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class RemotePath:
    """`scheme://key?options`, for example `s3://bucket/runs/agnews?region=eu-central-1`."""

    scheme: str
    key: str
    """Bucket and key, without a slash at either end."""
    options: str = ""
    """The query of the URI: where the store is, how long it is waited for. Never credentials."""

    @classmethod
    def parse(cls, uri: str) -> RemotePath:
        """Read a URI.

        Raises:
            UsageError: when the scheme is unknown, there is no bucket, or it holds credentials.
        """
        parts = urlsplit(uri)
        if "@" in parts.netloc or {"access_key", "secret_key"} & parse_qs(parts.query).keys():
            raise UsageError.of(
                "a URI that holds credentials, which would stand in run.json and in logs",
                place=f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}",
                remedy="put them into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE) or use the machine's role",
            )
        if parts.scheme not in ("s3", "gs", "gcs", "abfs", "abfss"):
            raise UsageError.of(
                "a URI of an unknown kind",
                place=uri,
                expected="s3://bucket/prefix, gs://bucket/prefix, abfs://container/prefix, or a "
                "folder",
            )
        key = f"{parts.netloc}/{parts.path}"
        key = "/".join(part for part in key.split("/") if part)
        if not parts.netloc or any(part in (".", "..") for part in key.split("/")):
            raise UsageError.of(
                "not a place in an object store",
                place=uri,
                expected="bucket and prefix without `.` and `..`: s3://bucket/prefix",
            )
        return cls(parts.scheme, key, parts.query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @property
    def uri(self) -> str:
        """The whole URI, as it can be parsed again."""
        return f"{self}?{self.options}" if self.options else str(self)

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(self.scheme, f"{self.key}/{name}", self.options)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The key without its last part."""
        return RemotePath(self.scheme, self.key.rpartition("/")[0], self.options)

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Give the rest of the key below `other`; raises ValueError where it is not below."""
        return PurePosixPath(self.key).relative_to(other.key)

    def absolute(self) -> RemotePath:
        """Give itself: a URI is absolute."""
        return self

    def expanduser(self) -> RemotePath:
        """Give itself."""
        return self

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The Arrow file system, one per process and set of options."""
        return connect(self.scheme, self.options)

    def _info(self) -> pafs.FileInfo:
        with self._errors("looked up"):
            return self.filesystem.get_file_info(self.key)

    def exists(self) -> bool:
        """Say whether there is such an object, or a key that begins with it."""
        return bool(self._info().type.name != "NotFound")

    def is_file(self) -> bool:
        """Say whether there is such an object."""
        return bool(self._info().type.name == "File")

    def is_dir(self) -> bool:
        """Say whether there are keys below this one."""
        return bool(self._info().type.name == "Directory")

    def stat(self) -> RemoteStat:
        """Give size and time; raises FileNotFoundError."""
        info = self._info()
        if info.type.name != "File":
            raise FileNotFoundError(str(self))
        return _stat_of(info)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: keys need no folder."""

    def iterdir(self) -> Iterator[RemotePath]:
        """Give what lies directly below."""
        for info in self._list(recursive=False):
            yield RemotePath(self.scheme, info.path, self.options)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Give the objects and folders below that match, part by part."""
        wanted = pattern.split("/")
        recursive = len(wanted) > 1
        for info in self._list(recursive=recursive):
            parts = info.path[len(self.key) + 1 :].split("/")
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                yield RemotePath(self.scheme, info.path, self.options)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Give the objects at any depth whose name matches."""
        for path, _ in self.files():
            if fnmatchcase(path.name, pattern):
                yield path

    def files(self) -> Iterator[tuple[RemotePath, RemoteStat]]:
        """Give every object below with its size and time, from the listing alone."""
        for info in self._list(recursive=True):
            if info.type.name == "File":
                yield RemotePath(self.scheme, info.path, self.options), _stat_of(info)

    def _list(self, *, recursive: bool) -> list[pafs.FileInfo]:
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self.key, recursive=recursive, allow_not_found=True)
        with self._errors("listed"):
            return list(self.filesystem.get_file_info(selector))

    def read_bytes(self) -> bytes:
        """Read an object whole; raises FileNotFoundError."""
        return b"".join(self.chunks())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read an object whole as text; raises FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open an object for reading, range by range."""
        if mode != "rb":
            raise ValueError(f"objects are written whole, not opened with {mode!r}")
        with self._errors("read"):
            return cast(BinaryIO, self.filesystem.open_input_file(self.key))

    def write_bytes(self, content: bytes) -> None:
        """Put an object: whole or not at all."""
        self.upload(io.BytesIO(content))

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """Put an object: whole or not at all."""
        self.write_bytes(text.encode(encoding))

    def upload(self, source: BinaryIO) -> None:
        """Put an object from an open file.

        A small object is one request, a large one several parts that appear together when the last
        request names them all.
        """
        with self._errors("written"):
            stream: Any = self.filesystem.open_output_stream(self.key, buffer_size=None)
            try:
                while chunk := source.read(64 << 20):
                    stream.write(chunk)
                stream.close()
            except BaseException:
                # Arrow closes a stream that is collected, and that would publish the parts that
                # had come so far. It has no way to give one up: this one is kept for ever.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
                raise

    def download(self, destination: Path) -> None:
        """Copy an object into a file; raises FileNotFoundError."""
        with destination.open("wb") as target:
            for chunk in self.chunks():
                target.write(chunk)

    def chunks(self) -> Iterator[bytes]:
        """Read an object part by part; raises FileNotFoundError."""
        with self._errors("read"), self.filesystem.open_input_stream(self.key) as stream:
            while chunk := self._read(stream):
                yield chunk

    def _read(self, stream: Any) -> bytes:
        """Read the next part; once more where Arrow had no room for the store's refusal.

        A refusal (500, 503) that is longer than what is asked for does not fit into Arrow's buffer
        and is then not tried again, so every file of some hundred bytes would end a run.
        """
        for pause in (0.1, 0.4, 1.6, 6.4):
            try:
                return cast(bytes, stream.read(READ_BYTES))
            except OSError as error:
                if "Failed to flush response stream" not in str(error):
                    raise
                time.sleep(pause * random.uniform(0.5, 1.0))
        return cast(bytes, stream.read(READ_BYTES))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        with self._errors("deleted"):
            try:
                self.filesystem.delete_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_tree(self) -> None:
        """Delete every object below."""
        with self._errors("deleted"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.key)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _failure(what, self, error) from error


Location = Path | RemotePath
"""Where a run may lie: a folder, or a place in an object store."""


def as_location(value: str | Path | RemotePath) -> Location:
    """Read a folder's name or a URI.

    Raises:
        UsageError: when it is a URI that cannot be a run directory.
    """
    if isinstance(value, RemotePath):
        return value
    text = str(value)
    if text.startswith("file://"):
        return Path(urlsplit(text).path)
    if "://" in text:
        return RemotePath.parse(text)
    return Path(value)


def uri_of(location: Location) -> str:
    """Give the text that `as_location` reads again."""
    return location.uri if isinstance(location, RemotePath) else str(location)


def store_failure(location: Location, error: Exception) -> StoreError | None:
    """Say that the store failed while Arrow or DuckDB read a file; None for any other error.

    A file that is torn, or not there, is no failure of the store: its remedy is another.
    """
    if isinstance(location, RemotePath) and any(name in str(error) for name in _CLIENT_ERRORS):
        return _failure("read", location, error)
    return None


_CLIENT_ERRORS = ("AWS Error", "google::cloud::Status", "Azure Error")


def _failure(what: str, path: RemotePath, error: Exception) -> StoreError:
    return StoreError.of(
        f"cannot be {what}: the object store refused or did not answer",
        place=str(path),
        found=str(error).strip().splitlines()[0],
        remedy="check bucket, region, credentials and network, then run the same command again: "
        "it goes on from what is committed",
    )


def _stat_of(info: pafs.FileInfo) -> RemoteStat:
    return RemoteStat(st_size=int(info.size), st_mtime=(info.mtime_ns or 0) / 1e9)
