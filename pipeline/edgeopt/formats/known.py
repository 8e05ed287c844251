"""The known formats, and detection of the format of a file by its content: names are less reliable."""

from functools import cache
from pathlib import Path

from edgeopt.config import registry
from edgeopt.config.files import content_digest, files_of
from edgeopt.model import Model
from edgeopt.plugin.format import FileHead, Format


@cache
def formats() -> dict[str, Format]:
    """All formats by name, including those of other installed distributions, the most common first.

    Formats that exist only between two stages are not listed.
    """
    instances = [kind() for kind in registry.plugins(Format).values()]
    return {each.name: each for each in sorted(instances, key=lambda each: (each.order, each.name))}


def format_named(name: str) -> Format:
    """The format with this name.

    Raises:
        UsageError: no format has this name.
    """
    return formats().get(name) or registry.find(Format, name)()


def model_files(model: Model) -> tuple[Path, ...]:
    """All files of a model, the main one first."""
    known = formats().get(model.format)
    return known.files(model.path) if known is not None else tuple(files_of(model.path))


def placed_files(model: Model, target: Path) -> dict[Path, Path]:
    """The target of each file of a model if its main file is moved to ``target``."""
    known = formats().get(model.format) or Format()
    return known.placed(model.path, target)


def model_digest(model: Model) -> str:
    """sha256 of the content of all files of a model, independent of their location."""
    known = formats().get(model.format)
    return known.digest(model.path) if known is not None else content_digest(model.path)


@cache
def artifact_formats() -> tuple[str, ...]:
    """Names of the formats that a recipe can request as output."""
    return tuple(name for name, each in formats().items() if each.artifact)


def factory_format() -> str:
    """The name of the format behind ``model: {factory: ...}`` in a recipe."""
    return next(name for name, each in formats().items() if each.from_factory)


def identify(path: Path) -> Format | None:
    """The format of the file or folder at ``path``, by its content; None if no format recognises it.

    If several formats recognise it, its suffix decides.

    Raises:
        Exception: one of ``bounded.MALFORMED``, for a damaged archive.
        OSError: the file cannot be read.
    """
    head = FileHead(path)
    by_content = [each for each in formats().values() if each.recognises(head)]
    by_name = [each for each in by_content if path.suffix.lower() in each.suffixes]
    return next(iter([*by_name, *by_content]), None)


@cache
def by_suffix() -> dict[str, Format]:
    """The suffixes that belong to exactly one format, with that format."""
    claims: dict[str, list[Format]] = {}
    for each in formats().values():
        for suffix in each.suffixes:
            claims.setdefault(suffix, []).append(each)
    return {suffix: owners[0] for suffix, owners in claims.items() if len(owners) == 1}


def unknown(path: Path) -> str:
    """A description of the content of a file that no format recognises."""
    head = FileHead(path)
    if head.is_folder:
        members = ", ".join(sorted(head.members)[:5]) or "nothing"
        return f"a folder without a known model (it contains {members})"
    if head.start.startswith(b"PK\x03\x04"):
        return "a zip archive without a known model"
    if head.start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself has not been fetched ('git lfs pull')"
    if head.start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably from a failed download"
    return "of an unknown format"
