"""What Python code says about the networks that it defines, found without running it.

A network is a subclass of ``torch.nn.Module``, or a function that returns one. What a class assigns to
``self`` are the first parts of the names of its parameters, and literal arguments of layers are sizes of
their weights.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeopt.config.references import UNPARSABLE

PREFIXES = ("build", "create", "make", "get_model", "load_model")
"""Beginnings of the names of functions that build networks, whatever they return."""
WITHOUT_PARAMETERS = (
    *("ReLU", "GELU", "SiLU", "ELU", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "Softmax", "Softplus"),
    *("LogSoftmax", "Dropout", "Flatten", "Unflatten", "Identity", "Upsample", "Pad", "Pool", "Loss"),
    *("PixelShuffle", "Fold", "Transform"),
)
"""Parts of the names of layers that have no parameters."""
CONVOLUTIONS = {"Conv1d": 3, "Conv2d": 4, "Conv3d": 5}
"""Convolutions, and the number of axes of their weights."""

Sizes = tuple[int | None, ...]
"""Leading sizes of a weight; None where the code does not tell."""


@dataclass(frozen=True)
class Network:
    """What code says about a network."""

    layers: Mapping[str, Sizes] = field(default_factory=dict)
    """Attributes that hold parameters, in order, with the sizes of their weights where these are literal."""
    names: frozenset[str] = frozenset()
    """All attributes, some of which may hold parameters."""
    repeats: tuple[int, ...] = ()
    """Numbers that a function passes on as a list: usually how often each block is repeated."""


@dataclass(frozen=True)
class Definition:
    """A function or class that builds a network."""

    file: Path
    name: str
    required: int
    """The number of arguments that it requires."""
    network: Network | None
    """None if the code does not show what it returns."""


def definitions(files: Sequence[Path]) -> Iterator[Definition]:
    """The functions and classes in Python files that may build a network."""
    trees = {file: tree for file in files if (tree := _tree(file)) is not None}
    classes = {
        node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)
    }
    for file, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and _is_module(node, classes):
                yield Definition(file, node.name, _required(_constructor(node), 1), _of_class(node, classes))
            elif isinstance(node, ast.FunctionDef):
                network = _of_function(node, classes)
                if network is not None or node.name.startswith(PREFIXES):
                    yield Definition(file, node.name, _required(node.args, 0), network)


def network_named(file: Path, name: str) -> Network | None:
    """What the code of one function or class says; None if that is nothing."""
    return next((each.network for each in definitions([file]) if each.name == name), None)


def _tree(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except UNPARSABLE:
        return None


def _last(node: ast.expr | None) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _bases(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef], depth: int = 0) -> Iterator[ast.ClassDef]:
    """A class and those that it is derived from, as far as they are in the same files."""
    yield node
    for base in map(_last, node.bases):
        if base in classes and classes[base] is not node and depth < 8:
            yield from _bases(classes[base], classes, depth + 1)


def _is_module(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> bool:
    return any(
        _last(base) in ("Module", "LightningModule") for each in _bases(node, classes) for base in each.bases
    )


def _constructor(node: ast.ClassDef) -> ast.arguments | None:
    return next(
        (each.args for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"),
        None,
    )


def _required(arguments: ast.arguments | None, implicit: int) -> int:
    if arguments is None:
        return 0
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - implicit
    return positional + sum(default is None for default in arguments.kw_defaults)


def _of_class(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Network:
    names: dict[str, None] = {}
    layers: dict[str, Sizes] = {}
    for each in reversed(list(_bases(node, classes))):
        defaults = _defaults(_constructor(each))
        for name, value in _attributes(each):
            names[name] = None
            if _has_parameters(value):
                layers[name] = _sizes(value, defaults)
    return Network(layers, frozenset(names))


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """What a class assigns to ``self`` in any of its methods, in order."""
    for each in ast.walk(node):
        targets: list[ast.expr] = []
        if isinstance(each, ast.Assign):
            targets = each.targets
        elif isinstance(each, ast.AnnAssign):
            targets = [each.target]
        elif isinstance(each, ast.Call) and _last(each.func) in (
            "add_module",
            "register_parameter",
            "setattr",
        ):
            words = [word for word in each.args if not (isinstance(word, ast.Name) and word.id == "self")]
            if len(words) > 1 and isinstance(words[0], ast.Constant) and isinstance(words[0].value, str):
                yield words[0].value, words[1]
        for target in targets:
            value = each.value if isinstance(each, ast.Assign | ast.AnnAssign) else None
            if isinstance(target, ast.Attribute) and _last(target.value) == "self" and value is not None:
                yield target.attr, value


def _has_parameters(value: ast.expr) -> bool:
    """Whether a value looks like a layer or a block with parameters."""
    if not isinstance(value, ast.Call):
        return False
    name = _last(value.func)
    built = name[:1].isupper() and not any(part in name for part in WITHOUT_PARAMETERS)
    # A method that builds part of the network, such as self._make_layer(16, 3).
    return built or (isinstance(value.func, ast.Attribute) and _last(value.func.value) == "self")


def _defaults(arguments: ast.arguments | None) -> dict[str, int]:
    """The arguments of a function whose default is a number."""
    if arguments is None:
        return {}
    named = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
    pairs = [
        *zip(named, arguments.defaults, strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {each.arg: value for each, default in pairs if (value := _number(default, {})) is not None}


def _number(node: ast.expr | None, known: Mapping[str, int]) -> int | None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return known.get(node.id) if isinstance(node, ast.Name) else None


def _sizes(call: ast.expr, known: Mapping[str, int]) -> Sizes:
    """The leading sizes of the weight of a layer, from its arguments."""
    if not isinstance(call, ast.Call):
        return ()
    kind = _last(call.func)
    given = [_number(each, known) for each in call.args[:2]]
    words = {each.arg: _number(each.value, known) for each in call.keywords}
    first, second = (*given, None, None)[:2]
    if kind in CONVOLUTIONS:
        inner = words.get("in_channels", first) if words.get("groups", 1) == 1 else None
        return words.get("out_channels", second), inner, *[None] * (CONVOLUTIONS[kind] - 2)
    if kind == "Linear":
        return words.get("out_features", second), words.get("in_features", first)
    if kind == "Embedding":
        return words.get("num_embeddings", first), words.get("embedding_dim", second)
    if kind.startswith("BatchNorm"):
        return (words.get("num_features", first),)
    return ()


def _of_function(node: ast.FunctionDef, classes: Mapping[str, ast.ClassDef]) -> Network | None:
    """The network that a function returns; None if that cannot be seen."""
    built: dict[str, ast.expr] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Assign) and len(each.targets) == 1 and isinstance(each.targets[0], ast.Name):
            built.setdefault(each.targets[0].id, each.value)
    for each in ast.walk(node):
        if not isinstance(each, ast.Return):
            continue
        value = built.get(each.value.id) if isinstance(each.value, ast.Name) else each.value
        if not isinstance(value, ast.Call):
            continue
        name = _last(value.func)
        if name == "Sequential":
            layers = {
                str(at): _sizes(layer, {}) for at, layer in enumerate(value.args) if _has_parameters(layer)
            }
            return Network(layers, frozenset(layers)) if layers else None
        if name in classes and _is_module(classes[name], classes):
            network = _of_class(classes[name], classes)
            return Network(network.layers, network.names, _repeats(value))
    return None


def _repeats(call: ast.Call) -> tuple[int, ...]:
    """The first argument that is a list of numbers."""
    for each in (*call.args, *(word.value for word in call.keywords)):
        if isinstance(each, ast.List | ast.Tuple) and each.elts:
            numbers = [_number(item, {}) for item in each.elts]
            if None not in numbers:
                return tuple(number for number in numbers if number is not None)
    return ()
