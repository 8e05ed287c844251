"""Writing ``.keras`` archives: the same model gives the same bytes, and a record of what must stay.

The record is one more member of the archive, which Keras does not look at. It names the weights whose
zeros or shared values training has to keep; which zeros and values these are, the weights say themselves.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.formats.keras.files.loading import output_names
from edgeopt.model import TensorSpec

RECORD = "edgeopt.json"
DENSE = "edgeopt.dense.npz"
"""Weights from before pruning, by name: training goes from there to the zeros step by step."""
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Kept:
    """Weights, as ``layer path#index``, that training may change only within bounds."""

    sparse: Mapping[str, float] = field(default_factory=dict)
    """Their zeros stay zero; the share of zeros."""
    clustered: Mapping[str, int] = field(default_factory=dict)
    """Equal values stay equal; the number of different values."""

    def __or__(self, other: "Kept") -> "Kept":
        return replace(
            self, sparse={**self.sparse, **other.sparse}, clustered={**self.clustered, **other.clustered}
        )


def weight_name(path: str, index: int) -> str:
    """How records call a weight: the layer's path and the weight's place in it."""
    return f"{path}#{index}"


def weight_place(name: str) -> tuple[str, int]:
    """Path and index from ``weight_name``."""
    path, _, index = name.rpartition("#")
    return path, int(index)


def save(
    network: Any, path: Path, kept: Kept | None = None, dense: Mapping[str, NDArray[np.float32]] | None = None
) -> None:
    """Save a Keras 3 model without the date, with what training must keep and may start from."""
    network.save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in sorted(archive.namelist())}
    metadata = json.loads(entries["metadata.json"])
    metadata.pop("date_saved", None)
    entries["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
    if kept is not None and (kept.sparse or kept.clustered):
        entries[RECORD] = json.dumps(asdict(kept), sort_keys=True).encode()
    if dense:
        stored = io.BytesIO()
        arrays: dict[str, Any] = {name: dense[name] for name in sorted(dense)}
        np.savez(stored, **arrays)
        entries[DENSE] = stored.getvalue()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    path.write_bytes(content.getvalue())


def kept_in(path: Path) -> Kept:
    """What training must keep of the model in this file; nothing for models from elsewhere."""
    if not zipfile.is_zipfile(path):
        return Kept()
    with zipfile.ZipFile(path) as archive:
        if RECORD not in archive.namelist():
            return Kept()
        record = json.loads(archive.read(RECORD))
    return Kept(dict(record["sparse"]), dict(record["clustered"]))


def dense_in(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights from before pruning, where the file has them."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        if DENSE not in archive.namelist():
            return {}
        with np.load(io.BytesIO(archive.read(DENSE)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def specs(
    network: Any, told: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a Keras 3 model; ``told`` are the inputs before, whose layouts stay."""
    layouts = [spec.layout for spec in told] if len(told) == len(network.inputs) else []
    layouts = layouts or [None] * len(network.inputs)
    inputs = [
        _spec(tensor, str(tensor.name), layout)
        for tensor, layout in zip(network.inputs, layouts, strict=True)
    ]
    names = output_names(network)
    outputs = [_spec(tensor, name, None) for tensor, name in zip(network.outputs, names, strict=True)]
    return tuple(inputs), tuple(outputs)


def _spec(tensor: Any, name: str, layout: Any) -> TensorSpec:
    shape = tuple(tensor.shape)
    image = (layout or "NHWC") if len(shape) == 4 else None
    return TensorSpec(name=name, shape=shape, dtype=str(tensor.dtype), layout=image)
