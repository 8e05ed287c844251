"""One number of a report, how it is shown, and the values per sample behind it."""

import base64
import binascii
import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgeopt.config.units import show_bytes

Kind: TypeAlias = Literal[
    "fraction", "points", "error", "decibel", "bytes", "memory", "time", "ratio", "count", "number"
]
"""How a number is shown.

``fraction`` as a percentage, ``points`` as a difference of percentages, ``error`` and ``number`` plainly,
``bytes`` to the byte, ``memory`` rounded, ``time`` in milliseconds, ``ratio`` as a multiple, ``count`` whole.
"""

Role: TypeAlias = Literal[
    "quality", "drop", "worst_class_drop", "detectable_drop", "fidelity", "parity", "cost"
]  # fmt: skip
"""What a number is about.

``quality`` of the answers, by a metric, and what follows from it; ``fidelity`` to the source model;
``parity`` between devices; ``cost`` of an artifact in bytes, time or arithmetic.
"""

MOST_SAMPLES = 100_000_000
"""Samples that a text may claim to hold; compressed zeros could claim any number."""


class Value(BaseModel):
    """What all parts of a report share: they do not change, and have no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


_SHOWN: dict[Kind, Callable[[float], str]] = {
    "bytes": lambda value: f"{value:,.0f} B",
    "memory": show_bytes,
    "time": lambda value: f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms",
    "decibel": lambda value: f"{value:.1f} dB",
    "ratio": lambda value: f"{value:.2f} ×",
    "points": lambda value: f"{value * 100:+.2f} pt",
    "count": lambda value: f"{value:,.0f}",
    "fraction": lambda value: f"{value * 100:.2f} %",
}


class Measurement(Value):
    """One number with its unit; ``n`` samples or runs stand behind it."""

    value: float
    unit: str = ""
    n: int | None = None
    ci95: tuple[float, float] | None = Field(None, description="95 % interval, where one can be given")
    kind: Kind = Field("number", description="how it is shown")
    role: Role = Field("cost", description="what it is about")

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
        """The measurement called ``name``; ``unit`` is for one that only a runtime knows."""
        known = MEASUREMENTS.get(name) or Shown(_KINDS.get(unit, "number"), unit, name)
        return cls(value=value, unit=known.unit, n=n, ci95=ci95, kind=known.kind, role=known.role)

    @property
    def text(self) -> str:
        """As a person reads it."""
        if self.kind in _SHOWN:
            return _SHOWN[self.kind](self.value)
        sign = "+" if self.role in ("drop", "worst_class_drop", "detectable_drop") else ""
        return f"{self.value:{sign}.4g}{' ' + self.unit if self.unit else ''}"


class Shown(NamedTuple):
    """What is known of a measurement by its name."""

    kind: Kind
    unit: str
    title: str
    """At the head of a column."""
    meaning: str = ""
    """In words, where the name alone does not tell."""
    better: Literal["higher", "lower", ""] = "lower"
    volatile: bool = False
    """Whether the same file gives another value each time."""
    in_turns: str = ""
    """The measurement that stands for its ratio to float: two absolute times are never divided."""
    role: Role = "cost"


def _time(title: str, meaning: str = "", in_turns: str = "latency_ratio") -> Shown:
    return Shown("time", "ms", title, meaning, volatile=True, in_turns=in_turns)


_KINDS: dict[str, Kind] = {"bytes": "memory", "ms": "time"}

MEASUREMENTS: dict[str, Shown] = {
    "size_bytes": Shown("bytes", "bytes", "size", "the file"),
    "gzip_bytes": Shown("bytes", "bytes", "gzip", "the file, compressed"),
    "latency_p50_ms": _time("p50", "half of the runs take no longer"),
    "latency_p90_ms": _time("p90"),
    "latency_p99_ms": _time("p99"),
    "latency_mean_ms": _time("mean"),
    "latency_min_ms": _time("min"),
    "latency_max_ms": _time("max"),
    "latency_std_ms": _time("std"),
    "latency_ratio": Shown(
        "ratio", "", "÷ float", "time of one run, as a share of the float artifact's", volatile=True
    ),
    "load_ms": _time("load", "loading the model", in_turns=""),
    "peak_memory_bytes": Shown(
        "memory", "bytes", "peak memory", "of the process, above what it held before", volatile=True
    ),
    "gpu_memory_bytes": Shown("memory", "bytes", "GPU memory", volatile=True),
    "arena_bytes": Shown("memory", "bytes", "arena", "memory for tensors and bookkeeping"),
    "arena_head_bytes": Shown(
        "memory", "bytes", "arena head", "tensors and scratch, which share memory by turns"
    ),
    "arena_tail_bytes": Shown("memory", "bytes", "arena tail", "what lives as long as the model"),
    "sram_bytes": Shown("memory", "bytes", "SRAM"),
    "flash_bytes": Shown("memory", "bytes", "flash"),
    "dram_bytes": Shown("memory", "bytes", "DRAM"),
    "npu_cycles": Shown("count", "", "NPU cycles"),
    "npu_share": Shown("fraction", "", "on NPU", "share of the operators that the NPU carries out", "higher"),
    "estimated_latency_ms": _time("estimated", in_turns=""),
    "latency_median_ms": _time("median", "of the means of all repetitions"),
    "energy_mj": Shown("number", "mJ", "energy", "of one run", volatile=True),
    "parity_max_steps": Shown("number", "steps", "steps to host", role="parity"),
    "parity_max_error": Shown("error", "", "error to host", role="parity"),
    "parity_flips": Shown("number", "", "flips to host", role="parity"),
    "macs": Shown("count", "", "MACs", "multiply-accumulates of one run"),
    "parameters": Shown("count", "", "parameters", "numbers in the weights"),
    "sparsity": Shown("fraction", "", "sparsity", "share of the weights that are zero", ""),
}
"""Measurements that artifacts have beside the metrics of a recipe."""


class Samples(Value):
    """Values of one metric for every evaluation sample, in their order, as a short text."""

    count: int = Field(ge=0, le=MOST_SAMPLES)
    encoding: Literal["bits", "float32"] = Field(
        description="bits: right or wrong, eight samples to a byte; float32: any value, little-endian"
    )
    data: str = Field(description="compressed with zlib, then base64")

    @classmethod
    def pack(cls, values: NDArray[np.float64]) -> "Samples":
        """Values of 0 and 1 take a bit each and come back exactly; others are rounded to float32."""
        binary = bool(np.isin(values, (0.0, 1.0)).all())
        raw = np.packbits(values.astype(np.uint8)) if binary else values.astype("<f4")
        text = base64.b64encode(zlib.compress(raw.tobytes(), 9)).decode("ascii")
        return cls(count=len(values), encoding="bits" if binary else "float32", data=text)

    def unpack(self) -> NDArray[np.float64]:
        """The values again.

        Raises:
            ValueError: the text is damaged.
        """
        size = (self.count + 7) // 8 if self.encoding == "bits" else 4 * self.count
        try:
            packed = base64.b64decode(self.data, validate=True)
            unpacking = zlib.decompressobj()
            raw = unpacking.decompress(packed, size + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"damaged values of samples: {error}") from error
        if len(raw) != size:
            raise ValueError(f"damaged values of samples: {self.count} were announced")
        if self.encoding == "bits":
            return np.unpackbits(np.frombuffer(raw, np.uint8))[: self.count].astype(np.float64)
        return np.frombuffer(raw, "<f4").astype(np.float64)


_OLD_METRICS: dict[str, tuple[Kind, Role]] = {
    "top1": ("fraction", "quality"),
    "top5": ("fraction", "quality"),
    "roc_auc": ("number", "quality"),
    "mean_squared_error": ("error", "quality"),
    "function": ("number", "quality"),
    "agreement": ("fraction", "fidelity"),
    "fidelity_snr_db": ("decibel", "fidelity"),
    "max_abs_error": ("error", "fidelity"),
}
_OLD_ROLES: tuple[Role, ...] = ("detectable_drop", "worst_class_drop", "drop")


def with_kinds(measurements: Any) -> Any:
    """Measurements of an old report, which did not say how they are shown: completed by their names."""
    if not isinstance(measurements, dict):
        return measurements
    return {
        name: told | _of_old(str(name)) if isinstance(told, dict) and "kind" not in told else told
        for name, told in measurements.items()
    }


def kind_of(name: str) -> Kind:
    """How a measurement is shown of which only the name is known."""
    return cast(Kind, _of_old(name)["kind"])


def _of_old(name: str) -> dict[str, Any]:
    if name in MEASUREMENTS:
        return {"kind": MEASUREMENTS[name].kind, "role": MEASUREMENTS[name].role}
    for role in _OLD_ROLES:
        if name.endswith(f"_{role}"):
            kind, _ = _OLD_METRICS.get(name.removesuffix(f"_{role}"), ("number", "quality"))
            return {"kind": "points" if kind == "fraction" else kind, "role": role}
    kind, of = _OLD_METRICS.get(name, ("number", "quality"))
    return {"kind": kind, "role": of}
