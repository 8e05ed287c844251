"""A system for programs of another processor, in one folder: qemu, Debian's libraries and Python, wheels.

Nothing is installed on this machine and no root rights are needed: apt works on a state of its own,
and its packages are unpacked, never configured. apt checks their signatures.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import unquote

from edgeopt.devices.environments import HOME_VARIABLE, MARKER, environment_folder
from edgeopt.errors import DeviceError, UsageError

MIRROR = "http://deb.debian.org/debian"
RELEASE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURE = "arm64"
WHEELS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")
PYTHON = "3.11"
EMULATOR = "qemu-aarch64-static"
EMULATOR_PACKAGE = "qemu-user-static"
PACKAGES = (
    "gcc-12-base libbz2-1.0 libc6 libexpat1 libffi8 libgcc-s1 liblzma5 libpython3.11-minimal "
    "libpython3.11-stdlib libssl3 libstdc++6 python3.11-minimal zlib1g"
).split()
"""What Python 3.11 and compiled wheels load; not all that its Debian package asks for."""
SECONDS = 900

TRY = """
import importlib, importlib.metadata, json, os, platform, sys
folder = sys.argv[1]
for name in os.listdir(folder) if os.path.isdir(folder) else []:
    if os.path.isfile(os.path.join(folder, name, "__init__.py")):
        importlib.import_module(name)
found = {"python": platform.python_version()}
for distribution in importlib.metadata.distributions(path=[folder]):
    found[distribution.metadata["Name"]] = distribution.version
print(json.dumps(found))
"""
"""Imports every package there is, and prints the versions."""

_MIRROR = re.compile(r"https?://[^\s\"\[\]]+")


class Sysroot(NamedTuple):
    """The folder of an emulated system."""

    folder: Path

    @property
    def emulator(self) -> Path:
        return self.folder / EMULATOR

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def command(self) -> list[str]:
        """Starts its Python.

        ``-S``: a folder that its root does not have is looked up on this machine, and ``site`` would
        find this machine's packages there.
        """
        python = self.root / "usr/bin" / f"python{PYTHON}"
        return [str(self.emulator), "-L", str(self.root), str(python), "-s", "-S"]

    def environment(self, cpu: str) -> dict[str, str]:
        """Its Python's own variables: bytecode, too, must stay out of this machine's folders."""
        return {
            "PYTHONPATH": str(self.packages),
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "PYTHONDONTWRITEBYTECODE": "",
            "QEMU_CPU": cpu,
        }


def find_sysroot(name: str) -> Sysroot:
    """The emulated system of an environment.

    Raises:
        DeviceError: it has not been set up, or not completely.
    """
    sysroot = Sysroot(environment_folder(name))
    if not (sysroot.folder / MARKER).is_file():
        raise DeviceError(
            f"device environment {name!r} is not set up", fix=f"run: edgeopt devices setup {name}"
        )
    return sysroot


def setup_sysroot(name: str, requirements: Sequence[str], mirror: str, say: Callable[[str], None]) -> None:
    """Make the emulated system ``name`` with ``requirements`` as wheels; nothing to do if it is there.

    Raises:
        UsageError: ``mirror`` is no address of a Debian mirror.
        DeviceError: a tool is missing, or the packages cannot be had.
    """
    if not _MIRROR.fullmatch(mirror):
        raise UsageError(f"{mirror!r} is no address of a Debian mirror", fix=f"such as {MIRROR}")
    sysroot = Sysroot(environment_folder(name))
    folder = sysroot.folder
    wanted = {"requirements": sorted(requirements), "release": RELEASE, "packages": PACKAGES}
    if _recorded(folder, "wanted") == wanted:
        say(f"{name}: already set up in {folder}")
        return
    _check_tools()
    say(
        f"{name}: making {folder}: {len(PACKAGES)} {ARCHITECTURE} packages of Debian {RELEASE} and "
        f"{EMULATOR_PACKAGE} from {mirror}, then {', '.join(requirements) or 'no wheels'}; "
        "about 90 MB are downloaded, nothing is installed on this machine"
    )
    try:
        # pycache and the marker hold the folder's own path, so it is made where it will stay.
        if folder.exists():
            shutil.rmtree(folder)
        sysroot.root.mkdir(parents=True)
    except OSError as error:
        raise DeviceError(
            f"cannot make {folder}: {error}", fix=f"choose a writable place with {HOME_VARIABLE}"
        ) from error
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        found = _unpack_debian(sysroot, mirror, Path(scratch), say)
    if requirements:
        say(f"{name}: unpacking the wheels of {', '.join(requirements)}")
        _install_wheels(sysroot, requirements)
    say(f"{name}: trying it")
    record = {"wanted": wanted, "debian": found, "python": _try(sysroot)}
    part = folder / f"{MARKER}.part"
    part.write_text(json.dumps(record, indent=1), "utf-8")
    os.replace(part, folder / MARKER)
    say(f"{name}: ready")


def unpack(archive: IO[bytes], root: Path) -> None:
    """Unpack a tar stream below ``root``; links into the system are made to point below ``root``.

    Ownership and special rights are not taken over.

    Raises:
        DeviceError: an entry would come to lie outside, or is no file, folder or link.
    """
    top = Path(os.path.realpath(root))
    with tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            relative = PurePosixPath(member.name)
            parts = [part for part in relative.parts if part not in ("/", ".")]
            if not parts:
                continue
            # Links unpacked before may lead elsewhere, hence the real path.
            parent = Path(os.path.realpath(top.joinpath(*parts[:-1])))
            target = parent / parts[-1]
            if ".." in parts or not parent.is_relative_to(top):
                raise DeviceError(f"the package's entry {member.name!r} would lie outside {root}")
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            content = members.extractfile(member) if member.isreg() else None
            if content is not None:
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                target.chmod(0o755 if member.mode & 0o111 else 0o644)
            elif member.issym():
                absolute = member.linkname.startswith("/")
                pointed = Path(f"{top}{member.linkname}") if absolute else parent / member.linkname
                if not Path(os.path.normpath(pointed)).is_relative_to(top):
                    raise DeviceError(f"the package's link {member.name!r} would lead outside {root}")
                target.symlink_to(os.path.relpath(pointed, parent))
            elif member.islnk():
                first = Path(os.path.realpath(top / member.linkname.lstrip("/")))
                if not first.is_relative_to(top) or not first.is_file():
                    raise DeviceError(f"the package's link {member.name!r} would lead outside {root}")
                os.link(first, target)
            else:
                raise DeviceError(f"the package's entry {member.name!r} is no file, folder or link")


def _check_tools() -> None:
    missing = [tool for tool in ("apt-get", "apt-config", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DeviceError(
            f"{', '.join(missing)} is not on this machine: the packages come through Debian's tools",
            fix="set it up on Debian or Ubuntu",
        )
    if not KEYRING.is_file():
        raise DeviceError(
            f"{KEYRING} is missing: packages cannot be verified",
            fix="install it: apt install debian-archive-keyring",
        )


def _unpack_debian(
    sysroot: Sysroot, mirror: str, scratch: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Download and unpack; returns package -> version."""
    environment = _private_apt(mirror, scratch)
    say(f"{sysroot.folder.name}: reading the package lists of {mirror}")
    _carry_out(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], scratch, environment)
    debs = scratch / "debs"
    debs.mkdir()
    say(f"{sysroot.folder.name}: downloading {len(PACKAGES) + 1} packages")
    emulator = f"{EMULATOR_PACKAGE}:{_host_architecture()}"
    _carry_out(["apt-get", "-q", "download", *PACKAGES, emulator], debs, environment)
    found = {}
    for deb in sorted(debs.glob("*.deb")):
        package, version, _ = unquote(deb.stem).split("_")
        found[package] = version
        root = scratch / "emulator" if package == EMULATOR_PACKAGE else sysroot.root
        root.mkdir(exist_ok=True)
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as reading:
            assert reading.stdout is not None  # a pipe was asked for
            try:
                unpack(reading.stdout, root)
            except tarfile.TarError as error:
                raise DeviceError(f"cannot unpack {deb.name}: {error}", fix="set it up again") from error
            finally:
                reading.stdout.close()
    absent = sorted({*PACKAGES, EMULATOR_PACKAGE} - set(found))
    if absent:
        raise DeviceError(f"apt did not bring {', '.join(absent)}", fix="set it up again")
    # The package brings emulators of thirty processors, some 300 MB.
    os.replace(scratch / "emulator/usr/bin" / EMULATOR, sysroot.emulator)
    return found


