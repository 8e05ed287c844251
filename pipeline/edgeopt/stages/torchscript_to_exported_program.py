"""A TorchScript module to an exported program."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.files import tracing as torch_tracing
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch


class TorchscriptToExportedProgram(Stage):
    """Trace the operators that the module executes for one input of batch 1.

    The trace is taken at the dispatcher, below the TorchScript interpreter. Value-dependent branches are
    traced for an input of zeros; a module whose trace differs on random input is rejected.
    ``torch._export.converter`` is not used: it makes axes dynamic and fails on pooling whose kernel size is
    computed from them.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torchscript_module"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 3

    def run(self, model: Model, context: Context) -> Model:
        """Convert one module.

        Raises:
            StageError: the file is not TorchScript, the inputs are unknown or do not match, or the control
                flow of the module depends on input values.
        """
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        if not model.inputs:
            raise StageError(
                f"{model.path.name} does not declare its input shapes: TorchScript files contain none",
                fix="declare 'inputs' of the model in the recipe",
            )
        inputs = tuple(torch_specs.fix_batch(spec) for spec in model.inputs)
        module = torch_specs.with_fixed(torch_script.load_script(model.path), inputs)
        if remark := torch_specs.remark_fixed(inputs):
            context.note(remark)
        context.progress("tracing operators")
        try:
            with torch.no_grad(), torch_engine.quiet():
                module(*torch_specs.zeros(inputs))
        except (RuntimeError, TypeError, ValueError) as error:
            raise StageError(
                f"{model.path.name} does not run on {[list(spec.shape) for spec in inputs]}: "
                f"{torch_tracing.script_line(error) or torch_engine.brief(error)}",
                fix="correct 'inputs' in the recipe",
            ) from error
        torch_script.refuse_state(module, inputs, model.path.name)
        try:
            with torch.no_grad(), torch_engine.quiet():
                # Exported programs are functional: in-place operators are replaced first.
                functional = torch.func.functionalize(module, remove="mutations")
                traced = make_fx(functional)(*torch_specs.zeros(inputs))
        except (RuntimeError, TypeError, ValueError) as error:
            raise StageError(
                f"{model.path.name} cannot be traced: what it does depends on values of tensors: "
                f"{torch_tracing.script_line(error).partition(chr(10))[0] or torch_engine.brief(error)}",
                fix=f"in its source, {torch_tracing.BRANCH}; {torch_tracing.INDEX}",
            ) from error
        graph = torch_simplify.simplify(traced, torch_specs.zeros(inputs), [spec.name for spec in inputs])
        _compare(module, graph, inputs, model)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _compare(
    module: "torch.nn.Module", graph: "torch.nn.Module", inputs: Sequence[TensorSpec], model: Model
) -> None:
    import torch
    from torch.utils import _pytree

    values = torch_specs.random(inputs)
    with torch.no_grad():
        pairs = zip(_pytree.tree_leaves(module(*values)), _pytree.tree_leaves(graph(*values)), strict=True)
        worst = max(
            float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1.0))
            for a, b in pairs
        )
    if not worst <= 1e-4:
        raise StageError(
            f"{model.path.name} has value-dependent control flow: its trace is off by {worst:.3g}",
            fix="remove that control flow, or provide the model as factory and weights",
        )
