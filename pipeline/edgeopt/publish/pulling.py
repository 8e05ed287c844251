"""Pulling: find the release, pick what suits the device, fetch, verify, and only then put it in its place."""

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeopt.devices.device import Device, known_devices, load_device
from edgeopt.devices.lint import limits_of
from edgeopt.errors import CannotRunError, UsageError, VerificationError
from edgeopt.model import file_digest, files_of
from edgeopt.publish.contract import FILE, Contract, read_contract
from edgeopt.publish.oci import (
    KIT,
    MODEL,
    TITLE,
    Index,
    read_manifest,
)
from edgeopt.publish.remote import Remote
from edgeopt.publish.selecting import Choice, choose
from edgeopt.publish.transfer import Release
from edgeopt.publish.unpacking import check_name, unpack

ADDED = frozenset({FILE, "recipe.yaml", "provenance.intoto.json", "bom.cdx.json", "model.sig"})
"""Files of a bundle that its contract does not list."""
EXCHANGE = 2
"""``RENAME_EXCHANGE`` of renameat2(2)."""
OLD = ".old"
HERE = -100
"""``AT_FDCWD``: paths are relative to the working directory."""


class Pulled(NamedTuple):
    """A bundle in its place."""

    folder: Path
    contract: Contract
    choice: Choice
    signed: bool


def pick(
    index: Index, wanted: str, device: Device | None, variant: str | None, format_name: str | None
) -> Choice:
    """The bundle for a device; see ``choose``."""
    operators = None
    if device is not None and device.operators is not None:
        limits = limits_of(device.operators)
        if limits.missing == "error":
            operators = frozenset((*limits.operators, *limits.custom))
    return choose(index, wanted, device, variant=variant, format_name=format_name, operators=operators)


def place(
    release: Release,
    choice: Choice,
    library: Remote,
    out: Path,
    *,
    key: Path | None = None,
    replace: bool = False,
) -> Pulled:
    """Put a bundle that the library holds into ``out``: verified whole, or not at all.

    An earlier bundle in ``out`` is replaced in one step. A folder with anything else in it, or with a file
    that was changed since it was pulled, is refused, unless ``replace`` is set.

    Raises:
        UsageError: ``out`` holds something else.
        VerificationError: a digest or the signature is not right.
        CannotRunError: no space, or no permission.
    """
    if out.exists() and not replace and (own := _not_pulled(out)):
        raise UsageError(
            f"{out} holds what was not pulled, or was changed since: {own}",
            fix="give another folder with --out DIR, or let it be lost with --replace",
        )
    stage = out.parent / f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        stage.mkdir()
        contract = _unpacked(release, choice, library, stage)
        if key is not None:
            from edgeopt.publish.trust.signing import verify

            try:
                verify(stage, key)
            except VerificationError as error:  # speaks of a folder that nobody has seen
                message = error.message.replace(str(stage), str(release))
                raise VerificationError(message, fix=error.fix) from error
        _exchange(stage, out)
    except OSError as error:
        told = "no space left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise CannotRunError(
            f"cannot write {out}: {told}; nothing there was changed", fix="give another folder with --out DIR"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Pulled(out, contract, choice, key is not None)


def check_folder(folder: Path) -> Contract:
    """Hold every file of a bundle's folder against what its manifest.json says.

    Raises:
        VerificationError: a file is missing, changed, or was added; the first is named.
    """
    try:
        text = (folder / FILE).read_bytes()
    except OSError as error:
        raise VerificationError(f"{folder} is no bundle: it has no {FILE}", fix="pull it again") from error
    contract = read_contract(text, str(folder / FILE))
    for told in (contract.file, *contract.files):
        file = folder / told.name
        if not file.is_file():
            raise VerificationError(f"{folder}: {told.name} is missing", fix="pull it again")
        if file_digest(file) != told.sha256:
            raise VerificationError(f"{folder}: {told.name} is not as it was published", fix="pull it again")
    known = ADDED | {contract.file.name, *(told.name for told in contract.files)}
    for file in files_of(folder):
        if (name := file.relative_to(folder).as_posix()) not in known:
            raise VerificationError(f"{folder}: {name} was added", fix="move it elsewhere")
    return contract


def _unpacked(release: Release, choice: Choice, library: Remote, stage: Path) -> Contract:
    where = f"{release.name}@{release.version}"
    manifest = read_manifest(library.manifest(choice.descriptor.digest), where)
    layers = {layer.media_type: layer for layer in manifest.layers}
    if set(layers) != {MODEL, KIT} or len(manifest.layers) != 2:
        raise VerificationError(
            f"{where}: a bundle has a model and a kit, this has {len(manifest.layers)} layers"
        )
    kit = stage.with_name(f"{stage.name}.zip")
    try:
        library.fetch(layers[KIT], kit)
        unpack(kit, stage)
    finally:
        kit.unlink(missing_ok=True)
    name = check_name(layers[MODEL].annotations.get(TITLE, ""))
    if (stage / name).exists():
        raise VerificationError(f"{where}: its kit holds another {name}")
    library.fetch(layers[MODEL], stage / name)
    contract = check_folder(stage)
    if (contract.name, contract.version) != (release.name, release.version):
        told = f"{contract.name}@{contract.version}"
        raise VerificationError(f"{where} holds a bundle of {told}: it was moved there, or tampered with")
    facts = choice.facts
    if (contract.variant, contract.format, contract.device) != (facts.variant, facts.format, facts.device):
        raise VerificationError(f"{where}: the bundle is not the one that its index describes")
    return contract


def _not_pulled(folder: Path) -> str:
    """The first file of a folder that is not as a pull left it; empty if there is none."""
    if not folder.is_dir() or folder.is_symlink():
        return folder.name
    there = {file.relative_to(folder).as_posix(): file for file in files_of(folder)}
    if not there:
        return ""
    try:
        contract = read_contract((folder / FILE).read_bytes(), str(folder))
        known = {told.name: told.sha256 for told in (contract.file, *contract.files)}
    except (OSError, VerificationError):
        return min(there)
    for name, file in sorted(there.items()):
        if name not in ADDED and (name not in known or file_digest(file) != known[name]):
            return name
    return ""


def _sweep(out: Path) -> None:
    """Remove what processes that are gone were putting together for this place."""
    for left in sorted(out.parent.glob(f".{out.name}.*-????????*")):
        pid = left.name.removeprefix(f".{out.name}.").partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            if left.suffix == OLD and not out.exists():
                left.rename(out)  # it was killed between two renames: what was there comes back
                continue
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True) if left.is_file() else None


def _exchange(stage: Path, out: Path) -> None:
    """Put ``stage`` in the place of ``out``, which is what it was or what it shall be at every moment."""
    if not out.exists():
        stage.rename(out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is not None and swap(HERE, os.fsencode(stage), HERE, os.fsencode(out), EXCHANGE) == 0:
        return  # what was there before is now the stage, and is removed with it
    # A file system or kernel that cannot exchange: for a moment there is nothing, never half of something.
    old = stage.with_name(f"{stage.name}{OLD}")
    out.rename(old)
    stage.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def described(device: str, folders: Sequence[Path]) -> tuple[str, Device | None]:
    """The name of a device, and what its file says; None for one that only the release knows.

    Raises:
        UsageError: its file is wrong, or it is a path and there is no such file.
    """
    is_file = device.endswith((".yaml", ".yml")) or os.sep in device
    if not is_file and device not in known_devices(folders):
        return device, None
    found = load_device(device, folders)
    return found.name, found
