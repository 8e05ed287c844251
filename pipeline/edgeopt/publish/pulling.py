"""Pulling: select the bundle for a device, fetch it, verify it, and only then move it into place."""

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from edgeopt.config.files import file_digest, files_of
from edgeopt.config.scratch import scratch_folder, sweep
from edgeopt.devices.device import Device, known_devices, load_device
from edgeopt.devices.tables import limits_of
from edgeopt.errors import CannotRunError, UsageError, VerificationError
from edgeopt.publish.contract import FILE, MICROCONTROLLERS, Contract, read_contract
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
from edgeopt.publish.unpacking import check_path, unpack

ADDED = frozenset({FILE, "recipe.yaml", "provenance.intoto.json", "bom.cdx.json", "model.sig"})
"""Files of a bundle that its contract does not list."""
EXCHANGE = 2
"""``RENAME_EXCHANGE`` of renameat2(2)."""
EXAMPLE = "example"
FIRMWARE = "firmware"
COMPILED = (EXAMPLE, FIRMWARE)
"""Folders of a bundle that may be compiled in place."""
OUTPUTS = frozenset({".o", ".obj", ".a", ".d", ".elf", ".map"})
"""Suffixes of what a compiler leaves next to its sources."""
BUILD = "build"
"""A folder in those for what a build leaves. It may contain the user's own files, too."""
IMAGES = frozenset({".bin", ".hex"})
"""Suffixes of further outputs in such a folder; elsewhere they may be data."""
CMAKE = frozenset({"CMakeFiles", "compile_commands.json"})
"""Folders and files of CMake in such a folder."""
GENERATED = (
    b"\x7fELF",
    b"# CMAKE generated file",
    b"# This is the CMakeCache file",
    b"# Install script for directory",
    b"# ninja",
)
"""Beginnings of the other outputs in such a folder: programs, and files of CMake and Ninja."""
OLD = "old"
"""Name of a replaced folder until it is removed."""
HERE = -100
"""``AT_FDCWD``: paths are relative to the working directory."""


class Pulled(NamedTuple):
    """An installed bundle."""

    folder: Path
    contract: Contract
    choice: Choice
    signed: bool
    removed: tuple[str, ...] = ()
    """Build outputs of the replaced folder."""


def pick(
    index: Index, device_name: str, device: Device | None, variant: str | None, format_name: str | None
) -> Choice:
    """Select the bundle for a device; see ``choose``."""
    operators, compiles = None, False
    if device is not None and device.operators is not None:
        limits = limits_of(device.operators)
        compiles = limits.compiled
        if limits.missing == "error":
            operators = frozenset((*limits.operators, *limits.custom))
    return choose(
        index,
        device_name,
        device,
        variant=variant,
        format_name=format_name,
        operators=operators,
        compiles=compiles,
    )


def directions(pulled: Pulled, name: str, device: Device | None) -> list[str]:
    """What to use of a bundle on the device called ``name``, and what was made for another one, in words."""
    contract = pulled.contract
    measured = contract.runtime.partition(" ")[0]
    # Without a description, the device is the one that was measured.
    runtime = device.runtimes.get(contract.format, "") if device is not None else measured
    kit = pulled.folder / FIRMWARE
    example = pulled.folder / EXAMPLE / ("" if runtime == measured else runtime)
    micro = runtime in MICROCONTROLLERS
    lines = []
    if micro and kit.is_dir():
        lines.append(f"the firmware kit: {kit} (compile, link, test: README.md there)")
    elif runtime and not micro and example.is_dir():
        lines.append(f"the example for {name}: {example}")
    if contract.device == name:
        return lines
    if micro and kit.is_dir() and runtime == measured:
        lines.append(
            f"kit and golden vectors of {contract.device} are valid for {name}: same kernels ({runtime})"
        )
        lines.append(f"next: edgeopt lint {pulled.folder / contract.file.name} --device {name}")
    elif micro and not kit.is_dir():
        lines.append(
            f"made for {contract.device}, without a firmware kit: to get one for {name}, with its golden "
            "vectors, add it to the recipe's devices and publish again"
        )
    else:
        what = "the firmware kit and golden vectors" if micro else "the golden vectors"
        lines.append(
            f"{what} were made for {contract.device}: to get those for {name}, add it to the recipe's "
            "devices and publish again"
        )
    return lines


def place(
    release: Release,
    choice: Choice,
    library: Remote,
    out: Path,
    *,
    key: Path | None = None,
    replace: bool = False,
) -> Pulled:
    """Install a bundle of the library in ``out``: completely verified, or not at all.

    An earlier bundle in ``out`` is replaced atomically. A folder with any other file, or with a file modified
    since it was pulled, is refused unless ``replace`` is set.

    Raises:
        UsageError: ``out`` contains other or modified files.
        VerificationError: a digest or the signature does not match.
        CannotRunError: no space, or no permission.
    """
    foreign, outputs = _unpublished_files(out) if out.exists() else ("", ())
    if foreign and not replace:
        raise UsageError(
            f"{out} contains a file that was not pulled, or was modified since: {foreign}",
            fix="choose another folder with --out DIR, or discard the file with --replace",
        )
    prefix = f".{out.name}."
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent, prefix, rescue=partial(_restore, out))
        with scratch_folder(out.parent, prefix) as scratch:
            stage = scratch / "new"
            stage.mkdir()
            contract = _unpacked(release, choice, library, stage)
            if key is not None:
                from edgeopt.publish.trust.signing import verify

                try:
                    verify(stage, key)
                except VerificationError as error:  # the user does not know the staging folder
                    message = error.message.replace(str(stage), str(release))
                    raise VerificationError(message, fix=error.fix) from error
            _exchange(stage, out)
    except OSError as error:
        reason = "no space left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise CannotRunError(
            f"cannot write {out}: {reason}; nothing was changed", fix="choose another folder with --out DIR"
        ) from error
    return Pulled(out, contract, choice, key is not None, outputs)


