"""Objects in an S3 bucket, or in a service with the same API, through s3fs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import MissingPackageError, install
from edgeopt.run.shared.objects import Objects, UnavailableError

ATTEMPTS = 5


class Bucket(Objects):
    """``s3://bucket/prefix``; credentials, region and endpoint come from the usual AWS configuration.

    Raises:
        MissingPackageError: s3fs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import s3fs
        except ImportError as error:
            raise MissingPackageError(
                "a store in s3:// requires s3fs, which is not installed", fix=install("publish")
            ) from error
        self.shown = url.rstrip("/")
        self._root = self.shown.removeprefix("s3://")
        self._files = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,  # current settings
            config_kwargs={
                "connect_timeout": 10,
                "read_timeout": 60,
                "retries": {"max_attempts": ATTEMPTS, "mode": "standard"},
            },
        )

    def read(self, name: str, target: Path, limit: int) -> bool:
        with self._explained():
            try:
                size = int(self._files.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return False
            if size > limit:
                raise UnavailableError(f"{self.shown}: {name} has more than {limit:,} bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._files.get_file(f"{self._root}/{name}", str(target))
            except FileNotFoundError:
                return False
        return True

    def has(self, name: str) -> bool:
        with self._explained():
            return bool(self._files.exists(f"{self._root}/{name}"))

    def write(self, name: str, source: Path) -> None:
        with self._explained():
            self._files.put_file(str(source), f"{self._root}/{name}")

    def delete(self, name: str) -> None:
        with self._explained():
            try:
                self._files.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of s3fs, without their text, which may contain the name of an access key."""
        from aiohttp import ClientError
        from botocore import exceptions

        try:
            yield
        except PermissionError as error:
            raise UnavailableError(f"{self.shown} denies access with these credentials") from error
        except FileNotFoundError as error:
            raise UnavailableError(f"{self.shown}: there is no such bucket") from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise UnavailableError(f"no credentials for {self.shown}") from error
        except (exceptions.BotoCoreError, exceptions.ClientError, ClientError, OSError) as error:
            raise UnavailableError(f"{self.shown} cannot be reached ({type(error).__name__})") from error
