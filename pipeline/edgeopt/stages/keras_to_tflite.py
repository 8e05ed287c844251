"""Keras and SavedModel to float TFLite, through TensorFlow's converter."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.tflite.files.graphs import read_signature, signature_names
from edgeopt.formats.tflite.files.model_file import parse
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker


class KerasToTflite(Stage):
    """Convert with ``tf.lite.TFLiteConverter`` to float32, with the batch fixed to 1.

    Inputs and outputs keep the names and the order of the source; layers keep their Keras names.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras", "tf_keras", "saved_model"})
    produces: ClassVar[str] = "tflite"
    worker: ClassVar[Worker] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "tf_keras", "h5py", "ai-edge-litert")
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 2

    trust: bool = Field(False, description="load models with Lambda layers, which run Python code")

    def run(self, model: Model, context: Context) -> Model:
        """Convert one model.

        Raises:
            StageError: the model cannot be loaded, or contains an operator that TFLite does not support.
        """
        import tensorflow as tf

        program = keras_loading.load_program(model, self.trust)
        context.progress("converting to TFLite")
        function = program.function.get_concrete_function()
        # The converter resolves the variables of the function through the object that owns them.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], program.owner)
        try:
            content = bytearray(converter.convert())
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            raise StageError(
                f"TensorFlow cannot convert {model.path.name} to TFLite: {_reason(error)}",
                fix="replace the layer, or leave tflite out of 'formats'",
            ) from error
        _restore_order(content, [spec.name for spec in program.inputs], list(program.outputs))
        path = context.folder / "model.tflite"
        path.write_bytes(content)
        return _describe(path, program)


def _describe(path: Path, program: keras_loading.Program) -> Model:
    signature = read_signature(path)
    inputs = tuple(
        spec.model_copy(update={"layout": source.layout})
        for spec, source in zip(signature.inputs, program.inputs, strict=True)
    )
    return Model(
        format="tflite",
        path=path,
        inputs=inputs,
        outputs=signature.outputs,
        transposes=signature.graph.count("TRANSPOSE"),
    )


def _restore_order(content: bytearray, inputs: list[str], outputs: list[str]) -> None:
    """Restore the source's order of inputs and outputs in place: the converter sorts them by name.

    Only the two index vectors of the subgraph are overwritten, which preserves the alignment of all buffers.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    subgraph = model.Subgraphs(0)
    vectors = (subgraph.InputsAsNumpy(), subgraph.OutputsAsNumpy())
    signature = signature_names(parse(bytes(content), "the converted file"))
    for vector, names, order in zip(vectors, signature, (inputs, outputs), strict=True):
        index = {name: tensor for tensor, name in names.items()}
        if len(vector) == len(order) and all(name in index for name in order):
            vector[:] = [index[name] for name in order]


def _reason(error: Exception) -> str:
    """The line of a converter's long message that states the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "not supported" in line]
    return (errors or lines or [type(error).__name__])[0][:500]
