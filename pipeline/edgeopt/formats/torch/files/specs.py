"""Input and output specs of torch programs, and example inputs that match them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.specs import sizes_to_state
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def describe_inputs(program: "ExportedProgram", given: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Input specs of a program: ``given`` if not empty, otherwise read from its graph.

    A free batch axis becomes 1. Inputs of rank 4 are assumed to be NCHW images unless ``given`` declares
    otherwise.

    Raises:
        StageError: ``given`` does not match the program, or an axis other than the batch is free.
    """
    # The other placeholders are lifted parameters and buffers.
    user_inputs = set(program.graph_signature.user_inputs)
    declared = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user_inputs:
            value = node.meta["val"]
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            layout = "NCHW" if len(shape) == 4 else None
            dtype = dtype_name(value.dtype)
            declared.append(TensorSpec(name=node.name, shape=shape, dtype=dtype, layout=layout))
    specs = tuple(given) or tuple(declared)
    if len(specs) != len(declared):
        raise StageError(
            f"the program takes {len(declared)} inputs, but {len(specs)} are described",
            fix=f"describe one input for each of: {', '.join(spec.name for spec in declared)}",
        )
    fixed = tuple(fix_batch(spec) for spec in specs)
    for spec, own in zip(fixed, declared, strict=True):
        fits = len(spec.shape) == len(own.shape) and all(
            size is None or size == other for size, other in zip(own.shape, spec.shape, strict=True)
        )
        if not fits:
            raise StageError(
                f"input {spec.name!r} is described as {list(spec.shape)}, "
                f"but the program takes {list(own.shape)}",
                fix="export the program with a batch of 1 or a free batch axis, and describe that shape",
            )
    return fixed


def fix_batch(spec: TensorSpec) -> TensorSpec:
    """Replace a free batch axis by a batch of 1.

    Raises:
        StageError: an axis other than the first is free.
    """
    shape = (1, *spec.shape[1:]) if spec.shape[:1] == (None,) else spec.shape
    if None in shape:
        shown = ", ".join("?" if size is None else str(size) for size in shape)
        raise StageError(
            f"input {spec.name!r} has the shape [{shown}]: only the batch axis may be free",
            fix=sizes_to_state(spec.name, shape),
        )
    return spec.model_copy(update={"shape": shape})


def describe_outputs(values: object, like: Sequence[TensorSpec] = ()) -> tuple[TensorSpec, ...]:
    """Specs of the outputs that a model returned; names and layouts come from ``like`` if its length matches.

    Otherwise the keys of a dict are names.

    Raises:
        StageError: an output is not a tensor.
    """
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(values)
    # As the runtime of the source model names them: only a flat dict has names.
    flat = isinstance(values, Mapping) and len(leaves) == len(values)
    keys = [str(key) for key in values] if flat and isinstance(values, Mapping) else []
    specs = []
    for index, value in enumerate(leaves):
        if not isinstance(value, torch.Tensor):
            raise StageError(
                f"output {index} of the model is a {type(value).__name__}, not a tensor",
                fix="return only tensors from forward()",
            )
        known = like[index] if len(like) == len(leaves) else None
        name = keys[index] if keys else f"output_{index}" if len(leaves) > 1 else "output"
        name = known.name if known else name
        layout = known.layout if known else None
        specs.append(
            TensorSpec(name=name, shape=tuple(value.shape), dtype=dtype_name(value.dtype), layout=layout)
        )
    return tuple(specs)


def dtype_name(dtype: "torch.dtype") -> str:
    """Name of a dtype without its module, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def zeros(specs: Sequence[TensorSpec]) -> "tuple[torch.Tensor, ...]":
    """One tensor of zeros, or of its fixed value, per input; a free axis gets size 1."""
    import torch

    shapes = (tuple(1 if size is None else size for size in spec.shape) for spec in specs)
    return tuple(
        torch.from_numpy(np.full(shape, spec.value or 0, spec.dtype))
        for shape, spec in zip(shapes, specs, strict=True)
    )


def random(specs: Sequence[TensorSpec]) -> "list[torch.Tensor]":
    """One tensor of random numbers per input, the same in every call; zeros, or fixed values, of integers.

    Integers may be indices, for which only zero is certainly valid.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(zero.shape, generator=generator).to(zero.dtype)
        if zero.is_floating_point() and spec.value is None
        else zero
        for zero, spec in zip(zeros(specs), specs, strict=True)
    ]


def with_fixed(module: "torch.nn.Module", specs: Sequence[TensorSpec]) -> "torch.nn.Module":
    """The module with a constant for each input of a fixed value; its signature stays the same."""
    import torch

    fixed = {at: value for at, value in enumerate(zeros(specs)) if specs[at].value is not None}
    if not fixed:
        return module

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.module(*(fixed.get(at, value) for at, value in enumerate(inputs)))

    return Fixed().eval()


def remark_fixed(specs: Sequence[TensorSpec]) -> str:
    """A note on the inputs of fixed values; empty if there are none."""
    shown = ", ".join(f"{spec.name} ({spec.value:g})" for spec in specs if spec.value is not None)
    return f"inputs of a fixed value, which the converted model ignores: {shown}" if shown else ""
