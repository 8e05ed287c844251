"""Names and shapes of the tensors in a checkpoint, without torch and without running code of the file.

Only pickles that ``torch.load(weights_only=True)`` would load are read, and none of the functions that they
name is called: each name stands for one of the inert classes below.
"""

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.formats.untrusted import torch_pickles

Shape = tuple[int, ...]
DEPTH = 4
PREAMBLE = 3
"""Pickles in front of the object in files from before torch 1.6: magic number, protocol version, system."""


class _Tensor(NamedTuple):
    shape: Shape


class _Inert:
    """Stands for any other object of a checkpoint: takes every argument and item, and keeps none."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Ignore an item of a list."""

    def extend(self, values: object) -> None:
        """Ignore items of a list."""


def _tensor(storage: object, offset: object, size: object, *others: object) -> _Tensor | None:
    """What ``torch._utils._rebuild_tensor`` and its versions are called with."""
    known = isinstance(size, tuple) and all(isinstance(each, int) for each in size)
    return _Tensor(size) if known and isinstance(size, tuple) else None


def _parameter(data: object, *others: object) -> object:
    return data


STAND_INS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": OrderedDict,  # unlike a dict, takes the attributes of a state dict
}


class _Reader(pickle._Unpickler):
    """Reads what ``torch_pickles`` has accepted.

    In Python, as the one of torch: that in C allocates whatever number of memos a file declares.
    """

    def find_class(self, module: str, name: str) -> Any:
        return STAND_INS.get(f"{module}.{name}", _Inert)

    def persistent_load(self, pid: object) -> None:
        """The place of a tensor's data, which is not read."""


def read(path: Path, *, legacy: bool) -> dict[str, Shape]:
    """The tensors of a checkpoint in its order; of several sets, such as weights and averages, the largest.

    Args:
        path: the checkpoint.
        legacy: the format from before torch 1.6, a sequence of pickles instead of an archive.

    Returns:
        Shapes by name; empty if loading the file would run code.

    Raises:
        OSError, ValueError and the like: the file is damaged.
    """
    if torch_pickles.refused(path, legacy=legacy):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the pickle's strings
        try:
            return max(_sets(_content(path, legacy)), key=len, default={})
        except pickle.UnpicklingError as error:
            raise ValueError(str(error)) from error


def _content(path: Path, legacy: bool) -> object:
    content: object = None
    if legacy:
        with path.open("rb") as stream:
            bounded = torch_pickles.Bounded(stream)
            for _ in range(PREAMBLE + 1):
                content = _Reader(bounded).load()
        return content
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        with archive.open(name) as member:
            return _Reader(torch_pickles.Bounded(member)).load()


def _sets(content: object, depth: int = 0) -> Iterator[dict[str, Shape]]:
    """All sets of tensors in nested mappings."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    yield {str(name): value.shape for name, value in content.items() if isinstance(value, _Tensor)}
    for value in content.values():
        yield from _sets(value, depth + 1)
