"""Activation ranges of a graph: observed once, then assigned to the observers of each prepared graph."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.calibration import Calibrator, Histogram, bounded
from edgeopt.model import Array

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

Range: TypeAlias = tuple[float, float]

MIN_SAMPLES = 8
"""Number of samples below which ranges are unreliable."""


class Ranges(NamedTuple):
    """Range to be covered by integers, for every floating-point value of a graph by node name."""

    values: Mapping[str, Range]
    samples: int
    unbounded: frozenset[str] = frozenset()
    """Nodes with values that stand for infinity, which are not in their range."""

    def of(self, names: Iterable[str]) -> Range:
        """Common range of several values that share one scale."""
        ranges = [self.values[name] for name in names]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    @property
    def remark(self) -> str:
        """Warning about too few samples; empty if there are enough."""
        if self.samples >= MIN_SAMPLES:
            return ""
        noun = "samples" if self.samples > 1 else "sample"
        return (
            f"calibrated with {self.samples} {noun}: activation ranges are unreliable, and values outside "
            "them are clipped; provide at least 100 samples in 'data.calibration'"
        )


class _Observer(Protocol):
    """Accumulator for the values of one node, in constant memory."""

    is_unbounded: bool

    def add(self, values: Array) -> None: ...

    def range(self, calibrator: Calibrator, *, percentile: float) -> Range: ...


class _LeastSquares:
    """Range of least squared error, found by torch's search from the extremes inwards, one end at a time."""

    def __init__(self) -> None:
        from torch.ao.quantization import HistogramObserver

        self.observer = HistogramObserver()
        self.is_unbounded = False

    def add(self, values: Array) -> None:
        import torch

        finite = bounded(values)
        self.is_unbounded |= finite.size < values.size
        if finite.size:
            self.observer(torch.from_numpy(finite))

    def range(self, calibrator: Calibrator, *, percentile: float) -> Range:
        # torch's search divides by the width of the histogram, which is zero for a constant.
        if float(self.observer.min_val) == float(self.observer.max_val):
            only = float(self.observer.min_val)
            return min(only, 0.0), max(only, 0.0)
        low, high = self.observer._non_linear_param_search()
        return float(low), float(high)


def observe(
    module: "GraphModule", samples: Iterable[Sequence[Array]], calibrator: Calibrator, percentile: float
) -> Ranges:
    """Run a graph on calibration samples and determine the range of every value.

    Memory does not grow with the number of samples.

    Raises:
        StageError: there is no sample, or a value is not finite.
    """
    import torch

    observers: dict[str, _Observer] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: "Node") -> Any:
            value = super().run_node(n)
            is_activation = n.op not in ("get_attr", "output") and isinstance(value, torch.Tensor)
            if is_activation and value.is_floating_point():
                _add(observers, n.name, value, calibrator, count + 1)
            return value

    recorder, count = Recorder(module), 0
    with torch.no_grad():
        for values in samples:
            recorder.run(*(torch.from_numpy(value) for value in values))
            count += 1
    if not count:
        raise StageError("the calibration data is empty", fix="correct 'data.calibration' in the recipe")
    ranges = {name: observer.range(calibrator, percentile=percentile) for name, observer in observers.items()}
    unbounded = frozenset(name for name, observer in observers.items() if observer.is_unbounded)
    return Ranges(ranges, count, unbounded)


def _add(
    observers: dict[str, _Observer], name: str, value: "torch.Tensor", calibrator: Calibrator, sample: int
) -> None:
    if name not in observers:
        observers[name] = _LeastSquares() if calibrator == "mse" else Histogram()
    try:
        observers[name].add(value.numpy())
    except ValueError as error:
        raise StageError(
            f"calibration sample {sample} is unusable: in {name}, {error}",
            fix="check that sample of 'data.calibration' and the model's 'preprocess'",
        ) from error


def assign(
    prepared: "GraphModule", ranges: Ranges, name_of: "Callable[[Node], str]" = lambda node: str(node.name)
) -> None:
    """Assign every activation observer its range, and let every weight observer observe its weight.

    Args:
        prepared: a graph with min-max observers; one observer may serve several values.
        ranges: ranges of the same graph before it was prepared.
        name_of: maps a node of ``prepared`` to its name in ``ranges``.
    """
    import torch

    modules = dict(prepared.named_modules(remove_duplicate=False))
    # Inputs of an addition or concatenation may share one observer, and so one scale. A product with a number
    # shares that of its input, too, but the kernel computes its scale from that number.
    names_of: dict[Any, list[str]] = {}
    for node in prepared.graph.nodes:
        observer = modules.get(str(node.target)) if node.op == "call_module" else None
        if observer is None or not hasattr(observer, "calculate_qparams"):
            continue
        source = node.args[0]
        if source.op == "get_attr":
            # A weight is known exactly, and its range does not depend on samples.
            with torch.no_grad():
                observer(operator.attrgetter(str(source.target))(prepared))
        elif hasattr(observer, "min_val") and not (observer in names_of and _by_number(source)):
            names_of.setdefault(observer, []).append(name_of(source))
    for observer, names in names_of.items():
        low, high = ranges.of(names)
        observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)


def _by_number(node: "Node") -> bool:
    """Whether a node adds a number to a value, or multiplies it by one."""
    return node.target in (operator.add, operator.mul) and len(node.all_input_nodes) == 1
