"""Separate Python environments, for runtimes that conflict with the others.

An explicit command creates them; they are looked up by name. A marker file, written last, distinguishes
a complete environment from one whose creation was interrupted.
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

from edgeopt.config.files import write_text
from edgeopt.errors import DeviceError, UsageError

HOME_VARIABLE = "EDGEOPT_HOME"
MARKER = "complete.json"
PREFERRED = (3, 11)
"""The newest Python with wheels of tflite-runtime 2.14, the oldest runtime."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of environments: they are folders."""


def environment_folder(name: str) -> Path:
    """The folder of the environment ``name``; ``EDGEOPT_HOME`` relocates all environments.

    Raises:
        UsageError: ``name`` is not a valid folder name.
    """
    if not re.match(NAME, name):
        raise UsageError(
            f"{name!r} is not a valid environment name", fix="use letters, digits, '.', '_' and '-'"
        )
    home = os.environ.get(HOME_VARIABLE)
    base = Path(os.path.expanduser(home)).absolute() if home else platformdirs.user_data_path("edgeopt")
    return base / "environments" / name


def environment_python(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        DeviceError: the environment is not set up, or only partly.
    """
    folder = environment_folder(name)
    python = _python_of(folder)
    if not (folder / MARKER).is_file() or not python.exists():
        raise DeviceError(
            f"device environment {name!r} is not set up", fix=f"run: edgeopt devices setup {name}"
        )
    return python


def setup_environment(name: str, requirements: Sequence[str], say: Callable[[str], None]) -> None:
    """Create the environment ``name`` with ``requirements``, from wheels only; a no-op if it exists.

    Raises:
        DeviceError: the environment cannot be created; includes pip's last line of output.
    """
    folder = environment_folder(name)
    if _installed(folder) == sorted(requirements):
        say(f"{name}: already set up in {folder}")
        return
    interpreter = _interpreter()
    say(f"{name}: creating {folder} with {interpreter}")
    try:
        # An environment contains its own path: it is created in place and marked when complete.
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"cannot create {folder}: {error}", fix=f"set {HOME_VARIABLE} to a writable folder"
        ) from error
    _run([interpreter, "-m", "venv", str(folder)], f"cannot create the environment {name!r}")
    if requirements:
        say(f"{name}: installing {', '.join(requirements)}")
        command = [str(_python_of(folder)), "-m", "pip", "install", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--quiet", *requirements]
        _run(command, f"cannot install {', '.join(requirements)} for {interpreter}")
    write_text(folder / MARKER, json.dumps({"requirements": sorted(requirements)}))
    say(f"{name}: ready")


def _installed(folder: Path) -> list[str] | None:
    """The requirements of a complete environment, None if it is incomplete."""
    if not _python_of(folder).exists():
        return None
    try:
        requirements = json.loads((folder / MARKER).read_text("utf-8"))["requirements"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return requirements if isinstance(requirements, list) else None


def _interpreter() -> str:
    if sys.version_info[:2] == PREFERRED:
        return sys.executable
    return shutil.which("python{}.{}".format(*PREFERRED)) or sys.executable


def _python_of(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _run(command: list[str], failure: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise DeviceError(
            f"{failure}: {lines[-1].strip() if lines else f'exit code {done.returncode}'}",
            fix="configure pip with a package index that has wheels of these packages",
        )
