"""The error for layers that a runtime of PyTorch cannot quantize."""

from collections.abc import Sequence

from edgeopt.errors import StageError


class Unquantizable(StageError):
    """int8 was requested, but layers would stay in float.

    Args:
        layers: their names in the model.
        cause: why they cannot be quantized.
        format: the name of the format in recipes.
        shown: their names in the message, if different.
    """

    def __init__(self, layers: Sequence[str], cause: str, format: str, shown: Sequence[str] = ()) -> None:
        self.layers = tuple(layers)
        self.given = (self.layers, cause, format, tuple(shown))
        declared = ", ".join(f"{name!r}: float32" for name in layers)
        super().__init__(
            f"int8 was requested, but these layers would stay in float: {', '.join(shown or layers)}",
            fix=f"{cause}: keep them in float with layers: {{{declared}}}, or with scheme: mixed, "
            f"or put the variant in a recipe without {format}",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Unquantizable, self.given
