"""Lowering of an exported program to an ExecuTorch program with the XNNPACK delegate."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import chain, permutations
from typing import TYPE_CHECKING, Any

from edgeopt.errors import StageError
from edgeopt.formats.torch.graph.layers import layer_of
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import executorch_check

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, ArithmeticError)
"""Exceptions of Python that ExecuTorch raises for operators that it or XNNPACK cannot lower."""
TRIALS = 5
"""Number of lowerings, seconds each, after one that failed."""
LAYERS = frozenset({"convolution.default", "linear.default", "addmm.default", "mm.default", "bmm.default"})
"""Operators of XNNPACK with weights."""
MOVES = frozenset(
    {
        *("slice_copy.Tensor", "view_copy.default", "permute_copy.default", "cat.default"),
        "constant_pad_nd.default",
    }
)
"""Operators of XNNPACK that copy int8 values, and so cannot change the scale."""
CYCLE = "dependency cycle"
"""Part of the message about a part for XNNPACK that feeds another operator and reads what that computes."""
COMMUTATIVE = frozenset({"add.Tensor", "mul.Tensor"})
"""Operators whose int8 kernels of XNNPACK free memory twice, and end the process, if a computed operand is
spread over a constant one, or one of ``FUNCTIONS`` over one that comes from another part of the program. The
rest of the arithmetic is fine, as is float."""
FUNCTIONS = frozenset(
    {
        *("exp.default", "log.default", "sqrt.default", "rsqrt.default", "sigmoid.default", "tanh.default"),
        *("gelu.default", "leaky_relu.default", "neg.default", "sin.default", "cos.default"),
        *("floor.default", "ceil.default"),
    }
)
"""Functions of single values that XNNPACK computes in float between int8 values."""


def lower(program: "ExportedProgram") -> bytes:
    """Delegate the supported operators to XNNPACK; the rest runs on portable kernels.

    The result has been loaded and run once. Operators that XNNPACK accepts but cannot run are left to the
    portable kernels: those are found by lowering without some kinds of operators.

    Returns:
        The contents of a ``.pte`` file.

    Raises:
        StageError: ExecuTorch cannot lower or run the program, or a quantized layer would compute in float.
    """
    delegated: Counter[str] = Counter()
    failures = _failures()
    _order_constants(program)
    try:
        return _lower(program, (), delegated)
    except failures as error:
        first = error
    # Without its kernel, no operator runs on the portable kernels either.
    if not isinstance(first, executorch_check.NoKernel):
        exclusions = _exclusions(str(first), delegated)
        if CYCLE in str(first):
            _separate_readers(program)
            exclusions = chain([()], exclusions)
        for excluded in exclusions:
            try:
                return _lower(program, excluded)
            except failures:
                continue
            except StageError:  # a quantized layer needs an excluded kind
                continue
    raise StageError(
        f"ExecuTorch cannot run the model: {executorch_check.explain(torch_engine.brief(first), program)}",
        fix="replace the operator that the message names, or remove executorch from 'formats'",
    ) from first


def _order_constants(program: "ExportedProgram") -> None:
    """Give constants the strides of their shape, in place.

    The strides of axes of size 1 are arbitrary: a permuted ``[1, 8, 1, 1]``, as of Keras' normalizations, is
    contiguous in every order. Kernels compare the order of axes that ExecuTorch derives from them.
    """
    import torch

    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    names |= signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        for store in (program.state_dict, program.constants):
            value = store.get(names.get(node.name, "")) if node.op == "placeholder" else None
            if not isinstance(value, torch.Tensor) or not value.is_contiguous():
                continue
            if value.dim_order() == tuple(range(value.dim())):
                continue
            ordered = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
            own = isinstance(value, torch.nn.Parameter)
            store[names[node.name]] = torch.nn.Parameter(ordered, value.requires_grad) if own else ordered
            with node.meta["val"].fake_mode:
                node.meta["val"] = torch.empty(value.shape, dtype=value.dtype)


def _separate_readers(program: "ExportedProgram") -> None:
    """Dequantize a value for each of its readers, in place.

    torchao does so for operators that it quantizes. Where another one shares its value with such an operator,
    as the float sum behind a mean that is subtracted, the part for XNNPACK would feed it and wait for it.
    """
    graph = program.graph_module.graph
    for node in [node for node in graph.nodes if "dequantize" in str(node.target)]:
        for reader in [*node.users][1:]:
            with graph.inserting_after(node):
                reader.replace_input_with(node, graph.node_copy(node))


def _failures() -> tuple[type[Exception], ...]:
    """``FAILURES`` and those that ExecuTorch and ``torch.export`` define, which share no base class."""
    from executorch.exir.error import ExportError, InternalError
    from torch._export.verifier import SpecViolationError

    return (SpecViolationError, ExportError, InternalError, *FAILURES)


def _exclusions(message: str, delegated: Mapping[str, int]) -> Iterator[Collection[str]]:
    """Kinds of operators to lower without, ``TRIALS`` times at most: the likely ones alone, then all."""
    kinds = list(executorch_check.suspects(message, delegated))
    for kind in kinds[: TRIALS - 2]:
        yield {kind}
    # Layers last: quantized ones need XNNPACK.
    yield {kind for kind in kinds if kind not in LAYERS}
    yield set(kinds)


def _lower(program: "ExportedProgram", excluded: Collection[str], delegated: Any = None) -> bytes:
    """Lower and check a program.

    Args:
        program: the program.
        excluded: operators that XNNPACK does not get: kinds, or names of nodes.
        delegated: counts the operators that XNNPACK gets, by kind.
    """
    with torch_engine.quiet():
        from executorch.exir import to_edge_transform_and_lower

        delegated = Counter() if delegated is None else delegated
        with _CausesOfPasses():
            edge = to_edge_transform_and_lower(program, partitioner=[_partitioner(excluded, delegated)])
            while functions := _spread_functions(edge.exported_program()):
                excluded = {*excluded, *functions}
                edge = to_edge_transform_and_lower(program, partitioner=[_partitioner(excluded, delegated)])
        # An operator that the partitioner rejects falls back to dequantize and float without a warning.
        if fallbacks := _float_fallbacks(edge.exported_program()):
            raise StageError(
                f"XNNPACK has no int8 kernel for {', '.join(fallbacks)}: they would compute in float",
                fix="declare this in the recipe with layers: "
                f"{{{', '.join(f'{name!r}: float32' for name in fallbacks)}}}",
            )
        lowered = edge.to_executorch()
        content = bytes(lowered.buffer)
    executorch_check.check(content, lowered.exported_program(), program)
    return content


class _CausesOfPasses:
    """Raises what failed in a pass of the compiler instead of what its pass manager raises.

    That is a bare ``Exception`` with the log in its message. Exceptions of other types pass as they are.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        while type(error) is Exception and error.__cause__ is not None:
            error = error.__cause__
        if type(error) is Exception:
            raise RuntimeError(torch_engine.brief(error).partition("\n")[0]) from None
        if kind is Exception and error is not None:
            raise error from None