def check_folder(folder: Path) -> Contract:
    """Compare every file of a bundle's folder with its manifest.json.

    Raises:
        VerificationError: a file is missing, modified or added; the error names the first.
    """
    try:
        text = (folder / FILE).read_bytes()
    except OSError as error:
        raise VerificationError(f"{folder} is not a bundle: it has no {FILE}", fix="pull it again") from error
    contract = read_contract(text, str(folder / FILE))
    for entry in (*contract.model_files, *contract.files):
        file = folder / entry.name
        if not file.is_file():
            raise VerificationError(f"{folder}: {entry.name} is missing", fix="pull it again")
        if file_digest(file) != entry.sha256:
            raise VerificationError(
                f"{folder}: {entry.name} differs from the published file", fix="pull it again"
            )
    known = ADDED | {entry.name for entry in (*contract.model_files, *contract.files)}
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        if name not in known and not _is_build_output(folder, name):
            raise VerificationError(f"{folder}: {name} is not part of the bundle", fix="move it elsewhere")
    return contract


def _unpacked(release: Release, choice: Choice, library: Remote, stage: Path) -> Contract:
    """Unpack a bundle to the staging folder; check every file and the identity of the bundle."""
    where = f"{release.name}@{release.version}"
    manifest = read_manifest(library.manifest(choice.descriptor.digest), where)
    models = {
        layer.annotations.get(TITLE, ""): layer for layer in manifest.layers if layer.media_type == MODEL
    }
    kits = [layer for layer in manifest.layers if layer.media_type == KIT]
    if not models or len(kits) != 1 or len(models) + 1 != len(manifest.layers):
        raise VerificationError(
            f"{where}: expected the files of a model and one kit, found {len(manifest.layers)} layers"
        )
    kit = stage.with_name(f"{stage.name}.zip")
    try:
        library.fetch(kits[0], kit)
        unpack(kit, stage)
    finally:
        kit.unlink(missing_ok=True)
    for name, layer in models.items():
        target = stage / check_path(name)
        if target.exists():
            raise VerificationError(f"{where}: its kit contains another {name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        library.fetch(layer, target)
    contract = check_folder(stage)
    if (contract.name, contract.version) != (release.name, release.version):
        declared = f"{contract.name}@{contract.version}"
        raise VerificationError(f"{where} contains a bundle of {declared}: it was moved or tampered with")
    facts = choice.facts
    if (contract.variant, contract.format, contract.device) != (facts.variant, facts.format, facts.device):
        raise VerificationError(f"{where}: the bundle does not match its description in the index")
    return contract


def _unpublished_files(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The first file that was not pulled or was modified since (empty: none), and the build outputs."""
    if not folder.is_dir() or folder.is_symlink():
        return folder.name, ()
    present = {file.relative_to(folder).as_posix(): file for file in files_of(folder)}
    if not present:
        return "", ()
    try:
        contract = read_contract((folder / FILE).read_bytes(), str(folder))
        known = {entry.name: entry.sha256 for entry in (*contract.model_files, *contract.files)}
    except (OSError, VerificationError):
        return min(present), ()
    added = sorted(present.keys() - known.keys() - ADDED)
    outputs = tuple(name for name in added if _is_build_output(folder, name))
    modified = (name for name in known if name in present and file_digest(present[name]) != known[name])
    return min((*(set(added) - set(outputs)), *modified), default=""), outputs


def check_unbuilt(folder: Path) -> None:
    """Refuse to verify the signature of a folder that was compiled in place: it covers every file.

    Raises:
        VerificationError: a build output lies in the folder, which ``check_folder`` accepts.
    """
    if outputs := _unpublished_files(folder)[1]:
        raise VerificationError(
            f"{folder} contains build outputs, such as {outputs[0]}, and its signature covers every file",
            fix="build in another folder; delete the outputs, or pull again, which removes them",
        )


def _is_build_output(folder: Path, name: str) -> bool:
    """Whether a file of a pulled folder, by its relative path, comes from compiling the folder in place."""
    top, *rest = PurePosixPath(name).parts
    suffix = PurePosixPath(name).suffix
    if top not in COMPILED or suffix in OUTPUTS:
        return top in COMPILED
    if rest[:1] != [BUILD]:
        return False
    if suffix in IMAGES or not CMAKE.isdisjoint(rest):
        return True
    with (folder / name).open("rb") as file:
        return file.read(64).startswith(GENERATED)


def _restore(out: Path, scratch: Path) -> None:
    """Restore the earlier folder of a process that was killed between the two renames of ``_exchange``."""
    if (scratch / OLD).is_dir() and not out.exists():
        (scratch / OLD).rename(out)


def _exchange(stage: Path, out: Path) -> None:
    """Replace ``out`` with ``stage`` atomically, so that readers see the old or the new folder."""
    if not out.exists():
        stage.rename(out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is not None and swap(HERE, os.fsencode(stage), HERE, os.fsencode(out), EXCHANGE) == 0:
        return  # the old folder is now the stage, which the caller removes
    # Without RENAME_EXCHANGE the folder is missing for a moment, but never incomplete.
    out.rename(stage.with_name(OLD))
    stage.rename(out)


def described(device: str, folders: Sequence[Path]) -> tuple[str, Device | None]:
    """The name of a device and its description; None for a device that only the release mentions.

    Raises:
        UsageError: its file is invalid, or ``device`` is the path of a missing file.
    """
    is_file = device.endswith((".yaml", ".yml")) or os.sep in device
    if not is_file and device not in known_devices(folders):
        return device, None
    found = load_device(device, folders)
    return found.name, found
