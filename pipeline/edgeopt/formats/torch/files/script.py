"""TorchScript files: full modules (``.pt``) and lite interpreter modules (``.ptl``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import archive as torch_archive
from edgeopt.formats.torch.files.specs import random, zeros
from edgeopt.formats.torch.files.untrusted import refuse_code
from edgeopt.formats.torch.graph.operators import TRANSPOSES
from edgeopt.formats.torch.lab.engine import brief, mobile_engine, quiet
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


def trace(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> "torch.jit.ScriptModule":
    """Trace and freeze a module without control flow."""
    import torch

    with torch.no_grad(), quiet():
        traced = torch.jit.trace(module.eval(), zeros(inputs), check_trace=False)
        # Freezing inlines weights and submodules, so that later passes see one flat graph.
        return torch.jit.freeze(traced.eval())


def save_script(module: "torch.jit.ScriptModule", path: Path, *, lite: bool = False) -> None:
    """Save a full or a lite interpreter module; the same module always produces the same bytes.

    torch names the folder inside the archive after the file, so use a fixed file name.
    """
    with quiet(), mobile_engine():
        if lite:
            module._save_for_lite_interpreter(str(path))
        else:
            module.save(str(path))
    torch_archive.normalize(path)


def load_script(path: Path) -> "torch.jit.ScriptModule":
    """Load a TorchScript file in evaluation mode.

    Raises:
        StageError: the file is not TorchScript, or its operators do more than compute.
    """
    import torch

    try:
        refuse_code(path)
        with quiet(), mobile_engine():
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu").eval()
    except (OSError, *MALFORMED) as error:
        raise StageError(
            f"{path} cannot be read as TorchScript: {brief(error)}",
            fix="write it with torch.jit.save",
        ) from error
    return module


def refuse_state(module: "torch.nn.Module", inputs: Sequence[TensorSpec], file: str) -> None:
    """Raise if the same inputs give other outputs in the second call.

    Raises:
        StageError: the module keeps state, for which a converted file has no place, or draws random numbers.
    """
    import torch
    from torch.utils import _pytree

    with torch.no_grad(), quiet():
        first, second = (_pytree.tree_leaves(module(*random(inputs))) for _ in range(2))
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise StageError(
            f"{file} keeps state from call to call, or draws random numbers: the same inputs give other "
            "outputs the second time",
            fix="use a model that takes its state as an input and returns the next one as an output",
        )


def count_transposes(module: "torch.jit.ScriptModule") -> int:
    """Number of operators of a frozen module that only transpose data."""
    return sum(len(module.inlined_graph.findAllNodes(f"aten::{name}")) for name in TRANSPOSES)
