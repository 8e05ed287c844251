"""Reproducible ``.keras`` archives, with a record of the constraints that training has to keep.

The record is an additional member of the archive, which Keras ignores. It names the weights whose zeros or
shared values training has to preserve; the zeros and values themselves are read from the weights.
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
"""Weights from before pruning, by name: training starts from them and prunes gradually."""
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Kept:
    """Constrained weights, as ``layer path#index``."""

    sparse: Mapping[str, float] = field(default_factory=dict)
    """Weights whose zeros stay zero, and their fraction of zeros."""
    clustered: Mapping[str, int] = field(default_factory=dict)
    """Weights whose equal values stay equal, and their number of distinct values."""

    def __or__(self, other: "Kept") -> "Kept":
        return replace(
            self, sparse={**self.sparse, **other.sparse}, clustered={**self.clustered, **other.clustered}
        )


def weight_name(path: str, index: int) -> str:
    """The name of a weight in records: the layer's path and the weight's index in the layer."""
    return f"{path}#{index}"


def weight_place(name: str) -> tuple[str, int]:
    """Path and index of a name from ``weight_name``."""
    path, _, index = name.rpartition("#")
    return path, int(index)


def save(
    network: Any, path: Path, kept: Kept | None = None, dense: Mapping[str, NDArray[np.float32]] | None = None
) -> None:
    """Save a Keras 3 model without timestamps, with its training constraints and its dense weights."""
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
    # Sorted members with a constant time: equal models must give equal bytes.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    path.write_bytes(content.getvalue())


def kept_in(path: Path) -> Kept:
    """The training constraints of the model in this file; none for models not written by edgeopt."""
    if not zipfile.is_zipfile(path):
        return Kept()
    with zipfile.ZipFile(path) as archive:
        if RECORD not in archive.namelist():
            return Kept()
        record = json.loads(archive.read(RECORD))
    return Kept(dict(record["sparse"]), dict(record["clustered"]))


def dense_in(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights from before pruning, if the file contains them."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        if DENSE not in archive.namelist():
            return {}
        with np.load(io.BytesIO(archive.read(DENSE)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def specs(
    network: Any, declared: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a Keras 3 model; ``declared`` are its inputs so far, whose layouts are kept."""
    layouts = [spec.layout for spec in declared] if len(declared) == len(network.inputs) else []
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
