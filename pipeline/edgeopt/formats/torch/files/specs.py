"""What goes into and comes out of a torch program, as specs, and inputs that fit them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.errors import StageError
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def describe_inputs(program: "ExportedProgram", given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What a program takes: ``given`` where the source says it, otherwise read from its graph.

    A free batch axis becomes 1. Images of rank 4 are taken to be NCHW unless ``given`` says otherwise.

    Raises:
        StageError: when ``given`` does not fit, or another axis than the batch is free.
    """
    wanted = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta["val"]
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            layout = "NCHW" if len(shape) == 4 else None
            dtype = dtype_name(value.dtype)
            found.append(TensorSpec(name=node.name, shape=shape, dtype=dtype, layout=layout))
    specs = tuple(given) or tuple(found)
    if len(specs) != len(found):
        raise StageError(
            f"the program takes {len(found)} inputs, but {len(specs)} are described",
            fix=f"describe one input for each of: {', '.join(spec.name for spec in found)}",
        )
    fixed = tuple(fix_batch(spec) for spec in specs)
    for spec, own in zip(fixed, found, strict=True):
        fits = len(spec.shape) == len(own.shape) and all(
            size is None or size == other for size, other in zip(own.shape, spec.shape, strict=True)
        )
        if not fits:
            raise StageError(
                f"input {spec.name!r} is described as {list(spec.shape)}, "
                f"the program takes {list(own.shape)}",
                fix="export the program with a batch of 1 or a free batch axis, and describe that shape",
            )
    return fixed


def fix_batch(spec: TensorSpec) -> TensorSpec:
    """The same input with a batch of 1.

    Raises:
        StageError: when an axis other than the first is free, or the batch is another number.
    """
    shape = (1, *spec.shape[1:]) if spec.shape[:1] == (None,) else spec.shape
    if None in shape:
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise StageError(
            f"input {spec.name!r} has the shape [{shown}]: only the batch axis may be free",
            fix="give the full shape of one sample in the recipe",
        )
    return spec.model_copy(update={"shape": shape})


def describe_outputs(values: object, like: Sequence[TensorSpec] = ()) -> tuple[TensorSpec, ...]:
    """Specs of what a model returned; names are taken over from ``like`` where it fits.

    Raises:
        StageError: when something that is not a tensor was returned.
    """
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(values)
    specs = []
    for index, value in enumerate(leaves):
        if not isinstance(value, torch.Tensor):
            raise StageError(
                f"output {index} of the model is a {type(value).__name__}, not a tensor",
                fix="let forward() return tensors only",
            )
        known = like[index] if len(like) == len(leaves) else None
        name = known.name if known else f"output_{index}" if len(leaves) > 1 else "output"
        layout = known.layout if known else None
        specs.append(
            TensorSpec(name=name, shape=tuple(value.shape), dtype=dtype_name(value.dtype), layout=layout)
        )
    return tuple(specs)


def dtype_name(dtype: "torch.dtype") -> str:
    """``torch.float32`` as ``float32``."""
    return str(dtype).removeprefix("torch.")


def zeros(specs: Sequence[TensorSpec]) -> "tuple[torch.Tensor, ...]":
    """One zero tensor per input; a free axis counts 1."""
    import torch

    shapes = (tuple(1 if size is None else size for size in spec.shape) for spec in specs)
    return tuple(torch.from_numpy(np.zeros(s, spec.dtype)) for s, spec in zip(shapes, specs, strict=True))
