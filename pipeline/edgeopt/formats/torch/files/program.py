"""Exported programs (``.pt2``): exporting, reading and writing."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.files.specs import describe_inputs, describe_outputs, zeros
from edgeopt.formats.torch.files.untrusted import refuse_code, weights_only
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.formats.torch.lab.engine import brief, quiet, run
from edgeopt.model import Model, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

PLAIN = "edgeopt.plain"
"""Name of the note inside a ``.pt2`` file that its graph is in the plain form already."""

UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, OSError, AssertionError, AttributeError, TypeError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What torch.export.load raises for files that are not programs, or damaged."""

ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")
"""Node annotations that tell where an operator came from, with paths of this machine."""


def read(path: Path) -> "ExportedProgram":
    """Load a ``.pt2`` file, quantized or not. No code in it is run.

    Raises:
        StageError: when the file is not an exported program, is from a version that cannot be read, or
            holds more than a network.
    """
    return _read(path)[0]


def _read(path: Path) -> "tuple[ExportedProgram, bool]":
    import torch

    register_quantized_operators()
    notes = {PLAIN: ""}
    try:
        refuse_code(path)
        with quiet(), weights_only():
            program = torch.export.load(path, extra_files=notes)
    except UNREADABLE as error:
        raise StageError(
            f"{path} cannot be read as an exported program: {brief(error)}",
            fix=f"write it with torch.export.save of torch {torch.__version__}, "
            "or give the model as factory and weights",
        ) from error
    program._guards_code = []  # Python from the file; shapes are checked against the specs instead
    return program, bool(notes[PLAIN])


def register_quantized_operators() -> None:
    """Make torch know the operators of quantized programs, without which those do not load."""
    with quiet():
        import torch.ao.quantization.fx._decomposed  # noqa: F401 - the imports register operators
        import torchao.quantization.pt2e  # noqa: F401


def write(program: "ExportedProgram", path: Path, *, plain: bool = False) -> None:
    """Save a program. The same program gives the same bytes, and no path of this machine is in them.

    Args:
        program: what to save.
        path: torch names the folder inside the archive after this file, so give it a fixed name.
        plain: note in the file that the graph is in the plain form.
    """
    import torch

    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ORIGINS:
                    node.meta.pop(key, None)
    with quiet():
        torch.export.save(program, path, extra_files={PLAIN: "yes"} if plain else None)


def plain_graph(model: Model) -> "tuple[GraphModule, tuple[TensorSpec, ...]]":
    """Read an exported program as a graph in the plain form, and say what it takes (batch 1).

    Raises:
        StageError: when the file cannot be read, or ``model.inputs`` do not fit it.
    """
    program, plain = _read(model.path)
    inputs = describe_inputs(program, model.inputs)
    return _plain(program, inputs, plain), inputs


def _plain(
    program: "ExportedProgram",
    inputs: Sequence[TensorSpec],
    plain: bool = False,
    constants: Mapping[int, str] | None = None,
) -> "GraphModule":
    if not plain:
        with quiet():
            program = program.run_decompositions({})  # no decomposition: only makes the graph functional
    module: Any = program.module(check_guards=False)
    return torch_simplify.simplify(module, zeros(inputs), [spec.name for spec in inputs], constants)


def save_plain(graph: "GraphModule", path: Path, model: Model, inputs: Sequence[TensorSpec]) -> Model:
    """Save a graph of the plain form as a program; outputs keep the names that ``model`` gives them."""
    program = export(graph, inputs)
    write(program, path, plain=True)
    outputs = describe_outputs(run(graph, inputs), model.outputs)
    return Model(format="exported_program", path=path, inputs=tuple(inputs), outputs=outputs)


def save_module(
    module: "torch.nn.Module",
    path: Path,
    model: Model,
    inputs: Sequence[TensorSpec],
    constants: Mapping[int, str] | None = None,
) -> Model:
    """Export a module in the plain form and save it.

    Args:
        module: what to export.
        path: the file to write.
        model: where it comes from; outputs keep the names given there.
        inputs: what it takes.
        constants: what to call tensors of which export forgets the name, by the address of their data.

    Raises:
        StageError: when the module cannot be exported.
    """
    import torch

    try:
        program = export(named(module), inputs)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise StageError(
            f"torch.export cannot follow the model: {brief(error)}",
            fix="keep forward() free of control flow that depends on values; "
            "torch.export.draft_export names every place",
        ) from error
    return save_plain(_plain(program, inputs, constants=constants), path, model, inputs)


def export(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> "ExportedProgram":
    """``torch.export.export`` at a batch of 1."""
    import torch

    with torch.no_grad(), quiet():
        return torch.export.export(module, zeros(inputs))


def named(module: "torch.nn.Module") -> "torch.nn.Module":
    """Wrap a module under the name ``model``, in evaluation mode.

    A top-level ``nn.Sequential`` names its parameters ``0.weight``, and names that begin with a digit
    break later conversions.
    """
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.model(*inputs)

    return Named().eval()
