"""A system for another processor in one folder: qemu, Debian's libraries and Python, wheels.

Nothing is installed on this machine and no root privileges are needed: apt uses a separate state
directory, and its packages are unpacked, never configured. apt checks their signatures.
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

from edgeopt.config.files import write_text
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
"""Packages that Python 3.11 and compiled wheels load; fewer than its Debian package depends on."""
SECONDS = 900

TRY = """
import importlib, importlib.metadata, json, os, platform, sys
folder = sys.argv[1]
for name in os.listdir(folder) if os.path.isdir(folder) else []:
    if os.path.isfile(os.path.join(folder, name, "__init__.py")):
        importlib.import_module(name)
versions = {"python": platform.python_version()}
for distribution in importlib.metadata.distributions(path=[folder]):
    versions[distribution.metadata["Name"]] = distribution.version
print(json.dumps(versions))
"""
"""Imports every installed package, and prints the versions."""

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
        """Command that starts its Python.

        ``-S``: qemu looks up a path that is missing below the root on this machine, where ``site`` would
        find this machine's packages.
        """
        python = self.root / "usr/bin" / f"python{PYTHON}"
        return [str(self.emulator), "-L", str(self.root), str(python), "-s", "-S"]

    def environment(self, cpu: str) -> dict[str, str]:
        """Variables of its Python: bytecode, too, must stay out of this machine's folders."""
        return {
            "PYTHONPATH": str(self.packages),
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "PYTHONDONTWRITEBYTECODE": "",
            "QEMU_CPU": cpu,
        }


def find_sysroot(name: str) -> Sysroot:
    """The emulated system of an environment.

    Raises:
        DeviceError: the system is not set up, or only partly.
    """
    sysroot = Sysroot(environment_folder(name))
    if not (sysroot.folder / MARKER).is_file():
        raise DeviceError(
            f"device environment {name!r} is not set up", fix=f"run: edgeopt devices setup {name}"
        )
    return sysroot


