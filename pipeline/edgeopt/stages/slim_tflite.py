"""Lossless size reduction of TFLite files."""

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
    """Deduplicate data and drop unused data; outputs stay bit-identical.

    Equal buffers, vectors, strings and tables are stored once; names of intermediate tensors, calibration
    statistics, unused buffers and converter metadata are dropped; buffers appended after the flatbuffer are
    moved inside, where every runtime finds them. Signatures, tensor indices, custom options and user
    metadata are preserved. The result is parsed again and compared with the original.

    Every optimized TFLite file is slimmed unless its variant sets ``slim: false``. A file that cannot be
    slimmed is then copied unchanged, with a note in the report.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"slim": frozenset({"lossless"})}
    after: ClassVar[frozenset[str]] = frozenset({"quantize", "coarsen", "distill", "compress"})
    by_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {"slim": {}}

    scheme: Literal["lossless"] = Field("lossless", description="lossless: outputs stay bit-identical")
    best_effort: bool = Field(
        True, description="keep a file that cannot be slimmed unchanged, with a note; false: fail"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Slim one file; inputs and outputs do not change.

        Raises:
            StageError: the file is damaged; without ``best_effort``, also if it cannot be slimmed or the
                result would differ.
        """
        try:
            file = load(model.path)
        except UnknownPartError as error:
            return self._unchanged(model, error, context)
        try:
            result = slimmed(file)
        except StageError as error:
            return self._unchanged(model, error, context)
        context.progress(f"slimmed from {len(file.content):,} to {len(result):,} bytes")
        path = context.folder / "model.tflite"
        path.write_bytes(result)
        return model.model_copy(update={"path": path})

    def _unchanged(self, model: Model, error: StageError, context: Context) -> Model:
        if not self.best_effort:
            raise error
        path = context.folder / "model.tflite"
        path.write_bytes(model.path.read_bytes())
        context.note(f"not slimmed: {error.message}")
        return model.model_copy(update={"path": path})
