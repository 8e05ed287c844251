"""Element by element: arithmetic, comparisons, conversions of type."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.formats.torch.onnx_operators.table import TABLE, Operator, Unsupported, operator

if TYPE_CHECKING:
    from torch import Tensor

SAME = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "And": "logical_and",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "neg",
    "Not": "logical_not",
    "Or": "logical_or",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
    "Where": "where",
    "Xor": "logical_xor",
}
"""Operators that a function of torch computes as it is."""
ORDERED = {"Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le"}
"""Comparisons, of which the second value may be a number."""
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "int32",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float32",
    11: "float32",
    12: "int64",
    13: "int64",
    16: "float32",
}
"""The type in which each ONNX type is computed: real numbers in float32, unsigned ones wide enough."""


COMPUTED = {"float16": "float32", "float64": "float32", "bfloat16": "float32"} | {
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
}


def computed(dtype: str) -> str:
    """The type in which values of a type are computed, both as in NumPy."""
    return COMPUTED.get(dtype, dtype)


def _torch(name: str) -> Callable[..., Any]:
    def call(*values: "Tensor") -> Any:
        import torch

        return getattr(torch, name)(*values)

    return call


TABLE.update({name: Operator(_torch(function)) for name, function in SAME.items()})


def number(value: Any, other: Any) -> Any:
    """A known single value as a number, as a program written in PyTorch has it; others as tensors."""
    import torch

    if not isinstance(value, np.ndarray):
        return value
    # A number takes the type of the other operand, and does not add axes to it.
    if value.size == 1 and isinstance(other, torch.Tensor) and value.ndim <= other.ndim:
        same_kind = other.is_floating_point() == (value.dtype.kind == "f")
        if same_kind and value.dtype.kind != "b":
            return value.reshape(()).item()
    return torch.from_numpy(np.array(value))


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands, at least one of them a tensor."""
    left = number(a, b)
    return left, number(b, left)


@operator("Add", maybe=(0, 1))
def add(a: Any, b: Any) -> Any:
    left, right = _pair(a, b)
    return left + right


@operator("Sub", maybe=(0, 1))
def sub(a: Any, b: Any) -> Any:
    left, right = _pair(a, b)
    return left - right


@operator("Mul", maybe=(0, 1))
def mul(a: Any, b: Any) -> Any:
    left, right = _pair(a, b)
    return left * right


@operator("Div", maybe=(0, 1))
def div(a: Any, b: Any) -> Any:
    import torch

    left, right = _pair(a, b)
    whole = all(not v.is_floating_point() for v in (left, right) if isinstance(v, torch.Tensor))
    return torch.div(left, right, rounding_mode="trunc") if whole else left / right


@operator("Pow", maybe=(1,))
def power(base: "Tensor", exponent: Any) -> "Tensor":
    import torch

    # The exponent may have another type, such as an integer for real numbers; the base decides.
    if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.ndim <= base.ndim:
        value = exponent.reshape(()).item()
        if base.is_floating_point():
            return base.sqrt() if value == 0.5 else base.square() if value == 2 else torch.pow(base, value)
    other = torch.as_tensor(exponent)
    return torch.pow(base, other).to(base.dtype)


@operator("Mod")
def mod(a: "Tensor", b: "Tensor", *, fmod: int = 0) -> "Tensor":
    import torch

    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _compare(name: str) -> Callable[..., Any]:
    def call(a: "Tensor", b: Any) -> Any:
        import torch

        return getattr(torch, name)(a, number(b, a))

    return call


TABLE.update({name: Operator(_compare(function), maybe=(1,)) for name, function in ORDERED.items()})


def _several(*values: Any, limit: str, pick: str) -> Any:
    import torch

    result, *others = values
    for other in others:
        left, right = _pair(result, other)
        number = next((v for v in (left, right) if not isinstance(v, torch.Tensor)), None)
        tensor = left if isinstance(left, torch.Tensor) else right
        result = getattr(torch, pick)(left, right) if number is None else tensor.clamp(**{limit: number})
    return torch.as_tensor(result)


MANY = tuple(range(16))


@operator("Max", maybe=MANY)
def maximum(*values: Any) -> Any:
    return _several(*values, limit="min", pick="maximum")


@operator("Min", maybe=MANY)
def minimum(*values: Any) -> Any:
    return _several(*values, limit="max", pick="minimum")


@operator("Sum")
def total(*values: "Tensor") -> "Tensor":
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


@operator("Mean")
def mean(*values: "Tensor") -> "Tensor":
    return total(*values) / len(values)


@operator("Cast")
def cast(x: "Tensor", *, to: int, saturate: int = 1, round_mode: str = "up") -> "Tensor":
    import torch

    if to not in DTYPES:
        raise Unsupported(f"it converts to type {to} of ONNX, which PyTorch cannot compute with")
    return x.to(getattr(torch, DTYPES[to]))


@operator("CastLike")
def cast_like(x: "Tensor", like: "Tensor", *, saturate: int = 1, round_mode: str = "up") -> "Tensor":
    return x.to(like.dtype)


@operator("IsInf")
def is_inf(x: "Tensor", *, detect_negative: int = 1, detect_positive: int = 1) -> "Tensor":
    positive, negative = x == float("inf"), x == float("-inf")
    return (positive & bool(detect_positive)) | (negative & bool(detect_negative))
