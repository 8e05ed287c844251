"""Requests for samples that are made from the statistics of a model."""

from typing import TYPE_CHECKING, NamedTuple

from edgeopt.model import Array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Start(NamedTuple):
    """Where the samples of one input begin, and what they may become."""

    noise: Array
    """``[samples, ...]``, of unit deviation if it is real; integers do not change."""
    low: "NDArray[np.float32] | None" = None
    """The least values, of a shape that broadcasts to that of the noise; None if the range is unknown."""
    high: "NDArray[np.float32] | None" = None

    @property
    def changes(self) -> bool:
        """Whether the samples are real numbers."""
        return bool(self.noise.dtype.kind == "f")

    def at(self, scale: float) -> Array:
        """The first samples: within the range if it is known, else of this deviation."""
        import numpy as np

        if not self.changes:
            return self.noise
        noise: NDArray[np.float32] = self.noise.astype(np.float32)
        if self.low is None or self.high is None:
            return (noise * np.float32(scale)).astype(self.noise.dtype)
        middle, span = (self.low + self.high) / 2, self.high - self.low
        return np.clip(middle + noise * span / 4, self.low, self.high).astype(self.noise.dtype)

    def step(self, scale: float) -> float:
        """The deviation that steps are relative to."""
        import numpy as np

        if self.low is None or self.high is None:
            return scale
        return float(np.mean(self.high - self.low)) / 4


class Synthesis(NamedTuple):
    """A request for samples with the statistics of a model's batch norms."""

    starts: tuple[Start, ...]
    """The first samples of every input."""
    steps: int
    """Steps of gradient descent."""
    trust: bool
    """Whether loading the model may run code of its file."""
