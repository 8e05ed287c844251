"""Runtimes for torch's mobile formats in this process: the lite interpreter with qnnpack, and ExecuTorch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import StageError
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.model import Array, Outputs


def require_qnnpack() -> None:
    """Check that this build of torch has the int8 kernels of phones and boards.

    Raises:
        StageError: it has no qnnpack engine.
    """
    import torch

    if "qnnpack" not in torch.backends.quantized.supported_engines:
        raise StageError(
            "this build of torch has no qnnpack engine, only "
            f"{', '.join(torch.backends.quantized.supported_engines)}",
            fix="install torch from pypi.org or pytorch.org",
        )


def load_lite(path: Path) -> Callable[..., Any]:
    """Load a lite interpreter file; call the result with tensors, under ``mobile_engine`` as well."""
    from torch.jit.mobile import _load_for_lite_interpreter

    with torch_engine.quiet(), torch_engine.mobile_engine():
        module: Callable[..., Any] = _load_for_lite_interpreter(str(path))
    return module


def load_executorch(content: bytes) -> Callable[..., Any]:
    """Load an ExecuTorch program; the result takes tensors and returns a list of tensors."""
    from executorch.runtime import Runtime

    # The method reads weights from ``content`` and from the program without owning them: the closure keeps
    # all three alive.
    program = Runtime.get().load_program(content)
    keep_alive = (content, program, program.load_method("forward"))

    def call(*tensors: Any) -> Any:
        return keep_alive[-1].execute(tensors)

    return call


def outputs(run: Callable[..., Any], samples: Sequence[Sequence[Array]]) -> Outputs:
    """All outputs for samples that are run at batch 1, float32 ``[n, ...]``; named if they are a dict."""
    import torch
    from torch.utils import _pytree

    rows: list[list[Array]] = []
    names: list[str] = []
    with torch.no_grad(), torch_engine.one_thread():
        for values in samples:
            results = run(*(torch.from_numpy(value) for value in values))
            names = [str(key) for key in results] if isinstance(results, dict) else []
            # Copies: ExecuTorch returns views of memory that the next call overwrites.
            rows.append([np.array(value, dtype=np.float32) for value in _pytree.tree_leaves(results)])
    return Outputs.joined(rows, names)
