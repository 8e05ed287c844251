"""What the runtimes built on torch share: threads, tensors, and flattening of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt_agent.failure import AgentError


def limit_threads(threads: int) -> None:
    """Import torch and hold it to ``threads`` threads."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def as_tensors(arrays: list[Any]) -> list[Any]:
    """numpy arrays as tensors; memory is shared unless the array is read-only."""
    import torch

    return [torch.from_numpy(array if array.flags.writeable else np.array(array)) for array in arrays]


def as_arrays(value: Any) -> list[Any]:
    """Tensors, however nested, as a flat list of arrays of their own memory."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.dequantize() if value.is_quantized else value
        return [np.array(value.detach().cpu().numpy())]
    if isinstance(value, dict):
        return [array for item in value.values() for array in as_arrays(item)]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in as_arrays(item)]
    raise AgentError("model", f"the model gives a {type(value).__name__}, which is not a tensor")
