"""Exported programs (``.pt2``): reading, writing, and saying what goes in and comes out."""

import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats import torch_archive, torch_graph
from edgeopt.model import Model, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

Shape: TypeAlias = tuple[int, ...]

PLAIN = "edgeopt.plain"
"""Name of the note inside a ``.pt2`` file that its graph is in the plain form already."""

UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, OSError, AssertionError, AttributeError, TypeError),
    zipfile.BadZipFile,
)
"""What torch.export.load raises for files that are not programs, or damaged."""

ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")
"""Node annotations that tell where an operator came from, with paths of this machine."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's own code says about its own deprecated parts."""
    loggers = [logging.getLogger(name) for name in ("torch", "torchao", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read(path: Path) -> "ExportedProgram":
    """Load a ``.pt2`` file, quantized or not.

    Raises:
        StageError: when the file is not an exported program, or from a version that cannot be read.
    """
    return _read(path)[0]


def _read(path: Path) -> "tuple[ExportedProgram, bool]":
    import torch

    register_quantized_operators()
    notes = {PLAIN: ""}
    try:
        with quiet():
            program = torch.export.load(path, extra_files=notes)
    except UNREADABLE as error:
        raise StageError(
            f"{path} cannot be read as an exported program: {brief(error)}",
            fix=f"write it with torch.export.save of torch {torch.__version__}, "
            "or give the model as factory and weights",
        ) from error
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


def _plain(program: "ExportedProgram", inputs: Sequence[TensorSpec], plain: bool = False) -> "GraphModule":
    if not plain:
        with quiet():
            program = program.run_decompositions({})  # no decomposition: only makes the graph functional
    module: Any = program.module(check_guards=False)
    return torch_graph.simplify(module, zeros(inputs), [spec.name for spec in inputs])


def save_plain(graph: "GraphModule", path: Path, model: Model, inputs: Sequence[TensorSpec]) -> Model:
    """Save a graph of the plain form as a program; outputs keep the names that ``model`` gives them."""
    program = export(graph, inputs)
    write(program, path, plain=True)
    outputs = describe_outputs(run(graph, inputs), model.outputs)
    return Model(format="exported_program", path=path, inputs=tuple(inputs), outputs=outputs)


def save_module(module: "torch.nn.Module", path: Path, model: Model, inputs: Sequence[TensorSpec]) -> Model:
    """Export a module in the plain form and save it.

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
    return save_plain(_plain(program, inputs), path, model, inputs)


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

    class Named(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.model(*inputs)

    return Named().eval()


def run(module: "Callable[..., Any]", inputs: Sequence[TensorSpec]) -> Any:
    """What a module returns for zeros."""
    import torch

    with torch.no_grad():
        return module(*zeros(inputs))


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


@contextmanager
def mobile_engine() -> Iterator[None]:
    """Use qnnpack's kernels, those of phones and boards.

    Packed weights are bound to the engine under which they were made or loaded, and larger under others.
    """
    import torch

    before = torch.backends.quantized.engine
    if "qnnpack" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "qnnpack"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: calibrating at batch 1 is many tiny operators.

    Shared between threads, these wait for each other; on a busy machine that made it 50 times slower.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_inputs(program: "ExportedProgram", given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What a program takes: ``given`` where the source says it, otherwise read from its graph.

    A free batch axis becomes 1. Images of rank 4 are taken to be NCHW unless ``given`` says otherwise.

    Raises:
        StageError: when ``given`` does not fit, or another axis than the batch is free.
    """
    wanted = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta["val"]
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            layout = "NCHW" if len(shape) == 4 else None
            dtype = dtype_name(value.dtype)
            found.append(TensorSpec(name=node.name, shape=shape, dtype=dtype, layout=layout))
    specs = tuple(given) or tuple(found)
    if len(specs) != len(found):
        raise StageError(
            f"the program takes {len(found)} inputs, but {len(specs)} are described",
            fix=f"describe one input for each of: {', '.join(spec.name for spec in found)}",
        )
    fixed = tuple(fix_batch(spec) for spec in specs)
    for spec, own in zip(fixed, found, strict=True):
        fits = len(spec.shape) == len(own.shape) and all(
            size is None or size == other for size, other in zip(own.shape, spec.shape, strict=True)
        )
        if not fits:
            raise StageError(
                f"input {spec.name!r} is described as {list(spec.shape)}, "
                f"the program takes {list(own.shape)}",
                fix="export the program with a batch of 1 or a free batch axis, and describe that shape",
            )
    return fixed


def fix_batch(spec: TensorSpec) -> TensorSpec:
    """The same input with a batch of 1.

    Raises:
        StageError: when an axis other than the first is free, or the batch is another number.
    """
    shape = (1, *spec.shape[1:]) if spec.shape[:1] == (None,) else spec.shape
    if None in shape:
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise StageError(
            f"input {spec.name!r} has the shape [{shown}]: only the batch axis may be free",
            fix="give the full shape of one sample in the recipe",
        )
    return spec.model_copy(update={"shape": shape})


def dtype_name(dtype: "torch.dtype") -> str:
    """``torch.float32`` as ``float32``."""
    return str(dtype).removeprefix("torch.")


def zeros(specs: Sequence[TensorSpec]) -> "tuple[torch.Tensor, ...]":
    """One zero tensor per input; a free axis counts 1."""
    import torch

    shapes = (tuple(1 if size is None else size for size in spec.shape) for spec in specs)
    return tuple(torch.from_numpy(np.zeros(s, spec.dtype)) for s, spec in zip(shapes, specs, strict=True))


def describe_outputs(values: object, like: Sequence[TensorSpec] = ()) -> tuple[TensorSpec, ...]:
    """Specs of what a model returned; names are taken over from ``like`` where it fits.

    Raises:
        StageError: when something that is not a tensor was returned.
    """
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(values)
    specs = []
    for index, value in enumerate(leaves):
        if not isinstance(value, torch.Tensor):
            raise StageError(
                f"output {index} of the model is a {type(value).__name__}, not a tensor",
                fix="let forward() return tensors only",
            )
        known = like[index] if len(like) == len(leaves) else None
        name = known.name if known else f"output_{index}" if len(leaves) > 1 else "output"
        layout = known.layout if known else None
        specs.append(
            TensorSpec(name=name, shape=tuple(value.shape), dtype=dtype_name(value.dtype), layout=layout)
        )
    return tuple(specs)


def brief(error: BaseException, lines: int = 4) -> str:
    """The first lines of a message that may be pages long."""
    return "\n".join(str(error).strip().splitlines()[:lines]) or type(error).__name__
