"""Activation ranges of a graph: seen once, then given to the observers of as many preparations as needed."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.calibration import Calibrator, Histogram
from edgeopt.model import Array

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

Range: TypeAlias = tuple[float, float]

FEW = 8
"""Fewer samples than these give ranges that are little more than a guess."""


class Ranges(NamedTuple):
    """The range that integers should cover, for every floating-point value of a graph by node name."""

    values: Mapping[str, Range]
    samples: int

    def of(self, names: Iterable[str]) -> Range:
        """The range of several values that share one scale."""
        found = [self.values[name] for name in names]
        return min(low for low, _ in found), max(high for _, high in found)

    @property
    def remark(self) -> str:
        """What is to be said about so few samples; empty where there are enough."""
        if self.samples >= FEW:
            return ""
        several = "samples" if self.samples > 1 else "sample"
        return (
            f"calibrated with {self.samples} {several}: activation ranges are a guess, and what lies outside "
            "is clipped; give a hundred samples or more as 'data.calibration'"
        )


class _Watcher(Protocol):
    """Collects the values of one node, in constant memory."""

    def add(self, values: Array) -> None: ...

    def range(self, calibrator: Calibrator, *, percentile: float) -> Range: ...


class _LeastSquares:
    """The range of least squared error as torch searches it: from the extremes inwards, an end at a time."""

    def __init__(self) -> None:
        from torch.ao.quantization import HistogramObserver

        self.observer = HistogramObserver()

    def add(self, values: Array) -> None:
        import torch

        tensor = torch.from_numpy(values)
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError("a value is NaN or infinite")
        self.observer(tensor)

    def range(self, calibrator: Calibrator, *, percentile: float) -> Range:
        if float(self.observer.min_val) == float(self.observer.max_val):
            only = float(self.observer.min_val)
            return min(only, 0.0), max(only, 0.0)
        low, high = self.observer._non_linear_param_search()
        return float(low), float(high)


def see(
    module: "GraphModule", samples: Iterable[Sequence[Array]], calibrator: Calibrator, percentile: float
) -> Ranges:
    """Run a graph on calibration samples, in memory that does not grow with their number.

    Raises:
        StageError: there is no sample, or a value is not finite.
    """
    import torch

    watchers: dict[str, _Watcher] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: "Node") -> Any:
            value = super().run_node(n)
            seen = n.op not in ("get_attr", "output") and isinstance(value, torch.Tensor)
            if seen and value.is_floating_point():
                _add(watchers, n.name, value, calibrator, count + 1)
            return value

    recorder, count = Recorder(module), 0
    with torch.no_grad():
        for values in samples:
            recorder.run(*(torch.from_numpy(value) for value in values))
            count += 1
    if not count:
        raise StageError("the calibration data are empty", fix="correct 'data.calibration' in the recipe")
    ranges = {name: watcher.range(calibrator, percentile=percentile) for name, watcher in watchers.items()}
    return Ranges(ranges, count)


def _add(
    watchers: dict[str, _Watcher], name: str, value: "torch.Tensor", calibrator: Calibrator, sample: int
) -> None:
    if name not in watchers:
        watchers[name] = _LeastSquares() if calibrator == "mse" else Histogram()
    try:
        watchers[name].add(value.numpy())
    except ValueError as error:
        raise StageError(
            f"calibration sample {sample} is of no use: in {name}, {error}",
            fix="check that sample of 'data.calibration', and 'preprocess' of the model",
        ) from error


def give(
    prepared: "GraphModule", ranges: Ranges, name_of: "Callable[[Node], str]" = lambda node: str(node.name)
) -> None:
    """Give every observer its range, as if it had seen the calibration data; weights are seen now.

    Args:
        prepared: a graph with min-max observers, one of which may watch several values.
        ranges: of the same graph before it was prepared.
        name_of: what the value of a node of ``prepared`` is called in ``ranges``.
    """
    import torch

    modules = dict(prepared.named_modules(remove_duplicate=False))
    watched: dict[Any, list[str]] = {}
    for node in prepared.graph.nodes:
        observer = modules.get(str(node.target)) if node.op == "call_module" else None
        if observer is None or not hasattr(observer, "calculate_qparams"):
            continue
        source = node.args[0]
        if source.op == "get_attr":
            with torch.no_grad():
                observer(operator.attrgetter(str(source.target))(prepared))
        elif hasattr(observer, "min_val"):
            watched.setdefault(observer, []).append(name_of(source))
    for observer, names in watched.items():
        low, high = ranges.of(names)
        observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
