"""Layout files in an S3 bucket, or in a service with the same API, through s3fs."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from edgeopt.errors import MissingPackageError, RemoteError, UsageError, install
from edgeopt.publish.oci import Descriptor, digest_of_bytes
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.patience import Attempts, Patience, usual_patience
from edgeopt.publish.remotes.place import Place
from edgeopt.publish.remotes.transfer import (
    RESUME,
    Again,
    Pieces,
    TransientError,
    digest_of_file,
    explained,
    mismatch,
)

_PIECE = 8 << 20
"""Most bytes per request: S3 requires upload parts of at least 5 MiB, and at most 10,000 of them."""
_FIRST_PIECE = 64 << 10
"""Bytes of the first request for a blob; the next ones follow the speed."""
_BATCH = 500
"""Small files that are read concurrently."""


class Bucket(Place):
    """``s3://bucket/prefix``. Credentials, region and endpoint come from the usual AWS configuration.

    Raises:
        MissingPackageError: s3fs is not installed.
    """

    def __init__(self, bucket: str, prefix: str, patience: Patience | None = None) -> None:
        try:
            import s3fs
        except ImportError as error:
            raise MissingPackageError(
                "s3:// requires s3fs, which is not installed", fix=install("publish")
            ) from error
        patience = patience or usual_patience()
        self.shown = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._root = f"{bucket}/{prefix}".rstrip("/")
        self._files = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,  # current settings; no event loop inherited from a parent process
            config_kwargs={
                "connect_timeout": patience.connect,
                "read_timeout": patience.read,
                "retries": {"max_attempts": patience.attempts, "mode": "standard"},
            },
        )
        # botocore retries failed requests itself; s3fs retries responses that are cut off.
        self._files.retries = 2
        self._patience = patience

    def attempts(self) -> Again:
        return Attempts(self._patience).again

    def read(self, name: str, limit: int) -> bytes | None:
        with self._explained():
            try:
                return self._piece(name, 0, limit + 1)
            except FileNotFoundError:
                return None

    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        size = self.size(name)
        if size is None:
            return None
        if size != blob.size:
            raise mismatch(blob.digest, self.shown, f"it has {size} bytes, expected {blob.size}")
        return offset, self._pieces(name, offset, size)

    def size(self, name: str) -> int | None:
        with self._explained():
            try:
                return int(self._files.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._explained(), self._existing_bucket():
            self._files.pipe_file(f"{self._root}/{name}", data)

    def put(self, name: str, blob: Descriptor, source: Path | bytes, progress: Progress) -> None:
        if isinstance(source, bytes):
            _check(blob, digest_of_bytes(source), len(source))
            self.write(name, source)
            progress(blob.size)
            return
        with explained(source):
            _check(blob, *digest_of_file(source))
        from fsspec.callbacks import Callback

        class ByteCount(Callback):  # type: ignore[misc, unused-ignore]
            def relative_update(self, inc: int = 1) -> None:
                progress(inc)

        with self._explained(), self._existing_bucket():
            target = f"{self._root}/{name}"
            self._files.put_file(
                str(source), target, callback=ByteCount(), chunksize=_PIECE, max_concurrency=2
            )

    def names(self, folder: str) -> dict[str, str]:
        with self._explained():
            try:
                entries = self._files.ls(f"{self._root}/{folder}", detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        return {
            entry["name"].rpartition("/")[2]: str(entry.get("ETag"))
            for entry in entries
            if entry["type"] == "file"
        }

    def read_all(self, folder: str, names: list[str], limit: int) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        for start in range(0, len(names), _BATCH):
            paths = {f"{self._root}/{folder}/{name}": name for name in names[start : start + _BATCH]}
            with self._explained():
                replies = self._files.cat_ranges(
                    list(paths), [0] * len(paths), [limit + 1] * len(paths), on_error="return"
                )
            for name, reply in zip(paths.values(), replies, strict=True):
                if isinstance(reply, bytes):
                    contents[name] = reply
                elif not isinstance(reply, FileNotFoundError):
                    with self._explained():
                        raise reply
        return contents

    def delete(self, name: str) -> None:
        with self._explained():
            self._files.rm_file(f"{self._root}/{name}")

    def lock(self, name: str, exclusive: bool) -> AbstractContextManager[None]:
        if exclusive and name != ".index.lock":
            raise UsageError(f"{self.shown} cannot be locked: buckets have no locks", fix="use a folder")
        return nullcontext()

    def _pieces(self, name: str, offset: int, size: int) -> Pieces:
        # Every piece must arrive within the read timeout, so that a server that drips is given up; at the
        # recent speed, it takes a second.
        length = _FIRST_PIECE
        while offset < size:
            start = time.monotonic()
            with self._explained():
                piece = self._piece(name, offset, min(offset + length, size))
            seconds = time.monotonic() - start
            if not piece:
                return
            yield piece
            offset += len(piece)
            length = min(max(int(length / max(seconds, 0.1)), _FIRST_PIECE), _PIECE)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        path = f"{self._root}/{name}"
        data: bytes = self._files.cat_file(path, start=start, end=end, timeout=self._patience.read)
        return data

    @contextmanager
    def _existing_bucket(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise RemoteError(
                f"bucket {self._bucket!r} does not exist", fix="create it, or check its name"
            ) from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Translate errors of s3fs, without their text, which may contain the name of an access key."""
        from aiohttp import ClientError
        from botocore import exceptions

        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise RemoteError(
                f"{self.shown} denies access with these credentials (403)",
                fix="check AWS_PROFILE and the bucket policy",
            ) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise RemoteError(
                f"no credentials for {self.shown}", fix="run 'aws configure', or set AWS_PROFILE"
            ) from error
        except exceptions.EndpointConnectionError as error:
            raise RemoteError(
                f"{self.shown} cannot be reached", fix="check the network, AWS_REGION and AWS_ENDPOINT_URL"
            ) from error
        except (exceptions.HTTPClientError, ClientError, TimeoutError) as error:
            raise TransientError(f"{self.shown}: the transfer was interrupted", fix=RESUME) from error
        except (exceptions.BotoCoreError, exceptions.ClientError, OSError) as error:
            raise RemoteError(
                f"{self.shown} rejected the request ({type(error).__name__})",
                fix="check the bucket's region and name",
            ) from error


def _check(blob: Descriptor, digest: str, size: int) -> None:
    if (digest, size) != (blob.digest, blob.size):
        raise mismatch(blob.digest, "the uploaded data", f"its {size} bytes do not match the digest")
