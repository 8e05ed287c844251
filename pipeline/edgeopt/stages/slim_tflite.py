"""The same TFLite model in fewer bytes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files.model_file import load
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.formats.wire.flatbuffer import UnknownPartError
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage


class SlimTflite(Stage):
    """Lossless: what is equal is shared, what nobody reads is left out, and outputs stay bit-identical.

    Equal buffers, vectors, strings and tables are written once; names of inner tensors, calibration
    statistics, unused buffers and converters' own metadata are dropped; buffers that lie behind the tables
    move inside, where every runtime finds them. Signatures, tensor numbers, custom options and the user's
    metadata stay. The result is read again and compared with the original before it counts.

    Every optimized TFLite file is slimmed unless its variant says ``slim: false``; a file that cannot be
    slimmed is then kept as it is, and the report says why.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"slim": frozenset({"lossless"})}
    after: ClassVar[frozenset[str]] = frozenset({"quantize"})
    by_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {"slim": {}}

    scheme: Literal["lossless"] = Field("lossless", description="lossless: outputs stay bit-identical")
    best_effort: bool = Field(
        True, description="keep the file as it is, with a note, where it cannot be slimmed; false: fail"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Slim one file; its inputs and outputs stay what they are.

        Raises:
            StageError: when the file is damaged; also, without ``best_effort``, when it cannot be slimmed or
                the result would differ.
        """
        try:
            file = load(model.path)
        except UnknownPartError as error:
            return self._kept(model, error, context)
        try:
            result = slimmed(file)
        except StageError as error:
            return self._kept(model, error, context)
        context.progress(f"slimmed from {len(file.content):,} to {len(result):,} bytes")
        path = context.folder / "model.tflite"
        path.write_bytes(result)
        return model.model_copy(update={"path": path})

    def _kept(self, model: Model, error: StageError, context: Context) -> Model:
        if not self.best_effort:
            raise error
        path = context.folder / "model.tflite"
        path.write_bytes(model.path.read_bytes())
        context.note(f"not slimmed: {error.message}")
        return model.model_copy(update={"path": path})
