"""A trial run of an ExecuTorch program, whose failures name operators instead of error numbers.

ExecuTorch's runtime reports failures as numbers; what failed is only in its log, on standard error.
"""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.graph.operators import operator_name
from edgeopt.formats.torch.lab import runtimes

if TYPE_CHECKING:
    from torch.export import ExportedProgram

XNNPACK_NODE = re.compile(
    r"Failed to (?:create|define) (?:the )?(.+?) (?:node|operator)\b.*?(xnn_status_\w+)"
)
DELEGATE = re.compile(r"(Init failed for backend|XNNCompiler)|CALL_DELEGATE execute failed")
KERNEL = re.compile(r"in operator (\S+?):? 0x")
REASON = re.compile(r"Check failed \(.*\): (.*\S)")
CODE = re.compile(r",? *(?:(?:with )?(?:error|status)(?: code)?:? *|: *)?\b0x[0-9a-fA-F]+")
"""An error number in the log, with the words that introduce it."""
NAMED = re.compile(r"\b(?:torch\._ops\.|torch\.ops\.)?aten(?:\.|::)(\w+)")
"""An operator in the message of an exception."""
SIZE = re.compile(r"\bu\d+\b")
"""A size that depends on values, in the message of an exception."""
SHOWN = 4
"""Number of operators in a message."""


class NoKernel(RuntimeError):
    """A kernel is missing, or does not support the operator's arguments."""


def check(content: bytes, lowered: Any, program: "ExportedProgram") -> None:
    """Load a program and run it once on zeros.

    Args:
        content: the file.
        lowered: the program in the form in which it was written.
        program: the program before lowering.

    Raises:
        NoKernel: a kernel is missing or fails; the message names its operator, as do others.
        RuntimeError: XNNPACK rejects an operator.
    """
    if missing := _missing(lowered, program):
        raise NoKernel(f"its runtime has no kernel for {'; '.join(missing[:SHOWN])}")
    inputs = (program.example_inputs or ((), {}))[0]
    with _captured() as log:
        try:
            # A method without inputs has no sample to run on: loading it initializes the delegate.
            run = runtimes.load_executorch(content)
            run(*(value.detach().clone() for value in inputs))
            return
        except RuntimeError as error:
            text = log() or str(error)
            kind = NoKernel if KERNEL.search(text) and not XNNPACK_NODE.search(text) else RuntimeError
            raise kind(_reason(text, lowered, program)) from error


def explain(message: str, program: "ExportedProgram") -> str:
    """The message of an exception of the compiler, with the layers of the operators that it is about."""
    names = set(NAMED.findall(message))
    sizes = SIZE.search(message)
    nodes = [
        node
        for node in program.graph.nodes
        if operator_name(node) in names or (sizes and node.meta.get("unbacked_bindings"))
    ]
    found = list(dict.fromkeys(_described(node, program, program) for node in nodes))
    if not found:
        return message
    # What follows is advice on the compiler's options.
    cause = message.partition("\n")[0].partition(" (http")[0]
    return f"it does not support {' or '.join(found[:SHOWN])}: {cause}"


def suspects(message: str, delegated: Mapping[str, int]) -> Iterable[str]:
    """Kinds of delegated operators, those first that a message mentions, then the rarest."""

    # XNNPACK writes names in another way: StaticConstantPad is constant_pad_nd.
    text = message.lower()

    def order(kind: str) -> tuple[bool, int]:
        words = kind.partition(".")[0].replace("_copy", "").split("_")
        return not any(word and word in text for word in words), delegated[kind]

    return sorted((kind for kind, count in delegated.items() if count), key=order)


def _missing(lowered: Any, program: "ExportedProgram") -> list[str]:
    import torch
    from executorch.extension.pybindings import _portable_lib

    known = set(_portable_lib._get_operator_names())
    nodes = [
        node
        for node in lowered.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.name() not in known
    ]
    return list(dict.fromkeys(_described(node, lowered, program) for node in nodes))


def _described(node: Any, lowered: Any, program: "ExportedProgram") -> str:
    """An operator, with the layer that it belongs to or follows in the model."""
    name = node.target._opname
    origin = next((source.name for source in node.meta.get("from_node", ())), node.name)
    # A decomposition names an operator that implements another one after it, with an underscore before.
    names = (origin, node.name, origin.removeprefix("_"))
    found = next((known for known in program.graph.nodes if known.name in names), None)
    layer = _layer_of(found, program) if found is not None else _layer_of(node, lowered)
    return f"{name} ({layer})" if layer else str(name)


def _layer_of(node: Any, program: Any) -> str:
    """The layer whose weights an operator reads, or the nearest one before it."""
    signature = program.graph_signature
    constants = signature.inputs_to_parameters | signature.inputs_to_buffers
    place, seen = [node], set()
    while place:
        current = place.pop(0)
        for source in current.all_input_nodes:
            if source.name in constants:
                layer = constants[source.name].removeprefix("model.").removeprefix("model_")
                layer = re.sub(r"[._]?(weight|bias|kernel)$", "", layer)
                return f"layer {layer}" if current is node else f"after layer {layer}"
            if source not in seen:
                seen.add(source)
                place.append(source)
    return ""


def _reason(log: str, lowered: Any, program: "ExportedProgram") -> str:
    """What failed, from the log of the runtime."""
    if match := XNNPACK_NODE.search(log):
        return f"XNNPACK rejects the operator {match[1]} ({match[2]})"
    reason = "; ".join(dict.fromkeys(REASON.findall(log)))
    detail = f": {reason}" if reason else ""
    if match := KERNEL.search(log):
        nodes = [node for node in lowered.graph.nodes if _is_named(node, match[1])]
        names = list(dict.fromkeys(_described(node, lowered, program) for node in nodes)) or [match[1]]
        return f"its kernel does not support {' or '.join(names[:SHOWN])} here{detail}"
    if match := DELEGATE.search(log):
        return f"the delegate XNNPACK cannot {'load' if match[1] else 'run'} its part of the program{detail}"
    lines = [CODE.sub("", line.rpartition("] ")[2]).strip() for line in log.splitlines()]
    detail = detail or ": " + "; ".join(dict.fromkeys(filter(None, lines)))[-500:]
    return f"its runtime cannot load or run the program{detail}"


def _is_named(node: Any, name: str) -> bool:
    import torch

    return isinstance(node.target, torch._ops.OpOverload) and node.target.name() == name


@contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Redirect standard error, Python's and that of the process; yields a function that reads both."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        lines = io.StringIO()
        try:
            # The bindings write to Python's stream, which need not be that of the process.
            with redirect_stderr(lines):
                yield lambda: lines.getvalue() + _content(file)
        finally:
            os.dup2(before, 2)
            os.close(before)


def _content(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode("utf-8", "replace")
    return text
