"""Loops of recurrent layers in the MLIR of litert-torch: WHILE operators instead of unrolled steps.

TFLite's own sequence operators keep their state between two calls of ``Invoke()``, so a second sample would
start where the first one ended. A WHILE operator has no memory; it takes the states as inputs.
"""

from typing import Any

import numpy as np


def register(operator: Any) -> None:
    """Teach litert-torch an operator ``edgeopt::step_loop``; `lower` documents its arguments."""
    from litert_torch.backend import lowerings

    lowerings.lower(operator)(lower)


def lower(
    context: Any, projected: Any, weight: Any, bias: Any, hidden: Any, cell: Any, kind: str, reverse: bool
) -> tuple[Any, Any, Any]:
    """The loop over the steps of one recurrent layer, as a ``stablehlo.while``.

    Args:
        context: litert-torch's ``LoweringContext``.
        projected: the products of the inputs of all steps, ``[steps, batch, gates * size]``.
        weight: ``[gates * size, size]``; gates in the order of PyTorch.
        bias: ``[gates * size]``, or None.
        hidden: the first state, ``[batch, size]``.
        cell: of an LSTM, its cell state; otherwise unused.
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        reverse: whether the loop starts at the last step.

    Returns:
        The hidden states of all steps ``[steps, batch, size]``, and the last hidden and cell state.
    """
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo as hlo

    steps, batch, _ = projected.type.shape
    size = hidden.type.shape[1]
    is_lstm = kind == "lstm"
    # The buffer of the outputs needs no values: a constant would be stored in the file, so a part of the
    # products, which has the right shape, is used.
    buffer = _part(projected, 0, size)
    states = [_number(0), buffer, hidden, *([cell] if is_lstm else [])]
    # litert-torch copies operators without looking into their regions, so that no value from outside may
    # occur there. The converter moves what never changes out of the loop again.
    constants = [projected, weight, *([] if bias is None else [bias])]
    types = [value.type for value in (*states, *constants)]
    loop = hlo.WhileOp(types, [*states, *constants])
    condition, body = (region.blocks.append(*types) for region in loop.regions)
    with ir.InsertionPoint(condition):
        less = ir.Attribute.parse("#stablehlo<comparison_direction LT>")
        hlo.return_([hlo.compare(condition.arguments[0], _number(steps), less)])
    # The name of the layer belongs to the product alone.
    with ir.InsertionPoint(body), ir.Location.name("step"):
        count, buffer, hidden, *rest = body.arguments
        cell = rest.pop(0) if is_lstm else hidden
        projected, weight, *bias = rest
        at = hlo.subtract(_number(steps - 1), count) if reverse else count
        row = _row(projected, at)
        with context.loc:
            product = _product(hidden, weight, *bias)
        hidden, cell = _next(kind, row, product, hidden, cell)
        place = [at, _number(0), _number(0)]
        update = hlo.reshape(_float([1, batch, size]), hidden)
        buffer = hlo.dynamic_update_slice(buffer, update, place)
        changed = [hlo.add(count, _number(1)), buffer, hidden, *([cell] if is_lstm else [])]
        hlo.return_([*changed, *rest])
    return loop.results[1], loop.results[2], loop.results[3 if is_lstm else 2]


def _next(kind: str, row: Any, product: Any, hidden: Any, cell: Any) -> tuple[Any, Any]:
    """The next hidden and cell state; ``row`` and ``product`` are ``[batch, gates * size]``."""
    from litert_converter.mlir.dialects import stablehlo as hlo

    size = hidden.type.shape[1]
    if kind == "gru":
        gates = hlo.logistic(hlo.add(_part(row, 0, 2 * size), _part(product, 0, 2 * size)))
        reset, update = _part(gates, 0, size), _part(gates, size, 2 * size)
        inner = hlo.multiply(reset, _part(product, 2 * size, 3 * size))
        new = hlo.tanh(hlo.add(_part(row, 2 * size, 3 * size), inner))
        return hlo.add(new, hlo.multiply(update, hlo.subtract(hidden, new))), cell
    total = hlo.add(row, product)
    if kind == "lstm":
        enter, forget, new, leave = (_part(total, gate * size, (gate + 1) * size) for gate in range(4))
        kept = hlo.multiply(hlo.logistic(forget), cell)
        cell = hlo.add(kept, hlo.multiply(hlo.logistic(enter), hlo.tanh(new)))
        return hlo.multiply(hlo.logistic(leave), hlo.tanh(cell)), cell
    if kind == "rnn_tanh":
        return hlo.tanh(total), cell
    from litert_torch.backend.lowerings import utils

    return hlo.maximum(total, utils.splat(0.0, total.type.element_type, total.type.shape)), cell


def _float(shape: list[int]) -> Any:
    from litert_converter.mlir import ir

    return ir.RankedTensorType.get(shape, ir.F32Type.get())


def _number(value: int) -> Any:
    from litert_torch.backend.lowerings import utils

    return utils.numpy_array_constant(np.int32(value))