def _private_apt(mirror: str, scratch: Path) -> dict[str, str]:
    """The variables of an apt that keeps everything below ``scratch`` and knows of this mirror alone.

    Of the machine's own configuration only what says how to download is taken over, such as a proxy.
    Hooks that other programs put there are not run.
    """
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main\n", "utf-8")
    told = _carry_out(["apt-config", "dump"], scratch, dict(os.environ))
    architectures = "; ".join(f'"{name}"' for name in dict.fromkeys((ARCHITECTURE, _host_architecture())))
    lines = [
        *(line for line in told.splitlines() if line.startswith("Acquire::")),
        'Acquire::Languages "none";',
        f'Dir::State "{scratch}/state";',
        f'Dir::State::status "{scratch}/status";',
        f'Dir::Cache "{scratch}/cache";',
        f'Dir::Etc::sourcelist "{scratch}/sources.list";',
        *(f'Dir::Etc::{part} "-";' for part in ("main", "parts", "sourceparts", "preferences")),
        'Dir::Etc::preferencesparts "-";',
        f'APT::Architecture "{ARCHITECTURE}";',
        f"APT::Architectures {{ {architectures}; }};",
        # The scratch folder is the user's own: apt's own user could not write there.
        'APT::Sandbox::User "root";',
    ]
    (scratch / "apt.conf").write_text("\n".join(lines) + "\n", "utf-8")
    return os.environ | {
        "APT_CONFIG": str(scratch / "apt.conf"),
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }


def _host_architecture() -> str:
    done = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    return done.stdout.strip() or "amd64"


def _install_wheels(sysroot: Sysroot, requirements: Sequence[str]) -> None:
    platforms = [option for tag in WHEELS for option in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--python-version", PYTHON]
    command += ["--implementation", "cp", *platforms, "--target", str(sysroot.packages), *requirements]
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    _carry_out(command, sysroot.folder, variables)


def _try(sysroot: Sysroot) -> dict[str, str]:
    """Import every package under the emulator; returns the versions of Python and of all distributions."""
    variables = os.environ | sysroot.environment("max")
    told = _carry_out([*sysroot.command, "-c", TRY, str(sysroot.packages)], sysroot.folder, variables)
    versions = json.loads(told)
    return {str(name): str(version) for name, version in versions.items()}


def _recorded(folder: Path, key: str) -> object:
    try:
        return json.loads((folder / MARKER).read_text("utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None


def _carry_out(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """stdout of a command that must succeed.

    Raises:
        DeviceError: with its last words.
    """
    what = " ".join(command[:3])
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{what} did not end within {SECONDS} s", fix="set it up again") from error
    except OSError as error:
        raise DeviceError(f"cannot start {what}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DeviceError(
            f"{what} failed: {lines[-1].strip()[:300] if lines else f'exit code {done.returncode}'}",
            fix="it needs a Debian mirror and the index that pip is set up for; then set it up again",
        )
    return done.stdout
