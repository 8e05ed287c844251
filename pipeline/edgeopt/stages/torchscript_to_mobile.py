"""A TorchScript module to a file for the lite interpreter."""

from typing import ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import script as torch_script
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class TorchscriptToMobile(Stage):
    """Freeze and save for the lite interpreter, without further optimization.

    ``optimize_for_mobile`` requires a torch built with XNNPACK, and ``optimize_for_inference`` writes files
    that crash the lite interpreter.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"torchscript_module"})
    produces: ClassVar[str] = "torchscript"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 2

    def run(self, model: Model, context: Context) -> Model:
        """Convert one module.

        Raises:
            StageError: the file is not TorchScript, or the inputs are unknown or do not match.
        """
        import torch

        if not model.inputs:
            raise StageError(
                f"{model.path.name} does not declare its input shapes: TorchScript files contain none",
                fix="declare 'inputs' of the model in the recipe",
            )
        inputs = tuple(torch_specs.fix_batch(spec) for spec in model.inputs)
        module = torch_script.load_script(model.path)
        if hasattr(module, "training"):  # freezing removes the attribute
            with torch_engine.quiet(), torch_engine.mobile_engine():
                module = torch.jit.freeze(module)
        try:
            with torch_engine.mobile_engine():
                values = torch_engine.run(module, inputs)
        except RuntimeError as error:
            raise StageError(
                f"{model.path.name} does not run on {[list(spec.shape) for spec in inputs]}: "
                f"{torch_engine.brief(error)}",
                fix="correct 'inputs' in the recipe",
            ) from error
        if module.inlined_graph.findAllNodes("prim::SetAttr"):
            torch_script.refuse_state(module, inputs, model.path.name)
        path = context.folder / "model.ptl"
        torch_script.save_script(module, path, lite=True)
        return Model(
            format="torchscript",
            path=path,
            inputs=inputs,
            outputs=torch_specs.describe_outputs(values, model.outputs),
            transposes=torch_script.count_transposes(module),
        )
