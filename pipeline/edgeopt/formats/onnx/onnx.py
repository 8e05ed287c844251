"""The ONNX format, run by ONNX Runtime."""

from pathlib import Path
from typing import ClassVar

from edgeopt.formats import semantic_graph
from edgeopt.formats.onnx.files import breakdown, header, semantics
from edgeopt.model import Model
from edgeopt.plugin.contents import SizeBreakdown, Source
from edgeopt.plugin.format import FileHead, Format, LayerView
from edgeopt.plugin.layer_pair import Pair


class Onnx(Format):
    """A protobuf message, https://onnx.ai; its header is read here without the package onnx."""

    title: ClassVar[str] = "an ONNX file (.onnx)"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    artifact: ClassVar[bool] = True
    order: ClassVar[int] = 20
    runtime: ClassVar[str | None] = "onnxruntime"
    library: ClassVar[str] = "onnx"
    casts: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear", "DequantizeLinear"})
    layers: ClassVar[LayerView | None] = LayerView("onnx", ("onnx",), "plain")

    def recognises(self, file: FileHead) -> bool:
        return not file.is_folder and header.is_onnx(file.path)

    def files(self, path: Path) -> tuple[Path, ...]:
        return header.files(path)

    def placed(self, path: Path, target: Path) -> dict[Path, Path]:
        # The file names those that hold its weights: they keep their names.
        return {file: target if file == path else target.with_name(file.name) for file in self.files(path)}

    def read(self, path: Path, *, trust: bool) -> Source:
        return header.read(path)

    def breakdown(self, path: Path) -> SizeBreakdown:
        return breakdown.read(path)

    def reads(self, path: Path) -> tuple[tuple[int, ...], ...]:
        return semantic_graph.reads(semantics.graphs_of(path)[:1])  # the others are local functions

    def semantic_digest(self, path: Path) -> str:
        return semantic_graph.digest_of_graphs(self.name, semantics.graphs_of(path))

    def first_difference(self, before: Path, after: Path) -> str:
        return semantic_graph.first_difference(semantics.graphs_of(before), semantics.graphs_of(after))

    def open_layers(self, reference: Model, quantized: Model) -> Pair:
        from edgeopt.formats.onnx.graph.paired_layers import OnnxPair

        return OnnxPair(reference.path, quantized.path)
