"""The TFLite format, run by LiteRT, tflite-runtime and TensorFlow Lite Micro."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats import semantic_graph
from edgeopt.formats.tflite.files import breakdown, semantics
from edgeopt.formats.tflite.files.model_file import IDENTIFIER, load
from edgeopt.formats.tflite.files.weight_coding import DECODING, is_coded
from edgeopt.formats.tflite.graph import naming
from edgeopt.formats.tflite.graph.operators import operators_of, output_steps_of
from edgeopt.model import Model
from edgeopt.plugin.contents import Operator, SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format, LayerView
from edgeopt.plugin.layer_pair import Pair


class Tflite(Format):
    """A flatbuffer, https://ai.google.dev/edge/litert; read here without TensorFlow or LiteRT."""

    title: ClassVar[str] = "a TFLite file (.tflite)"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    artifact: ClassVar[bool] = True
    order: ClassVar[int] = 10
    runtime: ClassVar[str | None] = "litert"
    library: ClassVar[str] = "litert"
    casts: ClassVar[frozenset[str]] = frozenset({"QUANTIZE", "DEQUANTIZE"})
    magnifying: ClassVar[frozenset[str]] = frozenset({"SOFTMAX", "LOG_SOFTMAX", "LOGISTIC"})
    layers: ClassVar[LayerView | None] = LayerView("tflite", ("tflite",), "plain")

    def recognises(self, file: FileHead) -> bool:
        return file.start[4:8] == IDENTIFIER

    def read(self, path: Path, *, trust: bool) -> Source:
        return Source(model=Model(format=self.name, path=path))

    def breakdown(self, path: Path) -> SizeBreakdown:
        sizes = breakdown.read(path)
        pairs = zip(sizes.layers, naming.operator_names(path), strict=True)
        layers = tuple(layer.model_copy(update={"name": name}) for layer, name in pairs)
        return sizes.model_copy(update={"layers": layers})

    def operators(self, path: Path) -> tuple[Operator, ...]:
        pairs = zip(operators_of(load(path)), naming.operator_names(path), strict=True)
        return tuple(operator._replace(name=name) for operator, name in pairs)

    def runtimes(self, path: Path) -> frozenset[str]:
        return DECODING if is_coded(load(path)) else frozenset()

    def reads(self, path: Path) -> tuple[tuple[int, ...], ...]:
        return semantic_graph.reads(semantics.graphs_of(path))

    def output_steps(self, path: Path) -> tuple[float | None, ...]:
        return output_steps_of(load(path))

    def semantic_digest(self, path: Path) -> str:
        return semantic_graph.digest_of_graphs(self.name, semantics.graphs_of(path))

    def first_difference(self, before: Path, after: Path) -> str:
        return semantic_graph.first_difference(semantics.graphs_of(before), semantics.graphs_of(after))

    def open_layers(self, reference: Model, quantized: Model) -> Pair:
        from edgeopt.formats.tflite.graph.paired_layers import TflitePair

        return TflitePair(reference.path, quantized.path)
