"""What layers are called, in every format: as in Keras, with the call behind a colon where there are several.

Keras' ``conv2d_1`` inside its model ``head`` is ``head/conv2d_1``; where it is called twice, the second call
is ``head/conv2d_1:2``. So a name never stands for two layers, and a number in a name is the author's own.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from edgeopt.errors import StageError

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
_SEPARATORS = re.compile(r"[^\w:]")
_NOT_IN_GLOBS = re.compile(r"[^\w:*?\[\]!-]")


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


def matching(
    patterns: Iterable[str],
    layers: Iterable[str] | Mapping[str, Iterable[str]],
    option: str = "layers",
) -> dict[str, str]:
    """What a recipe says of single layers: for each one that is meant, the last pattern that means it.

    A pattern means the layers of exactly that name, with all their calls, or those inside the Keras layer of
    that name: ``head/dense`` in ``head``. Where there is none, it is a glob (as of `fnmatch`) over whole
    names: ``conv1`` never means ``block1_conv1``, ``*conv1`` does. ``.``, ``/`` and ``_`` count as one
    character, for PyTorch's ``layer1.0.conv1`` is ``layer1_0_conv1`` elsewhere.

    Args:
        patterns: names or globs, in the order of the recipe.
        layers: names of layers; as a mapping, with other names that a file has for each.
        option: where the patterns stand, for the message.

    Raises:
        StageError: a pattern means no layer; it gives the nearest names.
    """
    known = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, ())
    found: dict[str, str] = {}
    for pattern in patterns:
        found |= dict.fromkeys(_meant(pattern, known, option), pattern)
    return found


def _meant(pattern: str, layers: Mapping[str, Iterable[str]], option: str) -> list[str]:
    plain, glob = _plain(pattern), _NOT_IN_GLOBS.sub("_", pattern)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == pattern,
        lambda name: _plain(name) == plain,
        lambda name: name.startswith(f"{pattern}/"),
        lambda name: fnmatchcase(_plain(name), glob),
    )
    for fits in tests:
        if found := [name for name in layers if fits(name) or fits(without_call(name))]:
            return found
        if found := [name for name, others in layers.items() if any(map(fits, others))]:
            return found
    near = list(dict.fromkeys([*get_close_matches(pattern, layers, n=SHOWN, cutoff=0.4), *layers]))[:SHOWN]
    wider = f"*{pattern}*"
    count = sum(fnmatchcase(_plain(name), f"*{glob}*") for name in layers)
    raise StageError(
        f"{option}: no layer is called {pattern!r}, and none fits it as a pattern",
        fix=f"use one of the {len(layers)} names, such as {', '.join(near)}"
        + (f", or the pattern {wider!r}, which fits {count}" if count else ""),
    )


def _plain(name: str) -> str:
    return _SEPARATORS.sub("_", name)
