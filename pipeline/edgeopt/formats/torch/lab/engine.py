"""Settings of torch in this process: number of threads, quantized engine, and log output."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.files.specs import zeros
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    import torch


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


@contextmanager
def on_gpu(
    modules: "Sequence[torch.nn.Module]", inputs: Sequence[TensorSpec], note: Callable[[str], None]
) -> Iterator[None]:
    """Have modules on the GPU, if torch sees one and they run there; they are on the processor afterwards.

    New tensors are on the GPU meanwhile. ``note`` receives where it was computed, unless there is no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        yield
        return
    device = torch.device("cuda")
    try:
        with device:
            for module in modules:
                module.to(device)
                with torch.no_grad():
                    module(*(value.to(device) for value in zeros(inputs)))
    except RuntimeError as error:  # such as constants of a module that are none of its buffers
        for module in modules:
            module.cpu()
        note(f"trained on the processor, as the model does not run on the GPU: {brief(error, 1)}")
        yield
        return
    note(f"trained on the GPU {torch.cuda.get_device_name(device)}: the last bits differ from a processor's")
    try:
        with device:
            yield
    finally:
        for module in modules:
            module.cpu()
        torch.cuda.empty_cache()  # this process stays, and others use the GPU


def run(module: Callable[..., Any], inputs: Sequence[TensorSpec]) -> Any:
    """Outputs of a module for zeros at batch 1."""
    import torch

    with torch.no_grad(), one_thread():
        return module(*zeros(inputs))


def brief(error: BaseException, lines: int = 4) -> str:
    """First lines of an error message, which may be pages long, up to a traceback of PyTorch's own code."""
    text = str(error).partition("Original traceback:")[0].strip()
    return "\n".join(text.splitlines()[:lines]) or type(error).__name__
