"""The same TFLite model in fewer bytes."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from edgeopt.formats.tflite_file import load
from edgeopt.formats.tflite_slimming import slimmed
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage


class SlimTflite(Stage):
    """Lossless: what is equal is shared, what nobody reads is left out, and outputs stay bit-identical.

    Equal buffers, vectors, strings and tables are written once; names of inner tensors, calibration
    statistics, unused buffers and converters' own metadata are dropped; buffers that lie behind the tables
    move inside, where every runtime finds them. Signatures, tensor numbers, custom options and the user's
    metadata stay. The result is read again and compared with the original before it counts.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"slim": frozenset({"lossless"})}

    scheme: Literal["lossless"] = Field("lossless", description="lossless: outputs stay bit-identical")

    def run(self, model: Model, context: Context) -> Model:
        """Slim one file; its inputs and outputs stay what they are.

        Raises:
            StageError: when the file is damaged, cannot be slimmed, or the result would differ.
        """
        file = load(model.path)
        result = slimmed(file)
        context.progress(f"slimmed from {len(file.content):,} to {len(result):,} bytes")
        path = context.folder / "model.tflite"
        path.write_bytes(result)
        return model.model_copy(update={"path": path})
