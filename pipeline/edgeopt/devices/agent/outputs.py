"""Writes outputs to disk as they are produced, so that a large data set need not fit in memory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt_agent.failure import AgentError, explained

WRITING = "cannot write the outputs"


class OutputFile:
    """Writes ``output_0``, ``output_1`` … of shape ``[n, ...]`` to one ``.npz``; a context manager.

    With ``path`` ``None``, nothing is written and only the shapes are checked.
    """

    def __init__(self, path: Path | None, total: int) -> None:
        self.path = path
        self.total = total
        self.streams: list[Any] = []
        self.shapes: list[tuple[tuple[int, ...], Any]] = []

    def __enter__(self) -> OutputFile:
        return self

    def write(self, count: int, size: int, results: list[Any]) -> None:
        """Append the first ``count`` samples of a run of ``size``.

        Raises:
            AgentError: an output has no batch axis or changes its shape, or the disk is full.
        """
        values = [_batched(value, size, index) for index, value in enumerate(results)]
        shapes = [(value.shape[1:], value.dtype) for value in values]
        if not self.shapes:
            self.shapes = shapes
            if self.path is not None:
                with explained("internal", WRITING):
                    self._begin()
        for index, (current, first) in enumerate(zip(shapes, self.shapes)):
            if current != first:
                raise AgentError(
                    "model",
                    f"output {index} differs between samples: {first[0]} {first[1]}, "
                    f"then {current[0]} {current[1]}",
                )
        with explained("internal", WRITING):
            for stream, value in zip(self.streams, values):
                stream.write(np.ascontiguousarray(value[:count]).tobytes())

    def _begin(self) -> None:
        for index, (shape, dtype) in enumerate(self.shapes):
            stream = self._part(index).open("wb")
            self.streams.append(stream)
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (self.total, *shape),
            }
            np.lib.format.write_array_header_1_0(stream, header)

    def __exit__(self, *error: object) -> None:
        if self.path is None:
            return
        with explained("internal", WRITING):
            for stream in self.streams:
                stream.close()
            if error[0] is None:
                self._pack(self.path)
            for index in range(len(self.streams)):
                self._part(index).unlink()

    def _pack(self, path: Path) -> None:
        scratch = path.with_name(path.name + ".part")
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for index in range(len(self.streams)):
                archive.write(self._part(index), f"output_{index}.npy")
        os.replace(scratch, path)

    def _part(self, index: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{index}.npy")


def _batched(value: Any, size: int, index: int) -> Any:
    """The value with a batch axis, which models with batch size 1 may omit."""
    value = np.asarray(value)
    if value.ndim and value.shape[0] == size:
        return value
    if size == 1:
        return value[np.newaxis]
    raise AgentError(
        "model", f"output {index} has shape {list(value.shape)} for {size} samples: no batch axis"
    )
