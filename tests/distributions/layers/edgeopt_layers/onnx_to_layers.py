"""ONNX to a list of layers."""

import json
from pathlib import Path
from typing import ClassVar

from edgeopt.errors import StageError
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage
from edgeopt_layers.numpy_layers import OPERATORS


class OnnxToLayers(Stage):
    """Write the nodes of a float ONNX graph as layers, and its initializers as weights."""

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    produces: ClassVar[str] = "layers"
    requires: ClassVar[tuple[str, ...]] = ("onnx",)

    def run(self, model: Model, context: Context) -> Model:
        """Convert one model.

        Raises:
            StageError: it has an operator that the runtime does not know.
        """
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(model.path).graph
        for node in graph.node:
            if node.op_type not in OPERATORS:
                raise StageError(f"node {node.name}: {node.op_type} has no layer", fix="replace the layer")
        tensors = [(each.name, numpy_helper.to_array(each)) for each in graph.initializer]
        document = {
            "layers": [
                {
                    "kind": node.op_type,
                    "inputs": list(node.input),
                    "output": node.output[0],
                    "options": {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute},
                }
                for node in graph.node
            ],
            "weights": [[name, list(array.shape)] for name, array in tensors],
            "inputs": [[spec.name, list(spec.shape)] for spec in model.inputs],
            "outputs": [[spec.name, list(spec.shape)] for spec in model.outputs],
        }
        path = context.folder / "model.layers"
        path.write_text(json.dumps(document, separators=(",", ":")), "utf-8")
        with path.with_suffix(".weights").open("wb") as file:
            for _, array in tensors:
                file.write(array.astype("<f4").tobytes())
        return model.model_copy(update={"format": self.produces, "path": Path(path)})
