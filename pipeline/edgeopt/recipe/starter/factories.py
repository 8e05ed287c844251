"""Functions and classes that may build the network of a checkpoint, by how well they fit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from edgeopt.config.code_folders import SOURCES
from edgeopt.recipe.starter.networks import Definition, Network, Sizes, definitions

MAX_FILES = 300
MAX_SHOWN = 4
WRAPPERS = ("module", "model", "net", "network", "_orig_mod")
"""What wrappers and training scripts put in front of all names of a checkpoint."""
COUNTER = "num_batches_tracked"
UNKNOWN_FIT = 0.3
"""How well a function fits whose network the code does not show: better than one that clearly does not."""

Shapes = Mapping[str, tuple[int, ...]]


class Candidate(NamedTuple):
    """A function or class in a file, and how well it fits the weights."""

    name: str
    """``file.py:name``."""
    fitting: int | None = None
    """The number of parts of the network that the weights have as well; None: unknown."""
    parts: int = 0
    """The number of parts of the weights."""

    def __str__(self) -> str:
        return (
            self.name if self.fitting is None else f"{self.name} ({self.fitting} of {self.parts} parts fit)"
        )


def candidates(*folders: Path, weights: Shapes | None = None) -> list[Candidate]:
    """The networks in the Python files of some folders, the most likely first; no code is run.

    Args:
        weights: shapes of the tensors of the checkpoint; with these, the order is by how well their names and
            shapes fit the code. Parts are the first parts of names, such as ``layer1`` and ``fc``.
    """
    files = dict.fromkeys(file for folder in folders for file in _files(folder))
    rows: list[tuple[float, int, Candidate]] = []
    for each in definitions(list(islice(files, MAX_FILES))):
        fit = _Fit.of(each.network, weights) if weights and each.network is not None else None
        if fit is not None and not fit.fitting:
            continue  # another network
        # Blocks of a network take arguments, the network itself often none.
        rows.append((-(fit.score if fit else UNKNOWN_FIT), each.required, _candidate(each, fit)))
    return [row[2] for row in sorted(rows, key=lambda row: row[:2])][:MAX_SHOWN]


def _candidate(definition: Definition, fit: "_Fit | None") -> Candidate:
    name = f"{definition.file}:{definition.name}"
    return Candidate(name, fit.fitting, fit.parts) if fit else Candidate(name)


class _Fit(NamedTuple):
    """How well the names and shapes of a checkpoint fit a network."""

    score: float
    """1: every part fits; less for each that does not, down to below 0."""
    fitting: int
    parts: int

    @classmethod
    def of(cls, network: Network, weights: Shapes) -> "_Fit":
        """The best fit, with or without a prefix that all names have."""
        return max((cls._of(network, each) for each in _unwrapped(weights)), key=lambda fit: fit.score)

    @classmethod
    def _of(cls, network: Network, weights: Shapes) -> "_Fit":
        parts = dict.fromkeys(name.partition(".")[0] for name in weights)
        known = [part for part in parts if part in network.names]
        wrong = sum(
            not _agree(sizes, weights, part) for part, sizes in network.layers.items() if part in parts
        )
        absent = sum(part not in parts for part in network.layers)
        score = (len(known) - wrong) / len(parts) - 0.5 * absent / max(1, len(network.layers))
        if network.repeats and (counted := _repeats(weights)):
            score += 0.25 if network.repeats == counted[: len(network.repeats)] else -0.25
        return cls(score, len(known) - wrong, len(parts))


def _unwrapped(weights: Shapes) -> Iterator[Shapes]:
    """The weights without counters, and without the prefixes that all their names have."""
    left = {name: shape for name, shape in weights.items() if not name.endswith(COUNTER)} or dict(weights)
    yield left
    while len({name.partition(".")[0] for name in left}) == 1 and next(iter(left)).startswith(WRAPPERS):
        left = {name.partition(".")[2]: shape for name, shape in left.items()}
        if not all(left):
            return
        yield left


def _agree(sizes: Sizes, weights: Shapes, part: str) -> bool:
    """Whether the weight of a layer may have the sizes that the code gives it."""
    shape = weights.get(f"{part}.weight")
    if shape is None or not sizes:
        return True
    return len(shape) == len(sizes) and all(
        size in (None, actual) for size, actual in zip(sizes, shape, strict=True)
    )


def _repeats(weights: Shapes) -> tuple[int, ...]:
    """How many numbered blocks each part has, such as 3, 4, 6, 3 of a ResNet34; only parts with any."""
    numbers = {tuple(name.split(".")[:2]) for name in weights if name.count(".") > 1}
    counts = Counter(part for part, number in numbers if number.isdecimal())
    return tuple(
        counts[part] for part in dict.fromkeys(name.partition(".")[0] for name in weights) if counts[part]
    )


def _files(folder: Path) -> Iterator[Path]:
    """The Python files of a folder and of the packages in it, without tests and hidden folders."""
    for place in (folder, folder / SOURCES):
        for pattern in ("*.py", "*/*.py", "*/*/*.py"):
            for file in sorted(place.glob(pattern)):
                inside = file.relative_to(place).parts
                if not any(part.startswith((".", "test")) or part == "site-packages" for part in inside):
                    yield file
