"""Rejection of archives of torch that contain more than a network, before torch loads them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import StageError, UsageError
from edgeopt.formats.untrusted import BY_TRUST, torch_files

FIX = (
    "export it again without custom objects, compiled parts and operators that reach files or other "
    "processes, or declare the model by factory and weights"
)


def notes(path: Path, trust: bool) -> tuple[str, ...]:
    """Notes on everything in an archive that is more than a network, which ``trust`` allows.

    Raises:
        UsageError: there is something, and the archive is not trusted.
    """
    found = torch_files.findings(path)
    if found and not trust:
        raise UsageError(
            f"{path} contains more than a network: {found[0][:200]}", fix=f"{FIX}; or, {BY_TRUST}"
        )
    return tuple(f"{each[:200]}; model.trust allows it" for each in found)


def refuse_code(path: Path) -> None:
    """Scan an archive with torch's reader, without loading it.

    Raises:
        StageError: the archive contains objects, compiled code, or functions that are not operators.
        RuntimeError, ValueError: the file is not an archive that torch can read.
    """
    found = torch_files.findings_for_torch(path)
    if found:
        raise StageError(
            f"{path} contains more than a network; loading it could run arbitrary code: {found[0][:200]}",
            fix=FIX,
        )


@contextmanager
def weights_only() -> Iterator[None]:
    """Restrict every ``torch.load`` call inside torch to tensors."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
