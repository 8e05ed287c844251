"""How torch runs in this process: on how many threads, with which kernels, and how loudly."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgeopt.formats.torch.files.specs import zeros
from edgeopt.model import TensorSpec


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's own code says about its own deprecated parts."""
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
    """Use qnnpack's kernels, those of phones and boards.

    Packed weights are bound to the engine under which they were made or loaded, and larger under others.
    """
    import torch

    before = torch.backends.quantized.engine
    if "qnnpack" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "qnnpack"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a batch of 1 is many tiny operators.

    Shared between threads, these wait for each other; on a busy machine that made them 50 times slower.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(module: Callable[..., Any], inputs: Sequence[TensorSpec]) -> Any:
    """What a module returns for zeros."""
    import torch

    with torch.no_grad(), one_thread():
        return module(*zeros(inputs))


def brief(error: BaseException, lines: int = 4) -> str:
    """The first lines of a message that may be pages long."""
    return "\n".join(str(error).strip().splitlines()[:lines]) or type(error).__name__
