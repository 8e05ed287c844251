"""Weights in fewer than 8 bits, which TensorFlow Lite Micro decodes as it runs."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats.tflite.files import weight_coding
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import load, parse
from edgeopt.formats.tflite.files.weight_coding import Coding
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage

CODINGS: Mapping[str, tuple[Coding, ...]] = {
    "smallest": ("tables", "huffman"),
    "tables": ("tables",),
    "huffman": ("huffman",),
}


class CompressTflm(Stage):
    """Store the weights of an int8 file as codes, each layer in the form that is smallest; lossless.

    ``tables``: indices of 1 to 7 bits into a table of values, one for each scale. ``huffman``: codes whose
    length depends on how frequent a value is, with tables that layers share. An operator decodes the weights
    before each layer, into the arena, which grows by up to the weights of one layer. A layer that does not
    get smaller stays as it is.

    Only TensorFlow Lite Micro runs such a file. There, every run compares its outputs with those of the file
    before, bit by bit. Int8 weights have almost as many values as they can: ``coarsen`` them first.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"tflite"})
    produces: ClassVar[str] = "tflite"
    fulfils: ClassVar[Mapping[str, frozenset[str]]] = {"compress": frozenset({"tflm"})}
    after: ClassVar[frozenset[str]] = frozenset({"quantize", "coarsen", "distill"})
    runtimes: ClassVar[frozenset[str]] = weight_coding.DECODING

    scheme: Literal["tflm"] = Field("tflm", description="decoded by TensorFlow Lite Micro")
    coding: Literal["smallest", "tables", "huffman"] = Field(
        "smallest", description="tables of values, Huffman codes, or the smaller one for each layer"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Compress one file; inputs and outputs do not change.

        Raises:
            StageError: no layer gets smaller, or the weights are decoded differently.
        """
        file = load(model.path)
        layers = weight_coding.layers_of(graphs_of(file)[0])
        packed = weight_coding.packed(layers, CODINGS[self.coding])
        coded = {layer.operator: each for layer, each in zip(layers, packed, strict=True) if each is not None}
        if not coded:
            raise StageError(
                f"none of its {len(layers)} layers with int8 weights and activations gets smaller",
                fix="give the weights fewer values first, with 'coarsen: {bits: 4}'"
                if layers
                else "add 'quantize: int8' to the variant",
            )
        content = weight_coding.with_packed(file, coded)
        unpacked = graphs_of(parse(weight_coding.expanded(parse(content, file.name)), file.name))[0]
        for layer, other in zip(layers, weight_coding.layers_of(unpacked), strict=True):
            if not np.array_equal(layer.values, other.values):
                raise StageError(
                    f"the weights of operator {layer.operator} would be decoded differently",
                    fix="this is a bug in edgeopt: please report it with the file",
                )
        path = context.folder / "model.tflite"
        path.write_bytes(content)
        saved = [layer for layer in layers if layer.operator in coded]
        before = sum(layer.values.size for layer in saved)
        after = sum(len(each.codes) for each in coded.values())
        after += sum(map(len, {each.header for each in coded.values()}))
        largest = max(layer.values.size for layer in saved)
        context.note(
            f"compressed the weights of {len(saved)} of {len(layers)} layers from {before:,} to {after:,} B; "
            f"while a layer runs, its own take up to {largest:,} B more of the arena"
        )
        return model.model_copy(update={"path": path})
