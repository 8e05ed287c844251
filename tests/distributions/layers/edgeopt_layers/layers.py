"""The format: ``model.layers`` (JSON) and ``model.weights`` (float32, one tensor after the other)."""

import json
from pathlib import Path
from typing import ClassVar

from edgeopt.errors import StageError, UsageError
from edgeopt.plugin import FileHead, Format, Operator


class Layers(Format):
    """Operators as JSON, weights beside it."""

    title: ClassVar[str] = "a list of layers (.layers and .weights)"
    suffixes: ClassVar[tuple[str, ...]] = (".layers",)
    artifact: ClassVar[bool] = True
    runtime: ClassVar[str | None] = "numpy_layers"

    def recognises(self, file: FileHead) -> bool:
        return file.start.startswith(b'{"layers":')

    def files(self, path: Path) -> tuple[Path, ...]:
        weights = path.with_suffix(".weights")
        if not weights.is_file():
            raise UsageError(f"{weights} is missing: {path.name} has its weights there")
        return path, weights

    def operators(self, path: Path) -> tuple[Operator, ...]:
        try:
            model = json.loads(path.read_text("utf-8"))
            weights = {name for name, _ in model["weights"]}
            return tuple(
                Operator(
                    kind=layer["kind"],
                    name=layer["output"],
                    version=1,
                    custom=False,
                    inputs=("float32",) * len(layer["inputs"]),
                    constant=tuple(name in weights for name in layer["inputs"]),
                    outputs=("float32",),
                    working=0,
                    shapes=(),
                )
                for layer in model["layers"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(f"{path.name} is damaged: {error}") from error
