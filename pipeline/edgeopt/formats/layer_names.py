"""What layers are called, in every format: as in Keras, with the call behind a colon where there are several.

Keras' ``conv2d_1`` inside its model ``head`` is ``head/conv2d_1``; where it is called twice, the second call
is ``head/conv2d_1:2``. So a name never stands for two layers, and a number in a name is the author's own.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from edgeopt.errors import StageError

Layer = TypeVar("Layer")
SHOWN = 5
"""Names in a message."""

OPERATION = re.compile(
    r"(?P<layer>.+?)(/Tensordot|/separable_conv2d|/einsum)?"
    r"/(Conv[123]D|convolution|DepthwiseConv2[dD]\w*|depthwise|separable_conv2d|conv[23]d_transpose|conv_transpose"
    r"|MatMul|einsum|Einsum|embedding_lookup|GatherV2)[_\d]*"
    r"(/ReadVariableOp\d*|/merged_input|/ExpandDims_1|_Gemm|_weights_fused_bn)?[_\d]*(:\d+)?"
)
"""How TensorFlow calls the operation of a layer, and what is made of it, below the layer's own name."""

SIGNATURE = re.compile(r"^(StatefulPartitionedCall(_\d+)?/)+")
"""Before the names of all operations of a SavedModel."""
MODULE, MODULE_CLASS = "edgeopt", "Layer"
"""Module and name of the class that a module around one layer pretends to be of; see ``told``."""
_CALL = re.compile(r":\d+$")


def keras_layer(operation: str) -> str:
    """The name of a layer out of that of an operation in TensorFlow; empty where there is none.

    The name of the model around all is left out, and so are the loops that run a cell.
    """
    found = OPERATION.fullmatch(operation)
    if found is None:
        return ""
    whole = SIGNATURE.sub("", found["layer"]).replace("/while/", "/")
    return whole.split("/", 1)[1] if "/" in whole else whole


def told(layer: str) -> str:
    """What an operation of an exported program is called after, so that it tells the layer."""
    return f"{MODULE}.{MODULE_CLASS}_{layer}"


def layer_told(operation: str) -> str:
    """The layer that ``told`` has put into a name, behind those of outer modules; else empty."""
    _, found, layer = operation.rpartition(told(""))
    return layer if found else ""


def without_call(name: str) -> str:
    """The layer's name alone."""
    return _CALL.sub("", name)


def calls(names: Iterable[str]) -> list[str]:
    """The layers' names, with the number of the call behind all but the first of each."""
    taken: Counter[str] = Counter()
    result = []
    for name in map(without_call, names):
        taken[name] += 1
        result.append(name if taken[name] == 1 else f"{name}:{taken[name]}")
    return result


def means(pattern: str, name: str) -> bool:
    """Whether a pattern (as of `fnmatch`) fits a name, or the layer whose call it is.

    Names that come from PyTorch have ``_`` where the model has ``.``; a pattern may have either.
    """
    return any(fnmatchcase(called, p) for called in (name, without_call(name)) for p in _spelled(pattern))


def means_part(pattern: str, name: str) -> bool:
    """Whether a pattern fits a part of a name between slashes, or as many parts as it has itself."""
    parts = without_call(name).split("/")
    length = pattern.count("/") + 1
    several = ["/".join(parts[start : start + length]) for start in range(len(parts) - length + 1)]
    return any(fnmatchcase(part, p) for part in several for p in _spelled(pattern))


def fitting(
    layers: Sequence[Layer],
    tests: Iterable[Callable[[Layer], bool]],
    names: Sequence[str],
    pattern: str,
    where: str,
) -> list[Layer]:
    """The layers that the first test with any finds; ``tests`` go from the narrowest meaning to the widest.

    Args:
        layers: among which to look.
        tests: each tells whether a layer is meant.
        names: what the layers are called.
        pattern: what is looked for, for the message.
        where: whose layers they are, such as ``the ONNX file``.

    Raises:
        StageError: no test finds any; it names the nearest.
    """
    for fits in tests:
        if found := [layer for layer in layers if fits(layer)]:
            return found
    near = list(dict.fromkeys([*get_close_matches(pattern, names, n=SHOWN, cutoff=0.4), *names]))[:SHOWN]
    raise StageError(
        f"no layer fits the pattern {pattern!r}",
        fix=f"'layers' takes names or patterns of {where}'s {len(names)} layers, such as {', '.join(near)}",
    )


def _spelled(pattern: str) -> tuple[str, str]:
    return pattern, pattern.replace(".", "_")
