"""TorchScript files, in full (``.pt``) and for the lite interpreter (``.ptl``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import archive as torch_archive
from edgeopt.formats.torch.files.specs import zeros
from edgeopt.formats.torch.graph.operators import MOVES
from edgeopt.formats.torch.lab.engine import brief, mobile_engine, quiet
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


def trace(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> "torch.jit.ScriptModule":
    """The TorchScript of a module without control flow, frozen."""
    import torch

    with torch.no_grad(), quiet():
        traced = torch.jit.trace(module.eval(), zeros(inputs), check_trace=False)
        return torch.jit.freeze(traced.eval())


def save_script(module: "torch.jit.ScriptModule", path: Path, *, lite: bool = False) -> None:
    """Save TorchScript, in full or for the lite interpreter; the same module gives the same bytes.

    torch names the folder inside the archive after the file, so give it a fixed name.
    """
    with quiet(), mobile_engine():
        if lite:
            module._save_for_lite_interpreter(str(path))
        else:
            module.save(str(path))
    torch_archive.normalize(path)


def load_script(path: Path) -> "torch.jit.ScriptModule":
    """Load a TorchScript file in evaluation mode.

    torch's reader of TorchScript knows no Python objects, so nothing but TorchScript can come out.

    Raises:
        StageError: when it is not one.
    """
    import torch

    try:
        with quiet(), mobile_engine():
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise StageError(
            f"{path} cannot be read as TorchScript: {brief(error)}",
            fix="expected is what torch.jit.save writes",
        ) from error
    return module


def count_transposes(module: "torch.jit.ScriptModule") -> int:
    """How many operators of a frozen module only move data."""
    return sum(len(module.inlined_graph.findAllNodes(f"aten::{name}")) for name in MOVES)
