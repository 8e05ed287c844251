"""The files of a layout in an S3 bucket (or in what speaks the same language), through s3fs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from edgeopt.errors import MissingPackageError, RemoteError, UsageError
from edgeopt.publish.oci import Descriptor, digest_of_bytes
from edgeopt.publish.remote import Progress
from edgeopt.publish.remotes.patience import Attempts, Patience, usual_patience
from edgeopt.publish.remotes.place import Place
from edgeopt.publish.remotes.transfer import (
    Again,
    Pieces,
    TransientError,
    digest_of_file,
    explained,
    mismatch,
)

_PIECE = 8 << 20
"""Bytes per request: S3 wants parts of 5 MiB or more, and at most 10,000 of them."""
_LISTED = 500


class Bucket(Place):
    """``s3://bucket/prefix``. Who we are, and where the service is, come from where AWS tools look for it.

    Raises:
        MissingPackageError: s3fs is not installed.
    """

    def __init__(self, bucket: str, prefix: str, patience: Patience | None = None) -> None:
        try:
            import s3fs
        except ImportError as error:
            raise MissingPackageError(
                "s3:// needs s3fs, which is not installed", fix="pip install 'edgeopt[publish]'"
            ) from error
        patience = patience or usual_patience()
        self.shown = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._root = f"{bucket}/{prefix}".rstrip("/")
        self._files = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,  # settings of the moment, and no loop that another process began
            config_kwargs={
                "connect_timeout": patience.connect,
                "read_timeout": patience.read,
                "retries": {"max_attempts": patience.attempts, "mode": "standard"},
            },
        )
        # botocore asks that often already; s3fs begins again what breaks off in the middle.
        self._files.retries = 2
        self._patience = patience

    def attempts(self) -> Again:
        return Attempts(self._patience).again

    def read(self, name: str, limit: int) -> bytes | None:
        with self._asked():
            try:
                return self._piece(name, 0, limit + 1)
            except FileNotFoundError:
                return None

    def open_at(self, name: str, blob: Descriptor, offset: int) -> tuple[int, Pieces] | None:
        size = self.size(name)
        if size is None:
            return None
        if size != blob.size:
            raise mismatch(blob.digest, self.shown, f"it has {size} bytes there, not {blob.size}")
        return offset, self._pieces(name, offset, size)

    def size(self, name: str) -> int | None:
        with self._asked():
            try:
                return int(self._files.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._asked(), self._bucket_there():
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

        class Told(Callback):  # type: ignore[misc, unused-ignore]
            def relative_update(self, inc: int = 1) -> None:
                progress(inc)

        with self._asked(), self._bucket_there():
            target = f"{self._root}/{name}"
            self._files.put_file(str(source), target, callback=Told(), chunksize=_PIECE, max_concurrency=2)

    def names(self, folder: str) -> dict[str, str]:
        with self._asked():
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
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _LISTED):
            paths = {f"{self._root}/{folder}/{name}": name for name in names[start : start + _LISTED]}
            with self._asked():
                answers = self._files.cat_ranges(
                    list(paths), [0] * len(paths), [limit + 1] * len(paths), on_error="return"
                )
            for name, answer in zip(paths.values(), answers, strict=True):
                if isinstance(answer, bytes):
                    found[name] = answer
                elif not isinstance(answer, FileNotFoundError):
                    with self._asked():
                        raise answer
        return found

    def delete(self, name: str) -> None:
        with self._asked():
            self._files.rm_file(f"{self._root}/{name}")

    def alone(self, name: str, exclusive: bool) -> AbstractContextManager[None]:
        if exclusive and name != ".index.lock":
            raise UsageError(f"{self.shown} cannot be held alone: buckets know no locks", fix="use a folder")
        return nullcontext()

    def _pieces(self, name: str, offset: int, size: int) -> Pieces:
        while offset < size:
            with self._asked():
                piece = self._piece(name, offset, min(offset + _PIECE, size))
            if not piece:
                return
            yield piece
            offset += len(piece)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        data: bytes = self._files.cat_file(f"{self._root}/{name}", start=start, end=end)
        return data

    @contextmanager
    def _bucket_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise RemoteError(
                f"there is no bucket {self._bucket!r}", fix="create it, or check its name"
            ) from error

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Say what is wrong with a bucket. The text of an error is not used: it may hold a key's name."""
        from aiohttp import ClientError
        from botocore import exceptions

        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise RemoteError(
                f"{self.shown} may not be read or written with these credentials (403)",
                fix="check AWS_PROFILE, or the policy of the bucket",
            ) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise RemoteError(
                f"no credentials for {self.shown}", fix="aws configure, or set AWS_PROFILE"
            ) from error
        except exceptions.EndpointConnectionError as error:
            raise RemoteError(
                f"{self.shown} cannot be reached", fix="check the network, AWS_REGION and AWS_ENDPOINT_URL"
            ) from error
        except (exceptions.HTTPClientError, ClientError, TimeoutError) as error:
            raise TransientError(
                f"{self.shown} broke off in the middle", fix="run it again: it goes on where it stopped"
            ) from error
        except (exceptions.BotoCoreError, exceptions.ClientError, OSError) as error:
            raise RemoteError(
                f"{self.shown} refuses ({type(error).__name__})", fix="check the bucket's region and name"
            ) from error


def _check(blob: Descriptor, digest: str, size: int) -> None:
    if (digest, size) != (blob.digest, blob.size):
        raise mismatch(blob.digest, "what is pushed", f"its {size} bytes are others")
