"""Zip archives of bundles: packed reproducibly, unpacked without trusting their content.

Unpacking accepts little more than the output of `pack`. A member is refused, before it is written, if it
would be outside the folder, if its name denotes another file on another file system, or if its size is out
of proportion to the archive. Declared sizes are only a first check: the limits apply to the unpacked bytes.

Source: PKWARE's APPNOTE 6.3.10.
"""

import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from edgeopt.config.files import CHUNK
from edgeopt.config.units import show_bytes
from edgeopt.errors import UsageError, VerificationError

SMALL_BUDGET: Final = 64 << 20
"""Bytes that any archive may unpack to; beyond them, `RATIO` applies."""
RATIO: Final = 200
"""Largest ratio of unpacked to packed bytes: C source has 3 to 10, deflate reaches 1032 on zeros."""
LONGEST_NAME: Final = 255
DIRECTORY_BYTES: Final = 1024
"""Limit of the central directory, in bytes per member."""

_RESERVED: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE
)
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]')
_END: Final = struct.Struct("<4s4H2IH")
_SPECIAL_FLAGS: Final = {0x1: "encrypted", 0x20: "a patch", 0x40: "encrypted", 0x2000: "encrypted"}
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError)
"""Raised by zipfile on damaged archives: RuntimeError for unknown methods, ValueError for bad names."""


def check_name(name: str) -> str:
    """Return a file name if it is plain and denotes the same file on every system.

    Raises:
        VerificationError: it has a separator, or is reserved or invalid on some system.
    """
    why = _objection(name)
    if why:
        raise VerificationError(f"{name!r} is not an acceptable file name: {why}")
    return name


def check_path(path: str) -> Path:
    """Return a relative path, with ``/``, if `check_name` accepts all its parts.

    Raises:
        VerificationError: a part is refused.
    """
    return Path(*(check_name(part) for part in path.split("/")))


def unpack(archive: Path, folder: Path, *, largest: int = 4 << 30, files: int = 10_000) -> list[str]:
    """Unpack an archive into an empty or new folder; return the names of its files.

    Memory does not grow with the content. On failure the folder is left as it was.

    Args:
        archive: a zip archive that may be hostile.
        folder: receives the files, with the permissions of new files.
        largest: limit of the total size of the files, in bytes.
        files: limit of the number of members.

    Raises:
        VerificationError: a member is refused; the error names it and the reason.
        UsageError: the folder is not empty.
        OSError: the folder cannot be written.
    """
    with ExitStack() as undo:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UsageError(f"{folder} is not an empty folder", fix="choose another one, or remove it")
        if not folder.exists():
            folder.mkdir(parents=True)
            undo.callback(folder.rmdir)
        try:
            _check_end(archive, files)
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
                _check_members(archive, members, largest, files)
                budget = _budget(archive, largest)
                for member in members:
                    budget -= _extract(opened, member, folder, budget, undo)
        except _BROKEN as error:
            raise _refusal(archive, f"damaged, or not a zip archive: {error}") from error
        undo.pop_all()
    return [member.filename for member in members if not member.is_dir()]


def pack(folder: Path, archive: Path, exclude: Collection[str] = ()) -> None:
    """Write the files of a folder to a zip archive: equal files give equal bytes.

    Names are sorted, times and permissions fixed. (Another version of zlib may produce other bytes.)

    Args:
        folder: contains files and folders only.
        archive: the output; replaced if it exists.
        exclude: names relative to the folder, with ``/``.

    Raises:
        UsageError: the folder has a link, or a name that `unpack` would refuse.
    """
    present = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*"))
    chosen = [(name, path) for name, path in present if name not in exclude]
    special = [name for name, path in chosen if path.is_symlink() or not (path.is_file() or path.is_dir())]
    if special:
        raise UsageError(f"{folder / special[0]} cannot be packed: it is a link or a special file")
    plain = [(name, path) for name, path in chosen if path.is_file()]
    try:
        _check_names(folder, [name for name, _ in plain])
        with zipfile.ZipFile(archive, "w", allowZip64=False) as output:
            for name, path in plain:
                entry = zipfile.ZipInfo(name)  # dated 1980-01-01, the first day of the format
                entry.create_system = 3  # Unix, so that the permissions below apply
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, output.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK)
    except (VerificationError, zipfile.LargeZipFile) as error:
        archive.unlink(missing_ok=True)
        raise UsageError(f"{folder} cannot be packed: {error}") from error


