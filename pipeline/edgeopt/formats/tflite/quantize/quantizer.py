"""Quantization with ai-edge-quantizer, from an explicit recipe for every layer.

The library silently skips layers that it does not support: `precision.verify` detects them.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from edgeopt.errors import StageError
from edgeopt.formats.tflite.graph.layers import Step, WeightedLayer
from edgeopt.formats.tflite.quantize.precision import Plan

Ranges: TypeAlias = dict[str, dict[str, Any]]
"""Minimum and maximum of each tensor, by tensor name, as arrays of one element: ``{"min": …, "max": …}``."""
ACTIVATION_BITS = {"int4": 8, "int8": 8, "int16": 16}
WEIGHT_BITS = {"int4": 4, "int8": 8, "int16": 8}
IN_LOOPS = (
    "layers in loops have int8 weights, and quantize their input at run time: all else in a loop is float"
)
"""Note on static quantization."""
UNPACKED = frozenset({"DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
"""Operators without a kernel for int4 weights."""


def without_kernel(layers: Sequence[WeightedLayer], patterned: Plan) -> list[WeightedLayer]:
    """The layers of kinds that the library does not know, except those with a precision in ``patterned``.

    Raises:
        StageError: no other layer is left.
    """
    unknown = [layer for layer in layers if not patterned[layer.name] and _operation(layer.step) is None]
    if len(unknown) == len(layers):
        raise StageError(
            f"no layer has a quantized kernel: {', '.join(layer.label for layer in unknown)}",
            fix="remove quantize from this variant",
        )
    return unknown


def static_recipe(
    layers: Sequence[WeightedLayer],
    plan: Plan,
    usual: str,
    *,
    per_channel: bool,
    io: str,
    inner: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Recipe for static quantization: everything in ``usual`` (``int8`` or ``int16``), layers as in ``plan``.

    Operators without weights are ``usual`` if the runtime has a kernel for it, but float after a float layer;
    if all layers are float, the whole file is. ``inner`` are the tensors of loops and branches, where
    everything stays float except the weights of layers: their kernels quantize the input at run time.

    Raises:
        StageError: no kernel supports the precision of a layer.
    """
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    weights = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    recipe = recipe_manager.RecipeManager()
    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    # The last matching entry of a recipe applies, so the general one comes first.
    recipe.add_static_config(".*", everything, ACTIVATION_BITS[usual], 8, weights)
    if io == "float32":
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            recipe.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for tensor in filter(None, inner):
        recipe.add_quantization_config(
            f"(^|;){re.escape(tensor)};", everything, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    for layer in layers:
        precision, operation = plan[layer.name], _operation(layer.step)
        if layer.inner and precision == "int4":
            raise StageError(
                f"{layer.label} is in a loop or branch, where it cannot be {precision}",
                fix=f"change its precision: layers: {{{layer.name!r}: int8}}",
            )
        if layer.inner and precision != "float32" and operation is not None:
            with _errors_named(layer, precision):
                recipe.add_dynamic_config(_only(layer.step), operation, WEIGHT_BITS[precision], weights)
            continue
        if layer.kind == "EMBEDDING_LOOKUP" and precision != "float32":
            # No static scheme has it: the rows of the table are int8, and widened when they are read.
            recipe.add_dynamic_config(_only(layer.step), operation, WEIGHT_BITS[precision], weights)
            continue
        if precision == usual or operation is None:
            continue
        if precision == "float32":
            for step in (layer.step, *layer.followers):
                if (known := _operation(step)) is not None:
                    recipe.add_quantization_config(
                        _only(step), known, algorithm_key=AlgorithmName.NO_QUANTIZE
                    )
        else:
            activations, bits = ACTIVATION_BITS[precision], WEIGHT_BITS[precision]
            with _errors_named(layer, precision):
                if bits == 4 and layer.kind in UNPACKED:
                    raise ValueError("no kernel supports them")
                recipe.add_static_config(_only(layer.step), operation, activations, bits, weights)
    return list(recipe.get_quantization_recipe())


def weights_recipe(
    layers: Sequence[WeightedLayer], plan: Plan, *, per_channel: bool, block: int | None, unpack: bool
) -> list[dict[str, Any]]:
    """Recipe for weight-only and dynamic quantization: int8, int4 or float16 weights, float activations.

    Kernels read int8 and int4 weights directly, or with ``unpack`` after a DEQUANTIZE operator; float16 is
    always unpacked. int4 has one scale per channel, or per ``block`` of weights.

    Raises:
        StageError: no kernel supports the precision of a layer; the message names it.
    """
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    granularity = qtyping.QuantGranularity
    recipe = recipe_manager.RecipeManager()
    for layer in layers:
        precision, operation = plan[layer.name], _operation(layer.step)
        if precision == "float32" or operation is None:
            continue
        blocks = block if precision == "int4" else None
        with _errors_named(layer, precision if blocks is None else f"int4 in blocks of {blocks}"):
            if precision == "float16":
                casting = AlgorithmName.FLOAT_CASTING
                recipe.add_weight_only_config(_only(layer.step), operation, 16, algorithm_key=casting)
                continue
            grain = granularity.CHANNELWISE if per_channel else granularity.TENSORWISE
            if blocks is not None:
                grain = granularity(f"BLOCKWISE_{blocks}")
                if layer.row % blocks:
                    raise ValueError(f"its rows of {layer.row} weights are not a multiple of {blocks}")
            # Some kernels do not support int4, and the hybrid depthwise kernel reads past the end of a single
            # int8 scale (7 % agreement, or NaN). Unpacking works for all of them; `skip_checks`, because the
            # library's policy does not list it.
            needs_unpacking = precision == "int4" and layer.kind in UNPACKED and blocks is None
            needs_unpacking |= layer.kind == "DEPTHWISE_CONV_2D" and not per_channel
            unpacked = unpack or needs_unpacking
            recipe.add_quantization_config(
                _only(layer.step),
                operation,
                qtyping.OpQuantizationConfig(
                    weight_tensor_config=qtyping.TensorQuantizationConfig(
                        num_bits=WEIGHT_BITS[precision], symmetric=True, granularity=grain
                    ),
                    compute_precision=qtyping.ComputePrecision.FLOAT
                    if unpacked
                    else qtyping.ComputePrecision.INTEGER,
                    explicit_dequantize=unpacked,
                    skip_checks=unpacked,
                ),
            )
    return list(recipe.get_quantization_recipe())


def quantized(content: bytes, name: str, recipe: list[dict[str, Any]], ranges: Ranges | None = None) -> bytes:
    """Quantize a file; ``ranges`` are required for static quantization. An empty recipe changes nothing.

    Raises:
        StageError: the library cannot quantize the file; the message contains its reason.
    """
    from ai_edge_quantizer import quantizer

    if not recipe:
        return content
    try:
        with warnings.catch_warnings():
            # The library opens the float model again with all tensors preserved, and LiteRT warns about the
            # memory for that.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            library = quantizer.Quantizer(content, recipe)
            result = library.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise StageError(f"ai-edge-quantizer cannot quantize {name}: {error}") from error
    return bytes(result.quantized_model or b"")


@contextmanager
def _errors_named(layer: WeightedLayer, precision: str) -> Iterator[None]:
    """Convert an error of the library into one that names the layer."""
    try:
        yield
    except ValueError as error:
        reason = re.split(r"\.? Error: | with config", str(error))[0]
        raise StageError(
            f"{layer.label} cannot have {precision} weights: {reason}",
            fix=f"change the options, or use more bits: layers: {{{layer.name!r}: float32}}",
        ) from error


def _only(step: Step) -> str:
    """A regular expression that matches exactly the operator's outputs, joined as in the library."""
    return f"^{re.escape(';'.join(filter(None, step.outputs)))};$"


def _operation(step: Step) -> Any:
    """The operator's name in the library; None if it has none, so that the operator stays float."""
    from ai_edge_quantizer import qtyping

    try:
        return qtyping.TFLOperationName("CONV_2D_TRANSPOSE" if step.kind == "TRANSPOSE_CONV" else step.kind)
    except ValueError:
        return None
