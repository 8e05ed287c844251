"""Python environments of their own, for runtimes that cannot live beside the others.

They are made by an explicit command and found again by name. A marker file written last tells a
complete environment from one whose making was interrupted.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from edgeopt.errors import DeviceError, UsageError

HOME_VARIABLE = "EDGEOPT_HOME"
MARKER = "complete.json"
PREFERRED = (3, 11)
"""The newest Python that has wheels of the oldest runtime, tflite-runtime 2.14."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def environment_folder(name: str) -> Path:
    """Where the environment called ``name`` lies; ``EDGEOPT_HOME`` moves all of them.

    Raises:
        UsageError: the name cannot be the name of a folder.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name an environment", fix="use letters, digits, '.', '_' and '-'")
    home = os.environ.get(HOME_VARIABLE)
    base = Path(home).expanduser().absolute() if home else platformdirs.user_data_path("edgeopt")
    return base / "environments" / name


def environment_python(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        DeviceError: it has not been set up, or not completely.
    """
    folder = environment_folder(name)
    python = _python_of(folder)
    if not (folder / MARKER).is_file() or not python.exists():
        raise DeviceError(
            f"device environment {name!r} is not set up", fix=f"run: edgeopt devices setup {name}"
        )
    return python


def setup_environment(name: str, requirements: Sequence[str], say: Callable[[str], None]) -> None:
    """Make the environment ``name`` with ``requirements``, wheels only; nothing to do if it is there.

    Raises:
        DeviceError: the environment cannot be made, with pip's last words.
    """
    folder = environment_folder(name)
    if _installed(folder) == sorted(requirements):
        say(f"{name}: already set up in {folder}")
        return
    interpreter = _interpreter()
    say(f"{name}: making {folder} with {interpreter}")
    try:
        # An environment holds its own path, so it is made where it will stay and marked when done.
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"cannot make {folder}: {error}", fix=f"choose a writable place with {HOME_VARIABLE}"
        ) from error
    _carry_out([interpreter, "-m", "venv", str(folder)], f"cannot make the environment {name!r}")
    if requirements:
        say(f"{name}: installing {', '.join(requirements)}")
        command = [str(_python_of(folder)), "-m", "pip", "install", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--quiet", *requirements]
        _carry_out(command, f"cannot install {', '.join(requirements)} for {interpreter}")
    scratch = folder / f"{MARKER}.part"
    scratch.write_text(json.dumps({"requirements": sorted(requirements)}), "utf-8")
    os.replace(scratch, folder / MARKER)
    say(f"{name}: ready")


def _installed(folder: Path) -> list[str] | None:
    """The requirements of a complete environment."""
    if not _python_of(folder).exists():
        return None
    try:
        found = json.loads((folder / MARKER).read_text("utf-8"))["requirements"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None


def _interpreter() -> str:
    if sys.version_info[:2] == PREFERRED:
        return sys.executable
    return shutil.which("python{}.{}".format(*PREFERRED)) or sys.executable


def _python_of(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _carry_out(command: list[str], failure: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise DeviceError(
            f"{failure}: {lines[-1].strip() if lines else f'exit code {done.returncode}'}",
            fix="the packages come as wheels from the index that pip is set up for",
        )
