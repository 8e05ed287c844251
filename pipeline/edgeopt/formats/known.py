"""Which formats there are, and which one a file has: told by its content, for names lie more often."""

from functools import cache
from pathlib import Path

from edgeopt.config import registry
from edgeopt.config.files import content_digest, files_of
from edgeopt.model import Model
from edgeopt.plugin.format import FileHead, Format


@cache
def formats() -> dict[str, Format]:
    """All formats by their names, those of every installed distribution included, the most usual first.

    Stages may have formats between them that nobody else needs to know: those are not here.
    """
    every = [kind() for kind in registry.plugins(Format).values()]
    return {each.name: each for each in sorted(every, key=lambda each: (each.order, each.name))}


def format_named(name: str) -> Format:
    """The format with this name.

    Raises:
        UsageError: there is none.
    """
    return formats().get(name) or registry.find(Format, name)()


def model_files(model: Model) -> tuple[Path, ...]:
    """All files of a model, the main one first."""
    kind = formats().get(model.format)
    return kind.files(model.path) if kind is not None else tuple(files_of(model.path))


def model_digest(model: Model) -> str:
    """sha256 of the content of all files of a model, wherever they lie."""
    kind = formats().get(model.format)
    return kind.digest(model.path) if kind is not None else content_digest(model.path)


@cache
def artifact_formats() -> tuple[str, ...]:
    """Names of the formats that a recipe may ask for."""
    return tuple(name for name, each in formats().items() if each.artifact)


def factory_format() -> str:
    """The name of the format that ``model: {factory: ...}`` in a recipe stands for."""
    return next(name for name, each in formats().items() if each.from_factory)


def identify(path: Path) -> Format | None:
    """The format of the file or folder at ``path``, by its content; None where nothing fits.

    Where several formats claim a file, its name decides.

    Raises:
        Exception: one of ``bounded.MALFORMED``, when an archive is damaged.
        OSError: it cannot be read.
    """
    head = FileHead(path)
    found = [each for each in formats().values() if each.recognises(head)]
    named = [each for each in found if path.suffix.lower() in each.suffixes]
    return next(iter([*named, *found]), None)


@cache
def by_suffix() -> dict[str, Format]:
    """What a file must be that is named so: suffixes that belong to one format alone."""
    claims: dict[str, list[Format]] = {}
    for each in formats().values():
        for suffix in each.suffixes:
            claims.setdefault(suffix, []).append(each)
    return {suffix: owners[0] for suffix, owners in claims.items() if len(owners) == 1}


def unknown(path: Path) -> str:
    """What a file is in which no format was recognised, as far as it shows."""
    head = FileHead(path)
    if head.is_folder:
        held = ", ".join(sorted(head.members)[:5]) or "nothing"
        return f"a folder that holds no model known here (it holds {held})"
    if head.start.startswith(b"PK\x03\x04"):
        return "a zip archive that holds no known model"
    if head.start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, the file itself was never fetched ('git lfs pull')"
    if head.start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "a web page, so the download went wrong"
    return "nothing that is known here"