def setup_sysroot(name: str, requirements: Sequence[str], mirror: str, say: Callable[[str], None]) -> None:
    """Create the emulated system ``name`` with ``requirements`` as wheels; a no-op if it exists.

    Raises:
        UsageError: ``mirror`` is not an address of a Debian mirror.
        DeviceError: a tool is missing, or the packages cannot be downloaded or unpacked.
    """
    if not _MIRROR.fullmatch(mirror):
        raise UsageError(
            f"{mirror!r} is not an address of a Debian mirror", fix=f"use an address such as {MIRROR}"
        )
    sysroot = Sysroot(environment_folder(name))
    folder = sysroot.folder
    contents = {"requirements": sorted(requirements), "release": RELEASE, "packages": PACKAGES}
    if _recorded(folder, "wanted") == contents:
        say(f"{name}: already set up in {folder}")
        return
    _check_tools()
    say(
        f"{name}: creating {folder}: {len(PACKAGES)} {ARCHITECTURE} packages of Debian {RELEASE} and "
        f"{EMULATOR_PACKAGE} from {mirror}, then {', '.join(requirements) or 'no wheels'}; "
        "downloads about 90 MB, installs nothing on this machine"
    )
    try:
        # pycache and the marker contain the folder's own path: it is created in place.
        if folder.exists():
            shutil.rmtree(folder)
        sysroot.root.mkdir(parents=True)
    except OSError as error:
        raise DeviceError(
            f"cannot create {folder}: {error}", fix=f"set {HOME_VARIABLE} to a writable folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        debian = _unpack_debian(sysroot, mirror, Path(scratch), say)
    if requirements:
        say(f"{name}: installing the wheels of {', '.join(requirements)}")
        _install_wheels(sysroot, requirements)
    say(f"{name}: importing every package under the emulator")
    record = {"wanted": contents, "debian": debian, "python": _try(sysroot)}
    write_text(folder / MARKER, json.dumps(record, indent=1))
    say(f"{name}: ready")


def unpack(archive: IO[bytes], root: Path) -> None:
    """Unpack a tar stream below ``root``; absolute links are rewritten to point below ``root``.

    Ownership and special permission bits are dropped.

    Raises:
        DeviceError: an entry would be outside ``root``, or is not a file, folder or link.
    """
    top = Path(os.path.realpath(root))
    with tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            relative = PurePosixPath(member.name)
            parts = [part for part in relative.parts if part not in ("/", ".")]
            if not parts:
                continue
            # A link unpacked earlier may lead elsewhere, hence the real path.
            parent = Path(os.path.realpath(top.joinpath(*parts[:-1])))
            target = parent / parts[-1]
            if ".." in parts or not parent.is_relative_to(top):
                raise DeviceError(f"the package's entry {member.name!r} would be outside {root}")
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
                    raise DeviceError(f"the package's link {member.name!r} would point outside {root}")
                target.symlink_to(os.path.relpath(pointed, parent))
            elif member.islnk():
                first = Path(os.path.realpath(top / member.linkname.lstrip("/")))
                if not first.is_relative_to(top) or not first.is_file():
                    raise DeviceError(f"the package's link {member.name!r} would point outside {root}")
                os.link(first, target)
            else:
                raise DeviceError(f"the package's entry {member.name!r} is not a file, folder or link")


def _check_tools() -> None:
    missing = [tool for tool in ("apt-get", "apt-config", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DeviceError(
            f"{', '.join(missing)} not found on this machine: the setup needs Debian's tools",
            fix="run the setup on Debian or Ubuntu",
        )
    if not KEYRING.is_file():
        raise DeviceError(
            f"{KEYRING} is missing: packages cannot be verified",
            fix="run: apt install debian-archive-keyring",
        )


def _unpack_debian(
    sysroot: Sysroot, mirror: str, scratch: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Download and unpack the packages; returns package -> version."""
    environment = _private_apt(mirror, scratch)
    say(f"{sysroot.folder.name}: reading the package lists of {mirror}")
    _run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], scratch, environment)
    debs = scratch / "debs"
    debs.mkdir()
    say(f"{sysroot.folder.name}: downloading {len(PACKAGES) + 1} packages")
    emulator = f"{EMULATOR_PACKAGE}:{_host_architecture()}"
    _run(["apt-get", "-q", "download", *PACKAGES, emulator], debs, environment)
    versions = {}
    for deb in sorted(debs.glob("*.deb")):
        package, version, _ = unquote(deb.stem).split("_")
        versions[package] = version
        root = scratch / "emulator" if package == EMULATOR_PACKAGE else sysroot.root
        root.mkdir(exist_ok=True)
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as reading:
            assert reading.stdout is not None  # stdout=PIPE
            try:
                unpack(reading.stdout, root)
            except tarfile.TarError as error:
                raise DeviceError(f"cannot unpack {deb.name}: {error}", fix="run the setup again") from error
            finally:
                reading.stdout.close()
    absent = sorted({*PACKAGES, EMULATOR_PACKAGE} - set(versions))
    if absent:
        raise DeviceError(f"apt did not download {', '.join(absent)}", fix="run the setup again")
    # The package contains emulators for thirty processors, about 300 MB: only one is kept.
    os.replace(scratch / "emulator/usr/bin" / EMULATOR, sysroot.emulator)
    return versions


def _private_apt(mirror: str, scratch: Path) -> dict[str, str]:
    """Variables of an apt that keeps everything below ``scratch`` and uses this mirror only.

    Of the machine's configuration, only the download settings are kept, such as a proxy. Hooks that other
    programs installed there do not run.
    """
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main\n", "utf-8")
    configuration = _run(["apt-config", "dump"], scratch, dict(os.environ))
    architectures = "; ".join(f'"{name}"' for name in dict.fromkeys((ARCHITECTURE, _host_architecture())))
    lines = [
        *(line for line in configuration.splitlines() if line.startswith("Acquire::")),
        'Acquire::Languages "none";',
        f'Dir::State "{scratch}/state";',
        f'Dir::State::status "{scratch}/status";',
        f'Dir::Cache "{scratch}/cache";',
        f'Dir::Etc::sourcelist "{scratch}/sources.list";',
        *(f'Dir::Etc::{part} "-";' for part in ("main", "parts", "sourceparts", "preferences")),
        'Dir::Etc::preferencesparts "-";',
        f'APT::Architecture "{ARCHITECTURE}";',
        f"APT::Architectures {{ {architectures}; }};",
        # The scratch folder belongs to the user: apt's own user could not write to it.
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
    _run(command, sysroot.folder, variables)


def _try(sysroot: Sysroot) -> dict[str, str]:
    """Import every package under the emulator; returns the versions of Python and of all distributions."""
    variables = os.environ | sysroot.environment("max")
    printed = _run([*sysroot.command, "-c", TRY, str(sysroot.packages)], sysroot.folder, variables)
    versions = json.loads(printed)
    return {str(name): str(version) for name, version in versions.items()}


def _recorded(folder: Path, key: str) -> object:
    try:
        return json.loads((folder / MARKER).read_text("utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """stdout of a command that must succeed.

    Raises:
        DeviceError: the command failed; includes its last line of output.
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
        raise DeviceError(f"{what} did not finish within {SECONDS} s", fix="run the setup again") from error
    except OSError as error:
        raise DeviceError(f"cannot start {what}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DeviceError(
            f"{what} failed: {lines[-1].strip()[:300] if lines else f'exit code {done.returncode}'}",
            fix="check that the Debian mirror and pip's package index are reachable; then repeat the setup",
        )
    return done.stdout
