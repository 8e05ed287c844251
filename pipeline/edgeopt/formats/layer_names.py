"""Layer names, the same in every format: those of Keras, with the number of the call after a colon.

The Keras layer ``conv2d_1`` of the nested model ``head`` is ``head/conv2d_1``; its second call is
``head/conv2d_1:2``. A name identifies one call of one layer, and a number in it was chosen by the author.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from edgeopt.errors import StageError

SHOWN = 5
"""Number of names in a message."""

OPERATION = re.compile(
    r"(?P<layer>.+?)(/Tensordot|/separable_conv2d|/einsum)?"
    r"/(Conv[123]D|convolution|DepthwiseConv2[dD]\w*|depthwise|separable_conv2d|conv[23]d_transpose|conv_transpose"
    r"|MatMul|einsum|Einsum|embedding_lookup|GatherV2)[_\d]*"
    r"(/ReadVariableOp\d*|/merged_input|/ExpandDims_1|_Gemm|_weights_fused_bn)?[_\d]*(:\d+)?"
)
"""Name of a TensorFlow operation: the layer, the operation, and suffixes that converters append."""

SIGNATURE = re.compile(r"^(StatefulPartitionedCall(_\d+)?/)+")
"""Prefix of all operation names of a SavedModel."""
MODULE, MODULE_CLASS = "edgeopt", "Layer"
"""Module and class name of the wrapper around one layer, as exporters see them; see ``scope_name``."""
PARAMETER = re.compile(r"(?P<layer>.+?)[._](weight|kernel)(_\w+)?")
"""Name of a weight in PyTorch: ``layer1.0.conv1.weight``, ``attention.in_proj_weight``, ``gru.weight_ih_l0``.
"""
DERIVED = re.compile(
    r"(model_)?(?P<layer>.+?)(_token_\d+|_nchwc|_quant|_(?P<part>weight|bias)_(De)?[Qq]uantizeLinear)"
)
"""Names that converters and runtimes derive from that of a layer, or of its weights."""
_CALL = re.compile(r":\d+$")
_SEPARATORS = re.compile(r"[^\w:]")
_NOT_IN_GLOBS = re.compile(r"[^\w:*?\[\]!-]")


def keras_layer(operation: str) -> str:
    """The layer name in the name of a TensorFlow operation; empty if it contains none.

    The name of the outermost model and the loops that run a recurrent cell are omitted.
    """
    match = OPERATION.fullmatch(operation)
    if match is None:
        return ""
    path = SIGNATURE.sub("", match["layer"]).replace("/while/", "/")
    return path.split("/", 1)[1] if "/" in path else path


def scope_name(layer: str) -> str:
    """The scope that the operations of a layer get in an exported program; it contains the layer's name."""
    return f"{MODULE}.{MODULE_CLASS}_{layer}"


def layer_of_scope(operation: str) -> str:
    """The layer name after the innermost scope of ``scope_name`` in an operation name; empty without one."""
    _, scope, layer = operation.rpartition(scope_name(""))
    return layer if scope else ""


def without_call(name: str) -> str:
    """The layer name without the number of the call."""
    return _CALL.sub("", name)


class SourceNames:
    """The names of layers as the author of a model wrote them, instead of those that files can hold.

    ``layer1.0.conv1`` of PyTorch is ``layer1_0_conv1`` in files of all formats.

    Args:
        layers: the names in the source.
    """

    def __init__(self, layers: Iterable[str] = ()) -> None:
        self.layers = tuple(dict.fromkeys(layers))
        self._known = {_plain(name): name for name in self.layers}
        for name in self.layers:  # files omit this first part, as edgeopt wraps modules in one of that name
            self._known.setdefault(_plain(name).removeprefix("model_"), name)

    @classmethod
    def of_weights(cls, names: Iterable[str]) -> "SourceNames":
        """From the names of the weights in the source."""
        matches = map(PARAMETER.fullmatch, names)
        return cls(match["layer"] for match in matches if match is not None)

    def of(self, name: str) -> str:
        """The name in the source, with the call and the part of the layer that follow it; else the name."""
        layer = without_call(name)
        head, slash, part = layer.partition("/")
        parts = [(layer, ""), (head, slash + part)]
        if (match := DERIVED.fullmatch(layer)) is not None:
            parts.append((match["layer"], f"/{match['part']}" if match["part"] else ""))
        for known, rest in parts:
            if (found := self._known.get(_plain(known))) is not None:
                return found + rest + name.removeprefix(layer)
        return name


def calls(names: Iterable[str]) -> list[str]:
    """The layer names, with the number of the call appended to all but the first call of each layer."""
    counts: Counter[str] = Counter()
    result = []
    for name in map(without_call, names):
        counts[name] += 1
        result.append(name if counts[name] == 1 else f"{name}:{counts[name]}")
    return result


def matching(
    patterns: Iterable[str],
    layers: Iterable[str] | Mapping[str, Iterable[str]],
    option: str = "layers",
) -> dict[str, str]:
    """Match the patterns of a recipe to layers: for each matched layer, the last pattern that matches it.

    A pattern matches the layer of exactly that name, with all its calls, or the layers inside the Keras layer
    of that name: ``head`` matches ``head/dense``. Without such a layer it is a glob (`fnmatch`) over whole
    names: ``conv1`` does not match ``block1_conv1``, ``*conv1`` does. ``.``, ``/`` and ``_`` are equivalent,
    because PyTorch's ``layer1.0.conv1`` is ``layer1_0_conv1`` in other formats.

    Args:
        patterns: names or globs, in the order of the recipe.
        layers: names of layers; as a mapping, with the alternative names of each.
        option: the option that contains the patterns, for the message.

    Raises:
        StageError: a pattern matches no layer; the message suggests the nearest names.
    """
    known = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, ())
    matches: dict[str, str] = {}
    for pattern in patterns:
        matches |= dict.fromkeys(_matches(pattern, known, option), pattern)
    return matches


def _matches(pattern: str, layers: Mapping[str, Iterable[str]], option: str) -> list[str]:
    plain, glob = _plain(pattern), _NOT_IN_GLOBS.sub("_", pattern)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == pattern,
        lambda name: _plain(name) == plain,
        lambda name: any(_plain(name[: slash.start()]) == plain for slash in re.finditer("/", name)),
        lambda name: fnmatchcase(_plain(name), glob),
    )
    # In this order, so that the exact name of one layer never acts as a pattern for others.
    for fits in tests:
        if matches := [name for name in layers if fits(name) or fits(without_call(name))]:
            return matches
        if matches := [name for name, others in layers.items() if any(map(fits, others))]:
            return matches
    near = list(dict.fromkeys([*get_close_matches(pattern, layers, n=SHOWN, cutoff=0.4), *layers]))[:SHOWN]
    wider = f"*{pattern}*"
    count = sum(fnmatchcase(_plain(name), f"*{glob}*") for name in layers)
    raise StageError(
        f"{option}: no layer is called {pattern!r}, and no layer matches it as a pattern",
        fix=f"use one of the {len(layers)} names, such as {', '.join(near)}"
        + (f", or the pattern {wider!r}, which matches {count}" if count else ""),
    )


def _plain(name: str) -> str:
    return _SEPARATORS.sub("_", name)
