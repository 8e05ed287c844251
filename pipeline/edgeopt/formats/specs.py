"""Inputs and outputs as headers describe them."""

from edgeopt.model import Layout, TensorSpec

UNTOLD = "the file does not tell what goes in: give model.inputs in the recipe"


def tensor(name: str, shape: tuple[int | None, ...], dtype: str, layout: Layout | None) -> TensorSpec:
    """An input or output; only one of rank 4 has a layout."""
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)
