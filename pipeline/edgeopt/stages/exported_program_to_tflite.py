"""An exported program as float TFLite, through litert-torch."""

from pathlib import Path
from typing import ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.graphs import read_signature
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.quantize import named_layers as torch_named_layers
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Stage, Worker


class ExportedProgramToTflite(Stage):
    """Convert to float32 TFLite. Image inputs that were NCHW become NHWC, TFLite's own layout.

    Layers are called as in the source, with ``_`` for ``.``, as far as their weights tell.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "tflite"
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "litert-torch", "ai-edge-litert", "torchao")
    extra: ClassVar[str | None] = "torch"
    revision: ClassVar[int] = 2

    def run(self, model: Model, context: Context) -> Model:
        """Convert one program.

        Raises:
            StageError: when the program cannot be read, or has an operator that litert-torch does not know.
        """
        graph, inputs = torch_program.plain_graph(model)
        context.progress("converting to TFLite")
        with torch_engine.quiet():
            import litert_torch

        turned = [
            index for index, spec in enumerate(inputs) if spec.layout == "NCHW" and len(spec.shape) == 4
        ]
        taken = tuple(_nhwc(spec) if index in turned else spec for index, spec in enumerate(inputs))
        named = torch_named_layers.with_named_layers(graph)
        module = litert_torch.to_channel_last_io(named, args=turned) if turned else named
        path = context.folder / "model.tflite"
        try:
            with torch_engine.quiet():
                litert_torch.convert(module.eval(), torch_specs.zeros(taken)).export(str(path))
        except (RuntimeError, ValueError, NotImplementedError, KeyError, TypeError) as error:
            raise StageError(
                f"litert-torch cannot convert the model to TFLite: {torch_engine.brief(error)}",
                fix="replace the operator it names, or leave tflite out of 'formats'",
            ) from error
        return _described(path, taken, model)


def _nhwc(spec: TensorSpec) -> TensorSpec:
    batch, channels, height, width = spec.shape
    return spec.model_copy(update={"shape": (batch, height, width, channels), "layout": "NHWC"})


def _described(path: Path, taken: tuple[TensorSpec, ...], model: Model) -> Model:
    found = read_signature(path)
    shapes, wanted = [spec.shape for spec in found.inputs], [spec.shape for spec in taken]
    if shapes != wanted:
        raise StageError(f"litert-torch wrote a model for {shapes}, not for {wanted}")
    inputs = tuple(
        spec.model_copy(update={"layout": source.layout})
        for spec, source in zip(found.inputs, taken, strict=True)
    )
    outputs = found.outputs
    if len(outputs) == len(model.outputs):
        outputs = tuple(
            spec.model_copy(update={"layout": source.layout})
            for spec, source in zip(outputs, model.outputs, strict=True)
        )
    transposes = found.graph.count("TRANSPOSE")
    return Model(format="tflite", path=path, inputs=inputs, outputs=outputs, transposes=transposes)
