"""Exported programs (``.pt2``): export, reading and writing."""

import operator
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.files.specs import describe_inputs, describe_outputs, with_fixed, zeros
from edgeopt.formats.torch.files.tracing import (
    keep_lines,
    untraceable,
    variable,
    variable_outputs,
    variable_sizes,
)
from edgeopt.formats.torch.files.untrusted import refuse_code, weights_only
from edgeopt.formats.torch.graph import conditions as torch_conditions
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.formats.torch.graph.graph_editor import LINE
from edgeopt.formats.torch.lab.engine import brief, quiet, run
from edgeopt.model import Model, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

PLAIN = "edgeopt.plain"
"""Name of the extra file inside a ``.pt2`` that marks its graph as being in the plain form."""

UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, OSError, AssertionError, AttributeError, TypeError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""Exceptions of ``torch.export.load`` for damaged files and files that are not programs."""

ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")
"""Node metadata on the origin of an operator: local paths, and line numbers in the user's code.

With line numbers, a new comment would change the file, and everything would be built again. Messages of later
stages quote the line without its number.
"""


def read(path: Path) -> "ExportedProgram":
    """Load a ``.pt2`` file, quantized or not, without running code from it.

    Raises:
        StageError: the file is not an exported program, is from an unsupported version, or contains more
            than a network.
    """
    return _read(path)[0]


def _read(path: Path) -> "tuple[ExportedProgram, bool]":
    import torch

    register_quantized_operators()
    extra_files = {PLAIN: ""}
    try:
        refuse_code(path)
        with quiet(), weights_only():
            program = torch.export.load(path, extra_files=extra_files)
    except UNREADABLE as error:
        raise StageError(
            f"{path} cannot be read as an exported program: {brief(error)}",
            fix=f"write it with torch.export.save of torch {torch.__version__}, "
            "or declare the model by factory and weights",
        ) from error
    program._guards_code = []  # Python from the file; shapes are checked against the specs instead
    return program, bool(extra_files[PLAIN])


def register_quantized_operators() -> None:
    """Register the operators of quantized programs, which must exist before such a program is loaded."""
    with quiet():
        import torch.ao.quantization.fx._decomposed  # noqa: F401 - the imports register operators
        import torchao.quantization.pt2e  # noqa: F401


def write(
    program: "ExportedProgram", path: Path, *, plain: bool = False, lines: Mapping[str, str] | None = None
) -> None:
    """Save a program. The same program always produces the same bytes, without local paths.

    Args:
        program: the program; metadata on the origin of its nodes is removed in place.
        path: the file. torch names the folder inside the archive after it, so use a fixed file name.
        plain: mark the graph as being in the plain form.
        lines: the lines of the user's code to keep as the origin of nodes, by their name.
    """
    import torch

    # Subgraphs of control flow are modules of their own.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ORIGINS:
                    node.meta.pop(key, None)
    for node in program.graph.nodes:
        if lines and node.name in lines:
            node.meta["stack_trace"] = lines[node.name]
    with quiet():
        torch.export.save(program, path, extra_files={PLAIN: "yes"} if plain else None)


def plain_graph(model: Model) -> "tuple[GraphModule, tuple[TensorSpec, ...]]":
    """Read an exported program as a graph in the plain form.

    Returns:
        The graph, and its input specs at batch 1.

    Raises:
        StageError: the file cannot be read, or ``model.inputs`` do not match it.
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
            # An empty table decomposes nothing: the call only makes the graph functional.
            program = program.run_decompositions({})
    module: Any = program.module(check_guards=False)
    if torch_conditions.has_branches(module):
        module = torch_conditions.without_branches(module)
    keep_lines(module.graph)
    return torch_simplify.simplify(module, zeros(inputs), [spec.name for spec in inputs], constants)


def save_plain(graph: "GraphModule", path: Path, model: Model, inputs: Sequence[TensorSpec]) -> Model:
    """Export and save a graph in the plain form; outputs keep their names in ``model``."""
    program = export(graph, inputs)
    write(program, path, plain=True, lines=_lines(graph, program))
    outputs = describe_outputs(run(graph, inputs), model.outputs)
    return Model(format="exported_program", path=path, inputs=tuple(inputs), outputs=outputs)


def _lines(graph: "GraphModule", program: "ExportedProgram") -> dict[str, str]:
    """The lines that the nodes of a graph are from, by the names of the same nodes in a program of it."""
    ours, theirs = (
        [node for node in each.nodes if node.op == "call_function" and node.target is not operator.getitem]
        for each in (graph.graph, program.graph)
    )
    if [node.target for node in ours] != [node.target for node in theirs]:
        return {}
    return {
        other.name: node.meta[LINE] for node, other in zip(ours, theirs, strict=True) if LINE in node.meta
    }


def save_module(
    module: "torch.nn.Module",
    path: Path,
    model: Model,
    inputs: Sequence[TensorSpec],
    constants: Mapping[int, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Model:
    """Export a module in the plain form and save it.

    Args:
        module: the module to export.
        path: the file to write.
        model: the model that the module was built from; outputs keep its names.
        inputs: the input specs.
        constants: names for tensors that lose theirs during export, by data pointer.
        note: called with a note if the size of a value depends on the data.

    Raises:
        StageError: ``torch.export`` cannot export the module, or the size of an output depends on the data;
            the message names the line of its code.
    """
    try:
        program = export(named(with_fixed(module, inputs)), inputs)
    except Exception as error:  # whatever the user's forward() raises
        raise untraceable(error) from error
    try:
        graph = _plain(program, inputs, constants=constants)
    except RuntimeError as error:
        raise untraceable(error) from error
    lines = variable_sizes(program)
    if lines and variable_sizes(left := export(graph, inputs)):
        names = [spec.name for spec in describe_outputs(run(graph, inputs), model.outputs)]
        if outputs := variable_outputs(left, names):
            raise variable(f"output {', '.join(map(repr, outputs))}", lines)
        inside = variable("a result", lines)
        note(f"{inside.message}; {inside.fix}")
    return save_plain(graph, path, model, inputs)


def export(module: "torch.nn.Module", inputs: Sequence[TensorSpec]) -> "ExportedProgram":
    """Run ``torch.export.export`` at batch 1."""
    import torch

    with torch.no_grad(), quiet():
        return torch.export.export(module, zeros(inputs))


def named(module: "torch.nn.Module") -> "torch.nn.Module":
    """Wrap a module as a submodule named ``model``, in evaluation mode.

    A top-level ``nn.Sequential`` names its parameters ``0.weight``, and names with a leading digit break
    later conversions.
    """
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.model(*inputs)

    return Named().eval()