def _refusal(archive: Path, why: str) -> VerificationError:
    return VerificationError(
        f"{archive.name} is refused: {why}", fix="nothing was kept; ask the publisher for an intact archive"
    )


def _objection(part: str) -> str:
    """The reason why a part of a path is refused; empty if it is accepted."""
    if part in ("", ".", ".."):
        return "it is not a file name"
    if match := _FORBIDDEN.search(part):
        return f"it contains {match[0]!r}"
    if _RESERVED.fullmatch(part):
        return "it is reserved on Windows"
    if part[-1] in ". ":
        return "Windows removes its last character"
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return f"it is longer than {LONGEST_NAME} bytes" if size > LONGEST_NAME else ""


def _check_names(archive: Path, names: Iterable[str]) -> None:
    """Refuse names that are unsafe, or collide on some file system, such as ``a`` and ``A/b``."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        parts = name.removesuffix("/").split("/")
        for part in parts:
            if why := _objection(part):
                raise _refusal(archive, f"member {name!r}: {why}")
        for depth in range(1, len(parts) + 1):
            path, is_file = "/".join(parts[:depth]), depth == len(parts) and not name.endswith("/")
            key = _folded(path)
            same = files.get(key) or folders.get(key, "")
            if same and (is_file or key in files or same != path):
                raise _refusal(archive, f"member {name!r} is the same file as {same!r} on some systems")
            (files if is_file else folders)[key] = path


def _folded(path: str) -> str:
    """A key that is equal for paths that differ only in case or Unicode normalization."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _check_end(archive: Path, files: int) -> None:
    """Check the end record, so that zipfile does not read a directory of unlimited size.

    Raises:
        VerificationError: it is unlike that of `pack`: it has a comment, or bytes outside the members.
    """
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - _END.size - 20))
        tail = file.read()
    if len(tail) < _END.size:
        raise _refusal(archive, "damaged, or not a zip archive: it is too short")
    mark, *_, length, offset, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\5\6" or comment:
        raise _refusal(archive, "damaged, or not a zip archive: it has no valid end record")
    if tail.startswith(b"PK\6\7"):
        raise _refusal(archive, "it uses ZIP64, which bundles never need")
    if offset + length != size - _END.size:
        raise _refusal(archive, "it contains bytes outside its members")
    if length > files * DIRECTORY_BYTES:
        raise _refusal(archive, f"it has more than the {files:,} members allowed")


def _check_members(archive: Path, members: list[zipfile.ZipInfo], largest: int, files: int) -> None:
    """Check names, types, flags and declared sizes in the directory."""
    if len(members) > files:
        raise _refusal(archive, f"it has {len(members):,} members, more than the {files:,} allowed")
    _check_names(archive, [member.orig_filename for member in members])
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG) or (
            member.is_dir() and member.file_size
        ):
            what = "a link" if kind == stat.S_IFLNK else "neither a file nor a folder"
            raise _refusal(archive, f"member {member.filename!r} is {what}")
        for flag, what in _SPECIAL_FLAGS.items():
            if member.flag_bits & flag:
                raise _refusal(archive, f"member {member.filename!r} is {what}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refusal(
                archive, f"member {member.filename!r} is compressed with a method other than deflate"
            )
    total, allowed = sum(member.file_size for member in members), _budget(archive, largest)
    if total > allowed:
        raise _refusal(archive, f"it would unpack to {show_bytes(total)}, more than {show_bytes(allowed)}")


def _budget(archive: Path, largest: int) -> int:
    """Bytes that an archive of this size may unpack to."""
    return min(largest, max(SMALL_BUDGET, RATIO * archive.stat().st_size))


def _extract(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, budget: int, undo: ExitStack
) -> int:
    """Write one member; return the number of bytes written."""
    archive = Path(str(opened.filename))
    target = folder.joinpath(*member.filename.split("/"))
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        _make(folder / parent, undo)
    if member.is_dir():
        _make(target, undo)
        return 0
    declared, written = member.file_size, 0
    member.file_size = 1 << 62  # zipfile would stop at the declared size and hide the rest
    with opened.open(member) as source, target.open("xb") as file:
        undo.callback(target.unlink)
        while piece := source.read(CHUNK):
            written += len(piece)
            if written > declared or written > budget:
                raise _refusal(archive, f"member {member.filename!r} is larger than it declares")
            file.write(piece)
    if written != declared:
        raise _refusal(archive, f"member {member.filename!r} is smaller than it declares")
    return written


def _make(folder: Path, undo: ExitStack) -> None:
    if not folder.is_dir():
        folder.mkdir()
        undo.callback(folder.rmdir)
