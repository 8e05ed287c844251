"""Static int8 quantization of an exported program: options and search, shared by FX and pt2e."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.errors import StageError
from edgeopt.formats.calibration import MIXED, Calibrator, spread
from edgeopt.formats.masks import NOTE as MASKS
from edgeopt.formats.sentinels import NOTE as SENTINELS
from edgeopt.formats.torch.graph import masks as torch_masks
from edgeopt.formats.torch.graph import sentinels as torch_sentinels
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import overrides as torch_overrides
from edgeopt.formats.torch.quantize.overrides import Quantizable
from edgeopt.formats.torch.quantize.ranges import Ranges
from edgeopt.formats.torch.quantize.unquantizable import Unquantizable
from edgeopt.model import Array, Model, Outputs, TensorSpec
from edgeopt.plugin import Context, Worker
from edgeopt.stages._judging import search_samples
from edgeopt.stages._search import JOINED, Searching, mixed_note, search

if TYPE_CHECKING:
    from torch.fx import GraphModule


VOLUMES = frozenset({"conv3d", "conv_transpose3d"})


class TorchInt8(Searching):
    """Options of static int8, and of ``mixed``: int8 with the fewest layers in float."""

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"int8", "mixed"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"

    scheme: Literal["int8", "mixed"] = Field(
        "int8", description="int8 weights and activations; mixed: int8 with max_drop"
    )
    io: Literal["float32", "int8"] = Field(
        "float32", description="dtype of inputs and outputs; int8 programs of PyTorch support float32 only"
    )
    per_channel: bool = Field(True, description="one weight scale per output channel, not per layer")
    calibrator: Calibrator = Field(
        "mse",
        description="how activation ranges are chosen; mse: least squared error, by torch's search",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="percent of the values inside the range, for percentile"
    )
    layers: dict[str, Literal["int8", "float32"]] = Field(
        {}, description="precision by layer name or pattern, such as {layer1.0.*: float32}"
    )

    @field_validator("io")
    @classmethod
    def _float_only(cls, io: str) -> str:
        if io != "float32":
            raise ValueError(f"the inputs and outputs of int8 programs of PyTorch are float32, not {io}")
        return io

    def kept_in_float(self, program: "Program", model: Model, context: Context) -> frozenset[str]:
        """The layers that the search leaves in float; none without max_drop."""
        if program.is_mixed:
            context.note(mixed_note(program.spread))
        if program.masks:
            context.note(MASKS)
        if program.sentinels.difference(program.masks):
            context.note(SENTINELS)
        if program.computed:
            names = ", ".join(layer.name for layer in program.computed)
            context.note(f"layers whose weights are computed, or not of type float32, stay in float: {names}")
        if self.allowed_drop is None:
            return frozenset()
        program.samples, labels = search_samples(model, context)
        while True:
            try:
                return search(
                    program, labels, max_drop=self.allowed_drop, budget=self.budget, context=context
                )
            except Unquantizable as error:
                program.leave_in_float(error, context)


class Program(ABC):
    """One program, quantized repeatedly with different layers left in float."""

    def __init__(
        self,
        options: TorchInt8,
        graph: "GraphModule",
        inputs: Sequence[TensorSpec],
        trial: Path,
        kinds: Iterable[str],
    ) -> None:
        """``trial``: path for each candidate; ``kinds``: operators to quantize."""
        self.options = options
        self.graph = graph
        self.inputs = inputs
        self.trial = trial
        self.ranges = Ranges({}, 0)
        self.samples: list[tuple[Array, ...]] = []
        self.kinds = kinds = frozenset(kinds)
        self.all = torch_overrides.quantizable(graph, kinds)
        self.joined = torch_overrides.joined_outputs(graph, kinds)
        self.masks = torch_masks.masked(graph)
        self.computed = [layer for layer in self.all if not layer.elements or not _is_float32(graph, layer)]
        requested = torch_overrides.precisions(self.all, options.layers)
        self.float = frozenset(name for name, precision in requested.items() if precision == "float32")
        self.float |= {layer.name for layer in self.computed}

    @abstractmethod
    def make(self, raised: frozenset[str]) -> Path:
        """Write a candidate with the layers of the options and ``raised`` in float."""

    @abstractmethod
    def load(self, path: Path) -> Any:
        """Load a candidate as a callable."""

    def refuse_volumes(self, exempt: set[str], format: str) -> None:
        """Raise for convolutions of volumes: neither qnnpack nor XNNPACK has a kernel.

        Raises:
            Unquantizable: there is one that is not in ``exempt``.
        """
        names = [layer.name for layer in self.all if layer.kind in VOLUMES and layer.node not in exempt]
        if names:
            raise Unquantizable(names, "its runtime has no int8 convolution of volumes", format)

    def leave_in_float(self, error: Unquantizable, context: Context) -> None:
        """Leave the layers of an error in float.

        Raises:
            Unquantizable: they are no layers, or in float already.
        """
        unsupported = frozenset(error.layers) & frozenset(self.names.values()) - self.float
        if not unsupported:
            raise error
        self.float |= unsupported
        context.note(
            f"this format cannot quantize these layers, which stay in float: {', '.join(sorted(unsupported))}"
        )

    @property
    def layers(self) -> Mapping[str, int]:
        costs = {layer.name: layer.growth for layer in self.all if layer.name not in self.float}
        return costs | ({JOINED: 1} if self.joined and not self.is_mixed else {})

    @property
    def spread(self) -> float:
        """How much the sizes of the values differ that the outputs join."""
        known = self.ranges.values
        joins = [node for node in self.graph.graph.nodes if node.name in self.joined]
        return max(
            (spread([known[at.name] for at in node.all_input_nodes if at.name in known]) for node in joins),
            default=1.0,
        )

    @property
    def is_mixed(self) -> bool:
        """Whether the operators that join outputs stay in float in any case."""
        return self.spread >= MIXED

    @property
    def sentinels(self) -> frozenset[str]:
        """The nodes that join or read numbers of very different sizes, and have no weights."""
        return frozenset(
            torch_sentinels.with_sentinels(self.graph, self.ranges.values, self.ranges.unbounded, self.kinds)
        )

    @property
    def names(self) -> dict[str, str]:
        """Layer names of the model, by node."""
        return {layer.node: layer.name for layer in self.all}

    def exempt(self, raised: frozenset[str]) -> set[str]:
        """Nodes of the layers that stay in float."""
        layers = {layer.node for layer in self.all if layer.name in self.float | raised}
        joined = self.joined if self.is_mixed or JOINED in raised else ()
        return layers | {*joined, *self.masks, *self.sentinels}

    def outputs(self, path: Path | None) -> Outputs:
        return torch_runtimes.outputs(self.graph if path is None else self.load(path), self.samples)


def _is_float32(graph: "GraphModule", layer: Quantizable) -> bool:
    node = next(node for node in graph.graph.nodes if node.name == layer.node)
    return torch_to_modules.is_float32(node)


def calibration(context: Context) -> Any:
    """The calibration data.

    Raises:
        StageError: the recipe has none.
    """
    if context.calibration is None:
        raise StageError("quantizing needs calibration data", fix="add 'data.calibration' to the recipe")
    return context.calibration