def _partitioner(excluded: Collection[str], delegated: "Counter[str]") -> Any:
    """The XNNPACK partitioner, without operators that it accepts although XNNPACK cannot run them."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    partitioner, excluded = XnnpackPartitioner(), frozenset(excluded)

    def constrained(kind: str, accepts: Any) -> Any:
        def check(node: Any, program: Any) -> bool:
            wanted = excluded.isdisjoint((kind, node.name))
            accepted = wanted and _is_runnable(kind, node) and accepts(node, program)
            delegated[kind] += accepted
            return bool(accepted)

        return check

    for kind, config in partitioner.target_partitioner_configs.items():
        config.check_constraints = constrained(kind, config.check_constraints)
    return partitioner


def _is_runnable(kind: str, node: Any) -> bool:
    if kind == "prelu.default":
        return bool(node.args[0].meta["val"].dim() == 4)
    if kind in MOVES:
        # A conversion between two scales around the operator is no int8 operator.
        sources = [source.args[1:] for source in node.all_input_nodes if "dequantize" in str(source.target)]
        results = [user.args[1:] for user in node.users if "quantize_per_tensor" in str(user.target)]
        return len({str(scale) for scale in (*sources, *results)}) <= 1 or not (sources and results)
    return kind not in COMMUTATIVE or not _spreads_over_constant(node)


def _spreads_over_constant(node: Any) -> bool:
    """Whether an int8 operator spreads a computed operand over a constant: ``[4, 1]`` times ``[4, 4]``."""
    computed, constant = [], False
    for source in node.all_input_nodes:
        if "dequantize" not in str(source.target):
            return False
        stored = source.args[0].op in ("placeholder", "get_attr")
        constant |= stored
        computed += [] if stored else [source]
    return constant and any(each.meta["val"].shape != node.meta["val"].shape for each in computed)


def _spread_functions(program: Any) -> set[str]:
    """The ``FUNCTIONS`` in a part for XNNPACK that end the process there: see ``COMMUTATIVE``."""
    found = set()
    parts = (getattr(each, "original_module", None) for each in program.graph_module.children())
    for node in [node for part in parts if part is not None for node in part.graph.nodes]:
        operands = node.all_input_nodes
        if _kind(node) not in COMMUTATIVE or len(operands) != 2:
            continue
        if not all("dequantize" in str(each.target) for each in operands):
            continue  # float
        for one, other in permutations(operands):
            function = _computed_by(other)
            spread = other.meta["val"].shape != node.meta["val"].shape
            if spread and _kind(function) in FUNCTIONS and _computed_by(one).op == "placeholder":
                found.add(function.name)
    return found


def _computed_by(node: Any) -> Any:
    """What has computed a value, before it was quantized, dequantized and moved."""
    while node.op == "call_function" and ("quantize" in str(node.target) or _kind(node) in MOVES):
        node = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
    return node


def _kind(node: Any) -> str:
    """The operator, as ``add.Tensor``; '' if a node is none."""
    return node.target.__name__.removeprefix("aten.") if node.op == "call_function" else ""


def _float_fallbacks(program: Any) -> list[str]:
    """The layers, or else the weights, of int8 that are dequantized outside the delegate."""
    signature = program.graph_signature
    constants = signature.inputs_to_parameters | signature.inputs_to_buffers
    constants |= signature.inputs_to_lifted_tensor_constants
    return [
        layer_of(constants[node.args[0].name]) or constants[node.args[0].name]
        for node in program.graph.nodes
        if node.op == "call_function"
        and "dequantize" in str(node.target)
        and getattr(node.args[0], "name", "") in constants
    ]
