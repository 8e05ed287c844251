"""Keras and SavedModel to float TFLite, through TensorFlow's converter."""

import re
from pathlib import Path
from typing import Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.tflite.files.graphs import read_signature, signature_names
from edgeopt.formats.tflite.files.model_file import parse
from edgeopt.model import Model
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage

MISSING = re.compile(r"^(?:TF Select|Custom) ops: (.+)$", re.MULTILINE)


class KerasToTflite(KerasStage):
    """Convert with ``tf.lite.TFLiteConverter`` to float32, with the batch fixed to 1.

    Inputs and outputs keep the names and the order of the source; layers keep their Keras names.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras", "tf_keras", "saved_model"})
    produces: ClassVar[str] = "tflite"
    worker: ClassVar[Worker] = "tensorflow"
    cost: ClassVar[int] = 2
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "tf_keras", "h5py", "ai-edge-litert")
    extra: ClassVar[str | None] = "keras"
    revision: ClassVar[int] = 2

    def run(self, model: Model, context: Context) -> Model:
        """Convert one model.

        Raises:
            StageError: the model cannot be loaded, or contains an operator that TFLite does not support.
        """
        import tensorflow as tf
        from tensorflow.lite.python.convert import ConverterError

        program = keras_loading.load_program(model, self.trust, self.code)
        context.progress("converting to TFLite")
        function = keras_loading.traced(program, model)
        # The converter resolves the variables of the function through the object that owns them.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], program.owner)
        try:
            content = bytearray(converter.convert())
        except (RuntimeError, ValueError, ConverterError, tf.errors.OpError) as error:
            raise StageError(
                f"TensorFlow cannot convert {model.path.name} to TFLite: {_reason(error, function)}",
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
    for vector, index, order in zip(vectors, signature, (inputs, outputs), strict=True):
        if len(vector) == len(order) and all(name in index for name in order):
            vector[:] = [index[name] for name in order]


def _reason(error: Exception, function: Any) -> str:
    """The cause in a long message of the converter: the operators that TFLite lacks, with their places."""
    if missing := MISSING.search(str(error)):
        kinds = [kind.strip() for kind in missing[1].split(",")]
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
        places = {kind: next((node.name for node in nodes if node.op == kind), "") for kind in kinds}
        named = (f"{kind} ({place.rpartition('/')[0] or place})" for kind, place in places.items())
        return f"it has no operator for {', '.join(named)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "not supported" in line]
    return (errors or lines or [type(error).__name__])[0][:500]
