"""What runs torch's mobile formats in this process: the lite interpreter with qnnpack, and ExecuTorch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import StageError
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Array


def demand_qnnpack() -> None:
    """Make sure that this torch can run int8 as phones and boards do.

    Raises:
        StageError: it cannot.
    """
    import torch

    if "qnnpack" not in torch.backends.quantized.supported_engines:
        raise StageError(
            "this build of torch has no qnnpack engine, only "
            f"{', '.join(torch.backends.quantized.supported_engines)}",
            fix="install torch from pypi.org or pytorch.org",
        )


def load_lite(path: Path) -> Callable[..., Any]:
    """A file for the lite interpreter, to be called with tensors. Call it under ``mobile_engine`` as well."""
    from torch.jit.mobile import _load_for_lite_interpreter

    with torch_engine.quiet(), torch_engine.mobile_engine():
        module: Callable[..., Any] = _load_for_lite_interpreter(str(path))
    return module


def load_executorch(content: bytes) -> Callable[..., Any]:
    """An ExecuTorch program, to be called with tensors; it returns a list of them."""
    from executorch.runtime import Runtime

    # The runtime reads weights out of ``content``, and of a program that lives: both are held on to.
    program = Runtime.get().load_program(content)
    held = (content, program, program.load_method("forward"))

    def call(*tensors: Any) -> Any:
        return held[-1].execute(tensors)

    return call


def first_outputs(run: Callable[..., Any], samples: Sequence[Sequence[Array]]) -> NDArray[np.float32]:
    """The first output of every sample, inputs of batch 1: ``[n, ...]``."""
    import torch
    from torch.utils import _pytree

    found = []
    with torch.no_grad(), torch_engine.one_thread():
        for values in samples:
            results = _pytree.tree_leaves(run(*(torch.from_numpy(value) for value in values)))
            # What ExecuTorch returns lies in memory that the next call writes to.
            found.append(np.array(results[0], dtype=np.float32))
    return np.concatenate(found)
