"""HDF5 files, read in a separate process: a damaged file can crash or hang the library."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeopt.errors import MissingPackageError, install

SECONDS = 20
"""Time limit for reading a file; hostile files can keep the library in a loop."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's pool of threads, which is not used, takes longer to start than most files to read."""


def available() -> bool:
    """Whether h5py is installed."""
    return importlib.util.find_spec("h5py") is not None


def ask(path: Path, program: str, *arguments: str) -> Any:
    """Run a Python program with ``path`` as its first argument and return the JSON that it prints.

    Raises:
        MissingPackageError: h5py is not installed.
        ValueError: the file cannot be read.
    """
    if not available():
        raise MissingPackageError(f"reading {path.name} needs h5py", fix=install("keras"))
    command = [sys.executable, "-P", "-W", "ignore", "-c", program, str(path), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=os.environ | ONE_THREAD
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading its structure takes longer than {SECONDS} seconds") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the HDF5 library crashed while reading it"]
        raise ValueError(last[0])
    return json.loads(done.stdout)
