"""Rewriting of a graph in the plain form into operators that litert-torch converts exactly."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeopt.formats.torch.graph.graph_editor import GraphEditor
from edgeopt.formats.torch.graph.litert.filling import mask_filled_rows
from edgeopt.formats.torch.graph.litert.operand_order import (
    commute_constant,
    drop_expansion,
    multiply_square,
)
from edgeopt.formats.torch.graph.litert.padding import pad_as_image
from edgeopt.formats.torch.graph.litert.prelu import choose_larger
from edgeopt.formats.torch.graph.litert.resizing import multiply_resized, select_nearest
from edgeopt.formats.torch.graph.litert.sorting import select_largest
from edgeopt.formats.torch.graph.litert.transposed_convolutions import crop_transposed_convolution
from edgeopt.formats.torch.graph.padding import repeat_ends
from edgeopt.formats.torch.lab.engine import one_thread

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

RULES: "tuple[Callable[[GraphEditor, Node], bool], ...]" = (
    crop_transposed_convolution,
    commute_constant,
    drop_expansion,
    multiply_square,
    choose_larger,
    select_nearest,
    multiply_resized,
    select_largest,
    mask_filled_rows,
    pad_as_image,
    repeat_ends,
)
"""Each inspects one node and returns whether it changed the graph."""


def for_tflite(
    module: "GraphModule", inputs: "Sequence[torch.Tensor]", names: Sequence[str]
) -> "GraphModule":
    """The same graph with other operators; ``inputs`` are examples, ``names`` the names of the inputs."""
    import torch

    with torch.no_grad(), one_thread():
        editor = GraphEditor(module, tuple(inputs))
        editor.infer_shapes()
        for node in list(editor.graph.nodes):
            if node.op == "call_function":
                any(rule(editor, node) for rule in RULES)
        editor.remove_unused()
        return editor.finish(names)
