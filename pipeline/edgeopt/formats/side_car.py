"""The JSON record beside an artifact: the names of its layers in the source model, which its file lacks."""

from collections.abc import Sequence
from pathlib import Path

from edgeopt.formats.layer_names import SourceNames
from edgeopt.formats.wire import bounded
from edgeopt.plugin.contents import SizeBreakdown


def record_of(path: Path) -> Path:
    """The record of the model at ``path``, which may not exist."""
    return path.with_name(f"{path.name}.json")


class LayerRecord:
    """The names that the record of a file holds; none if there is no record of exactly this file.

    Args:
        path: the file.
        digest: its digest, as in the record.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.operators: tuple[str, ...] = ()
        self.names = SourceNames()
        file = record_of(path)
        try:
            record = bounded.json_value(file.read_bytes(), file.name) if file.is_file() else None
        except (OSError, ValueError):
            return
        if isinstance(record, dict) and record.get("digest") == digest:
            self.operators = _texts(record.get("operators"))
            self.names = SourceNames(_texts(record.get("layers")))

    def named(self, sizes: SizeBreakdown) -> SizeBreakdown:
        """A size breakdown with the names of the source."""
        names = self.of([layer.name for layer in sizes.layers])
        layers = (
            layer.model_copy(update={"name": name}) for layer, name in zip(sizes.layers, names, strict=True)
        )
        return sizes.model_copy(update={"layers": tuple(layers)})

    def of(self, operators: Sequence[str]) -> Sequence[str]:
        """The names of all operators of the file, from those in the file."""
        if len(self.operators) == len(operators):
            return self.operators
        return [self.names.of(name) for name in operators]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
