"""Settings of torch in this process: number of threads, quantized engine, and log output."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgeopt.formats.torch.files.specs import zeros
from edgeopt.model import TensorSpec


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of torch about its own deprecated code."""
    loggers = [logging.getLogger(name) for name in ("torch", "torchao", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def mobile_engine() -> Iterator[None]:
    """Use the qnnpack engine, whose kernels run on phones and boards.

    Packed weights are bound to the engine that was active when they were created or loaded; other engines
    pack them into more bytes.
    """
    import torch

    before = torch.backends.quantized.engine
    # Builds for some platforms lack qnnpack; ``require_qnnpack`` reports that where int8 needs it.
    if "qnnpack" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "qnnpack"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, because a batch of 1 consists of many tiny operators.

    Split among threads, these spend their time on synchronization; on a busy machine up to 50 times slower.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(module: Callable[..., Any], inputs: Sequence[TensorSpec]) -> Any:
    """Outputs of a module for zeros at batch 1."""
    import torch

    with torch.no_grad(), one_thread():
        return module(*zeros(inputs))


def brief(error: BaseException, lines: int = 4) -> str:
    """First lines of an error message, which may be pages long, up to a traceback of PyTorch's own code."""
    text = str(error).partition("Original traceback:")[0].strip()
    return "\n".join(text.splitlines()[:lines]) or type(error).__name__
