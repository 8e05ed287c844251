"""Input and output specs from file headers."""

from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.model import Layout, TensorSpec

UNDECLARED = "the file does not declare its inputs: set model.inputs in the recipe"


def sizes_to_state(name: str, shape: Sequence[int | None]) -> str:
    """The way out for an input with free axes: one size per run of a recipe."""
    example = ", ".join(str(size or 96) for size in shape)
    return (
        f"state its size in the recipe, in model.inputs, such as {{name: {name}, shape: [{example}]}}; for "
        "several sizes, run the recipe once for each: --set 'model.inputs=[...]'"
    )


def missing_code(path: Path, what: str) -> UsageError:
    """The error for a file that needs ``what`` of the code of its author."""
    line = f"model: {{path: {path.name}, code: layers.py, trust: true}}"
    return UsageError(
        f"{path} needs {what}",
        fix=f"name the Python file that defines it in the recipe, {line}; or export the model with its "
        "graph, model.export('folder'), and use that folder",
    )


def tensor(name: str, shape: tuple[int | None, ...], dtype: str, layout: Layout | None) -> TensorSpec:
    """The spec of an input or output; ``layout`` applies to rank 4 only."""
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout if len(shape) == 4 else None)
