"""Opens the remote that a URL names: a registry, a bucket, a folder or a web server."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgeopt.errors import UsageError
from edgeopt.publish.remote import Remote
from edgeopt.publish.remotes.folder import Folder
from edgeopt.publish.remotes.layout import Layout
from edgeopt.publish.remotes.names import is_host, is_loopback, is_repository, is_tag

_FORMS = "oci://host/repository, s3://bucket/prefix, file:///folder, https://host/path"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9!_.'()=@+,-]+")
_PATH = re.compile(r"[A-Za-z0-9!_.'()=@+,;:$&%~/-]*")


def open_remote(url: str) -> Remote:
    """Return the remote at a URL, without contacting it.

    ``oci://`` uses TLS except on the loopback interface; ``oci+http://`` and ``oci+https://`` override this.

    Raises:
        UsageError: the URL is invalid.
        MissingPackageError: a package that the remote requires is not installed.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        raise UsageError(f"{url[:200]!a} is not a remote URL", fix=f"use one of {_FORMS}")
    _check_readable(url, rest)
    match scheme.lower():
        case "oci" | "oci+http" | "oci+https":
            return _registry(scheme.lower(), rest)
        case "s3":
            return _bucket(rest)
        case "file":
            return _folder(rest)
        case "https" | "http":
            return _web(scheme.lower(), rest)
    raise UsageError(f"{scheme[:40]!a} is not a supported URL scheme", fix=f"use one of {_FORMS}")


def library(root: Path) -> Layout:
    """The layout in a folder, which is created by the first push."""
    root = root.absolute()
    return Layout(Folder(root), root.as_uri())


def _check_readable(url: str, rest: str) -> None:
    if "@" in rest.partition("/")[0]:
        # The URL may contain a password: the message does not repeat it.
        raise UsageError(
            "a remote URL must not contain a user name or password",
            fix="run 'docker login HOST', or use ~/.netrc for https",
        )
    if not url.isprintable():
        raise UsageError(f"{url[:200]!a} contains unprintable characters", fix=f"use one of {_FORMS}")


def _registry(scheme: str, rest: str) -> Remote:
    from edgeopt.publish.remotes.registry import Registry

    host, _, repository = rest.partition("/")
    if not is_host(host):
        raise UsageError(f"{host[:200]!a} is not a valid host", fix="use oci://host[:port]/repository")
    name, separator, tag = repository.partition(":")
    if separator and is_repository(host, name) and is_tag(tag):
        raise UsageError(
            f"{repository[:200]!a} includes a tag; a remote is a repository", fix=f"use oci://{host}/{name}"
        )
    if not is_repository(host, repository):
        raise UsageError(
            f"{repository[:200]!a} is not a valid repository name",
            fix="use lowercase letters, digits, and '.', '_', '-' between them; '/' separates components",
        )
    secure = {"oci": None, "oci+http": False, "oci+https": True}[scheme]
    return Registry(host, repository, secure=secure)


def _bucket(rest: str) -> Remote:
    from edgeopt.publish.remotes.bucket import Bucket

    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket[:200]!a} is not a valid bucket name", fix="use s3://bucket/prefix")
    parts = prefix.split("/") if prefix else []
    if len(prefix) > 900 or not all(_SEGMENT.fullmatch(part) and part.strip(".") for part in parts):
        raise UsageError(
            f"{prefix[:200]!a} is not a valid bucket prefix",
            fix="use letters, digits, and !_.'()=@+,- ; '/' separates components",
        )
    place = Bucket(bucket, prefix)
    return Layout(place, place.shown)


def _folder(rest: str) -> Remote:
    path = unquote(rest)
    if not path.startswith("/") or "\0" in path:
        raise UsageError(
            f"{rest[:200]!a} is not an absolute path", fix="use file:///folder, with three slashes"
        )
    return library(Path(path))


def _web(scheme: str, rest: str) -> Remote:
    from edgeopt.publish.remotes.web import Web

    host, _, path = rest.rstrip("/").partition("/")
    if not is_host(host):
        raise UsageError(f"{host[:200]!a} is not a valid host", fix="use https://host/path")
    parts = urlsplit(f"//{host}/{path}")
    if parts.query or parts.fragment or not _PATH.fullmatch(path):
        raise UsageError(
            f"{path[:200]!a} is not a valid URL path", fix="percent-encode special characters; omit ? and #"
        )
    if scheme == "http" and not is_loopback(host):
        raise UsageError(
            f"http://{host} is neither encrypted nor authenticated",
            fix=f"use https://{host}/…",
        )
    url = f"{scheme}://{host}/{path}".rstrip("/")
    return Layout(Web(url, loopback=is_loopback(host)), url)
