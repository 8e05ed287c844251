"""The GPUs of this machine that stages train on: those that torch sees."""

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

NONE = "-1"
"""The value of ``CUDA_VISIBLE_DEVICES`` that hides all GPUs."""
DEVICE = Path("/dev/nvidiactl")
"""There while the driver of NVIDIA is loaded."""
SECONDS = 120.0
"""Time to import torch on a busy machine."""


@functools.cache
def possible() -> bool:
    """Whether torch may see a GPU: there is a driver, and torch is no build for processors only.

    It imports nothing, so that a machine without a GPU starts no other process for training.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        built_for = importlib.metadata.version("torch").partition("+")[2]
        return built_for != "cpu" and (DEVICE.exists() or shutil.which("nvidia-smi") is not None)
    return False


def visible(*, gpu: bool) -> str | None:
    """What ``CUDA_VISIBLE_DEVICES`` is in a process that uses a GPU, or none; None: as it is here, unset."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") if gpu and possible() else NONE


def count() -> int:
    """The number of GPUs that torch sees on this machine."""
    if not possible():
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # torch does not work here
        return 0
