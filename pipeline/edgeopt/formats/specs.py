"""Input and output specs from file headers."""

from edgeopt.model import Layout, TensorSpec

UNDECLARED = "the file does not declare its inputs: set model.inputs in the recipe"


def tensor(name: str, shape: tuple[int | None, ...], dtype: str, layout: Layout | None) -> TensorSpec:
    """The spec of an input or output; ``layout`` applies to rank 4 only."""
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)
