"""Measurements: values, their units and formatting, and per-sample values."""

import base64
import binascii
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.units import show_bytes, show_time

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind: TypeAlias = Literal[
    "fraction", "points", "error", "decibel", "bytes", "memory", "time", "ratio", "count", "number"
]
"""Display format of a number.

``fraction``: percentage; ``points``: difference of percentages; ``error``, ``number``: plain; ``bytes``:
exact bytes; ``memory``: rounded KiB or MiB; ``time``: milliseconds, in µs below one; ``ratio``: multiple;
``count``: integer.
"""

Role: TypeAlias = Literal[
    "quality", "drop", "worst_class_drop", "detectable_drop", "fidelity", "parity", "cost"
]  # fmt: skip
"""Category of a number.

``quality``: accuracy by a metric, and the drops derived from it; ``fidelity``: to the source model;
``parity``: between devices; ``cost``: of an artifact, in bytes, time or arithmetic.
"""

MAX_SAMPLES = 100_000_000
"""Limit on the declared number of samples: a small compressed text could expand to any size."""


class Value(BaseModel):
    """Base of all parts of a report: immutable, without extra fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)


_SHOWN: dict[Kind, Callable[[float], str]] = {
    "bytes": lambda value: f"{value:,.0f} B",
    "memory": show_bytes,
    "time": show_time,
    "decibel": lambda value: f"{value:.1f} dB",
    "ratio": lambda value: f"{value:.2f} ×",
    "points": lambda value: f"{value * 100:+.2f} pt",
    "count": lambda value: f"{value:,.0f}",
    "fraction": lambda value: f"{value * 100:.2f} %",
}


class Measurement(Value):
    """One number with its unit, computed from ``n`` samples or runs."""

    value: float
    unit: str = ""
    n: int | None = None
    ci95: tuple[float, float] | None = Field(None, description="95 % confidence interval, if available")
    kind: Kind = Field("number", description="display format")
    role: Role = Field("cost", description="category")

    @classmethod
    def of(
        cls,
        name: str,
        value: float,
        *,
        unit: str = "",
        n: int | None = None,
        ci95: tuple[float, float] | None = None,
    ) -> "Measurement":
        """The measurement called ``name``; ``unit`` applies to names that are not in ``MEASUREMENTS``."""
        known = MEASUREMENTS.get(name) or Shown(_KINDS.get(unit, "number"), unit, name)
        return cls(value=value, unit=known.unit, n=n, ci95=ci95, kind=known.kind, role=known.role)

    @property
    def text(self) -> str:
        """The formatted value with its unit."""
        if self.kind in _SHOWN:
            return _SHOWN[self.kind](self.value)
        sign = "+" if self.role in ("drop", "worst_class_drop", "detectable_drop") else ""
        return f"{self.value:{sign}.4g}{' ' + self.unit if self.unit else ''}"


class Shown(NamedTuple):
    """Properties of a measurement that follow from its name."""

    kind: Kind
    unit: str
    title: str
    """Column title."""
    meaning: str = ""
    """Explanation, if the title is not sufficient."""
    better: Literal["higher", "lower", ""] = "lower"
    volatile: bool = False
    """Whether repeated measurements of the same file differ."""
    in_turns: str = ""
    """The measurement of its ratio to float from interleaved runs; separate times are not divided."""
    role: Role = "cost"


def _time(title: str, meaning: str = "", in_turns: str = "latency_ratio") -> Shown:
    return Shown("time", "ms", title, meaning, volatile=True, in_turns=in_turns)


_KINDS: dict[str, Kind] = {"bytes": "memory", "ms": "time"}

MEASUREMENTS: dict[str, Shown] = {
    "size_bytes": Shown("bytes", "bytes", "size", "the file"),
    "gzip_bytes": Shown("bytes", "bytes", "gzip", "the file, compressed"),
    "latency_p50_ms": _time("p50", "median time of one run"),
    "latency_p90_ms": _time("p90"),
    "latency_p99_ms": _time("p99"),
    "latency_mean_ms": _time("mean"),
    "latency_min_ms": _time("min"),
    "latency_max_ms": _time("max"),
    "latency_std_ms": _time("std"),
    "latency_ratio": Shown(
        "ratio", "", "÷ float", "time of one run relative to the float artifact", volatile=True
    ),
    "load_ms": _time("load", "loading the model", in_turns=""),
    "peak_memory_bytes": Shown(
        "memory",
        "bytes",
        "peak memory",
        "increase of the process's peak memory over its level before loading",
        volatile=True,
    ),
    "gpu_memory_bytes": Shown("memory", "bytes", "GPU memory", volatile=True),
    "arena_bytes": Shown("memory", "bytes", "arena", "memory for tensors and bookkeeping"),
    "arena_head_bytes": Shown(
        "memory", "bytes", "arena head", "tensors and scratch buffers with overlapping memory plan"
    ),
    "arena_tail_bytes": Shown(
        "memory", "bytes", "arena tail", "allocations that persist as long as the model"
    ),
    "sram_bytes": Shown("memory", "bytes", "SRAM"),
    "flash_bytes": Shown("memory", "bytes", "flash"),
    "dram_bytes": Shown("memory", "bytes", "DRAM"),
    "estimated_flash_min_bytes": Shown(
        "memory", "bytes", "flash min", "the file, and the smallest published size of the runtime's code"
    ),
    "estimated_flash_max_bytes": Shown(
        "memory", "bytes", "flash max", "the file, and the largest published size of the runtime's code"
    ),
    "npu_cycles": Shown("count", "", "NPU cycles"),
    "npu_share": Shown("fraction", "", "on NPU", "fraction of operators that run on the NPU", "higher"),
    "estimated_latency_ms": _time("estimated", in_turns=""),
    "estimated_latency_min_ms": Shown(
        "time",
        "ms",
        "estimated min",
        "one run at the highest published speed; nothing was timed",
    ),
    "estimated_latency_max_ms": Shown(
        "time",
        "ms",
        "estimated max",
        "one run at the lowest published speed; nothing was timed",
    ),
    "latency_median_ms": _time("median", "median over the repetitions' means"),
    "energy_mj": Shown("number", "mJ", "energy", "of one run", volatile=True),
    "parity_max_steps": Shown(
        "number",
        "steps",
        "steps to host",
        "largest difference of an output value, in quantization steps of the output",
        role="parity",
    ),
    "parity_max_error": Shown("error", "", "error to host", role="parity"),
    "parity_flips": Shown("number", "", "flips to host", role="parity"),
    "macs": Shown("count", "", "MACs", "multiply-accumulates of one run"),
    "parameters": Shown("count", "", "parameters", "number of weights"),
    "sparsity": Shown("fraction", "", "sparsity", "fraction of weights that are zero", ""),
}
"""Measurements of artifacts that are not metrics of a recipe."""


class Samples(Value):
    """Values of one metric for every evaluation sample, in order, as compact text.

    Those of a metric of the whole set, such as mAP, are contributions, whose mean is its value.
    """

    count: int = Field(ge=0, le=MAX_SAMPLES)
    encoding: Literal["bits", "float32"] = Field(
        description="bits: correct or wrong, eight samples per byte; float32: any value, little-endian"
    )
    data: str = Field(description="compressed with zlib, then base64")
    reach: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="for contributions to a metric of the whole set: by how much one may change; 0: unknown",
    )

    @classmethod
    def pack(cls, values: "NDArray[np.float64]", reach: float | None = None) -> "Samples":
        """Encode values: 0 and 1 exactly, as bits; others rounded to float32."""
        import numpy as np

        binary = bool(np.isin(values, (0.0, 1.0)).all())
        largest = float(np.finfo("<f4").max)
        raw = np.packbits(values.astype(np.uint8)) if binary else values.clip(-largest, largest).astype("<f4")
        text = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode("ascii")
        return cls(count=len(values), encoding="bits" if binary else "float32", data=text, reach=reach)

    def unpack(self) -> "NDArray[np.float64]":
        """Decode the values, of shape ``[count]``.

        Raises:
            ValueError: the data is damaged, or a value is not finite.
        """
        import numpy as np

        size = (self.count + 7) // 8 if self.encoding == "bits" else 4 * self.count
        try:
            packed = base64.b64decode(self.data, validate=True)
            # One byte more than expected is enough to detect excess data, and bounds memory.
            raw = zlib.decompressobj().decompress(packed, size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"damaged per-sample values: {error}") from error
        if len(raw) != size:
            raise ValueError(f"damaged per-sample values: {self.count} were declared")
        if self.encoding == "bits":
            return np.unpackbits(np.frombuffer(raw, np.uint8))[: self.count].astype(np.float64)
        values = np.frombuffer(raw, "<f4")
        if not np.isfinite(values).all():
            raise ValueError("damaged per-sample values: not all are finite")
        return values.astype(np.float64)


_LEGACY_METRICS: dict[str, tuple[Kind, Role]] = {
    "top1": ("fraction", "quality"),
    "top5": ("fraction", "quality"),
    "roc_auc": ("number", "quality"),
    "mean_squared_error": ("error", "quality"),
    "function": ("number", "quality"),
    "agreement": ("fraction", "fidelity"),
    "fidelity_snr_db": ("decibel", "fidelity"),
    "max_abs_error": ("error", "fidelity"),
}
_LEGACY_ROLES: tuple[Role, ...] = ("detectable_drop", "worst_class_drop", "drop")


def with_kinds(measurements: Any) -> Any:
    """Add kind and role to the measurements of earlier reports, which lack them, by name."""
    if not isinstance(measurements, dict):
        return measurements
    return {
        name: entry | _legacy_fields(str(name)) if isinstance(entry, dict) and "kind" not in entry else entry
        for name, entry in measurements.items()
    }


def kind_of(name: str) -> Kind:
    """The display format of a measurement, by its name only."""
    return cast(Kind, _legacy_fields(name)["kind"])


def _legacy_fields(name: str) -> dict[str, Any]:
    if name in MEASUREMENTS:
        return {"kind": MEASUREMENTS[name].kind, "role": MEASUREMENTS[name].role}
    for role in _LEGACY_ROLES:
        if name.endswith(f"_{role}"):
            kind, _ = _LEGACY_METRICS.get(name.removesuffix(f"_{role}"), ("number", "quality"))
            return {"kind": "points" if kind == "fraction" else kind, "role": role}
    kind, category = _LEGACY_METRICS.get(name, ("number", "quality"))
    return {"kind": kind, "role": category}
