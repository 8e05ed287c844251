"""The table of operators: for each ONNX operator, the function that computes it in PyTorch.

A function takes the inputs of a node by position, None for an omitted one, and its attributes by keyword,
with the defaults of the specification (https://onnx.ai/onnx/operators). A keyword ``opset`` receives the
version of the operator set, ``count`` the number of outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])


class Operator(NamedTuple):
    """How one operator is computed."""

    call: Callable[..., Any]
    known: tuple[int, ...] = ()
    """Inputs that must not depend on the inputs of the model, such as shapes; they are passed as arrays."""
    maybe: tuple[int, ...] = ()
    """Inputs that are passed as arrays if they do not depend on the inputs of the model, else as tensors."""
    of_shape: bool = False
    """Whether the result depends on the shape of the input only, which is fixed."""


class Unsupported(ValueError):
    """A form of an operator that is not carried; the message completes 'node X: '."""


TABLE: dict[str, Operator] = {}
"""All operators, by name."""


def operator(
    *names: str, known: tuple[int, ...] = (), maybe: tuple[int, ...] = (), of_shape: bool = False
) -> Callable[[Call], Call]:
    """Add the decorated function to the table, under one name or several."""

    def add(call: Call) -> Call:
        TABLE.update(dict.fromkeys(names, Operator(call, known, maybe, of_shape)))
        return call

    return add
