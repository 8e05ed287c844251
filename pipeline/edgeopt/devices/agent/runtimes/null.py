"""A runtime without a model: returns zeros immediately, to measure the overhead of the harness."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgeopt_agent import VERSION
from edgeopt_agent.session import ModelSession, Spec


class Session(ModelSession):
    """Options ``inputs`` and ``outputs``: specs of the model to imitate.

    Without them, any input is accepted, and the outputs have the shapes of the inputs.
    """

    known_options = ("inputs", "outputs")

    @classmethod
    def version(cls) -> str | None:
        return VERSION

    def __init__(self, path: Path, threads: int, options: dict[str, Any]) -> None:
        self.inputs = _specs(options.get("inputs"))
        self.outputs = _specs(options.get("outputs"))
        self.zeros: list[Any] | None = None
        if self.outputs is not None:
            import numpy as np

            self.zeros = [
                np.zeros([1 if size is None else size for size in spec.shape], spec.dtype)
                for spec in self.outputs
            ]

    def invoke(self, arrays: list[Any]) -> tuple[list[Any], float]:
        start = time.perf_counter()
        results = self.zeros
        seconds = time.perf_counter() - start
        if results is None:
            import numpy as np

            results = [np.zeros_like(array) for array in arrays]
        return results, seconds


def _specs(values: Any) -> list[Spec] | None:
    if values is None:
        return None
    return [
        Spec(
            value["name"],
            tuple(value["shape"]),
            value["dtype"],
            value.get("scale"),
            value.get("zero_point"),
        )
        for value in values
    ]
