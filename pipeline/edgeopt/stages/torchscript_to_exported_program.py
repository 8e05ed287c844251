"""A TorchScript module as an exported program."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import simplify as torch_simplify
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch


class TorchscriptToExportedProgram(Stage):
    """Record the operators that the module runs for one input of batch 1.

    The recording goes through the dispatcher, so it sees what the TorchScript interpreter does. A branch
    that depends on values is recorded as it goes for zeros; a result that differs on random input is
    refused. ``torch._export.converter`` is not used: it makes axes dynamic and fails on pooling
    whose kernel is computed from them.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torchscript_module"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    def run(self, model: Model, context: Context) -> Model:
        """Convert one module.

        Raises:
            StageError: when the file is not TorchScript, the inputs are unknown or do not fit, or the
                module does not do the same for every input.
        """
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        if not model.inputs:
            raise StageError(
                f"{model.path.name} does not say what it takes: TorchScript files know no input shapes",
                fix="describe 'inputs' of the model in the recipe",
            )
        inputs = tuple(torch_specs.fix_batch(spec) for spec in model.inputs)
        module = torch_script.load_script(model.path)
        context.progress("recording operators")
        try:
            with torch.no_grad(), torch_engine.quiet():
                functional = torch.func.functionalize(module, remove="mutations")
                recorded = make_fx(functional)(*torch_specs.zeros(inputs))
        except (RuntimeError, TypeError, ValueError) as error:
            raise StageError(
                f"{model.path.name} does not run on {[list(spec.shape) for spec in inputs]}: "
                f"{torch_engine.brief(error)}",
                fix="correct 'inputs' in the recipe",
            ) from error
        graph = torch_simplify.simplify(recorded, torch_specs.zeros(inputs), [spec.name for spec in inputs])
        _compare(module, graph, inputs, model)
        return torch_program.save_plain(graph, context.folder / "model.pt2", model, inputs)


def _compare(
    module: "torch.nn.Module", graph: "torch.nn.Module", inputs: Sequence[TensorSpec], model: Model
) -> None:
    import torch
    from torch.utils import _pytree

    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(zero.shape, generator=generator).to(zero.dtype) if zero.is_floating_point() else zero
        for zero in torch_specs.zeros(inputs)
    ]
    with torch.no_grad():
        pairs = zip(_pytree.tree_leaves(module(*values)), _pytree.tree_leaves(graph(*values)), strict=True)
        worst = max(
            float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1.0))
            for a, b in pairs
        )
    if not worst <= 1e-4:
        raise StageError(
            f"{model.path.name} takes another path for other values: its record is off by {worst:.3g}",
            fix="remove control flow that depends on values, or give the model as factory and weights",
        )