def _part(value: Any, start: int, stop: int) -> Any:
    """The elements from ``start`` to ``stop`` of the last axis."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo as hlo

    shape, integers = list(value.type.shape), ir.DenseI64ArrayAttr.get
    return hlo.slice(
        value,
        integers([0] * (len(shape) - 1) + [start]),
        integers([*shape[:-1], stop]),
        integers([1] * len(shape)),
    )


def _row(values: Any, index: Any) -> Any:
    """``values[index]``: one GATHER, where a dynamic slice would need five operators."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo as hlo

    attributes = {
        "axis": ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 0),
        "batch_dims": ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 0),
    }
    return hlo.custom_call(
        result=[_float(list(values.type.shape[1:]))],
        inputs=[values, index],
        call_target_name=ir.StringAttr.get("tfl.gather"),
        has_side_effect=ir.BoolAttr.get(False),
        backend_config=ir.StringAttr.get(str(ir.DictAttr.get(attributes))),
    )


def _product(hidden: Any, weight: Any, bias: Any = None) -> Any:
    """``hidden @ weight.T + bias``: one FULLY_CONNECTED."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo as hlo

    result = _float([hidden.type.shape[0], weight.type.shape[0]])
    product = hlo.dot_general(result, hidden, weight, hlo.DotDimensionNumbers.get([], [], [1], [1]))
    if bias is None:
        return product
    return hlo.add(product, hlo.broadcast_in_dim(result, bias, ir.DenseI64ArrayAttr.get([1])))


def outline(model: Any) -> None:
    """Move the bodies of the loops of a converted model into functions: a file has a subgraph for each.

    litert-torch's converter lacks this pass, without which the model cannot be written.

    Args:
        model: the result of ``litert_torch.convert``, changed in place.
    """
    from litert_converter.mlir import ir

    module = model._exporter._module_op
    loops: list[Any] = []

    def visit(operation: Any) -> Any:
        if operation.name == "tfl.while":
            loops.append(operation)
        return ir.WalkResult.ADVANCE

    module.walk(visit)
    with module.context, ir.Location.unknown():
        for number, loop in enumerate(loops):
            _outline(module, loop, number)


def _outline(module: Any, loop: Any, number: int) -> None:
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import func

    captured: list[Any] = []
    for region in loop.regions:
        for value in _outer(region.blocks[0]):
            if not _is_constant(value) and value not in captured:
                captured.append(value)
    types = [value.type for value in (*loop.operands, *captured)]
    with ir.InsertionPoint(loop):
        new = ir.Operation.create(
            "tfl.while",
            results=types,
            operands=[*loop.operands, *captured],
            attributes={"is_stateless": ir.BoolAttr.get(False)},
            regions=2,
        )
    for region, outlined, name in zip(loop.regions, new.regions, ("condition", "body"), strict=True):
        block = region.blocks[0]
        # The body returns the captured values unchanged: all its arguments are those of the next step.
        returned = captured if name == "body" else []
        results = [*block.operations[len(block.operations) - 1].operands, *returned]
        function = func.FuncOp(
            f"loop_{number}_{name}",
            ir.FunctionType.get(types, [value.type for value in results]),
            visibility="private",
            ip=ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]),
        )
        entry = function.add_entry_block()
        known = dict(zip((*block.arguments, *captured), entry.arguments, strict=True))
        with ir.InsertionPoint(entry):
            _copy(block, known)
            func.ReturnOp([known[value] for value in results])
        with ir.InsertionPoint(outlined.blocks.append(*types)):
            call = func.CallOp(function, list(outlined.blocks[0].arguments))
            ir.Operation.create("tfl.yield", operands=list(call.results))
    for old, result in zip(loop.results, new.results, strict=False):
        old.replace_all_uses_with(result)
    loop.erase()


def _copy(block: Any, known: dict[Any, Any]) -> None:
    """Copy the operators of a block except its last to the insertion point, and with them outer constants."""
    for value in _outer(block):
        if value not in known:
            known[value] = value.owner.operation.clone().results[0]
    for operation in list(block.operations)[:-1]:
        copy = operation.operation.clone()
        for place, value in enumerate(operation.operands):
            copy.operands[place] = known[value]
        known.update(zip(operation.results, copy.results, strict=True))


def _outer(block: Any) -> list[Any]:
    """The values from outside that the operators of a block read."""
    from litert_converter.mlir import ir

    def home(value: Any) -> Any:
        return value.owner if isinstance(value.owner, ir.Block) else value.owner.operation.block

    values = [value for operation in block.operations for value in operation.operands]
    return [value for value in values if home(value) != block]


def _is_constant(value: Any) -> bool:
    from litert_converter.mlir import ir

    # ``tfl.no_value`` stands for a bias that a layer does not have.
    kinds = ("arith.constant", "tfl.no_value")
    return not isinstance(value.owner, ir.Block) and value.owner.operation.name in kinds
