"""Weight quantization to 8 and 4 bits for XNNPACK, with activations quantized dynamically to 8 bits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.graph.recurrent import STEP_LOOP
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

WEIGHT_LEVELS = {"int8": (-127, 127), "int4": (-8, 7)}
QUANTIZED = WEIGHTED | {STEP_LOOP}
SMALLEST_SCALE = 2**-12


def has_kernel(node: Any, graph: "GraphModule", precision: str) -> bool:
    """Whether XNNPACK has a kernel for a layer with weights of ``precision`` and dynamic int8 activations.

    It has kernels for linear layers, and in int8 for 2D convolutions with more than one input channel per
    group (``executorch/backends/xnnpack/partition/config/gemm_configs.py``).
    """
    kind = operator_name(node)
    if kind == STEP_LOOP:
        return precision == "int8"
    if kind not in ("linear", "conv2d") or node.args[1].op != "get_attr":
        return False
    if kind == "linear":
        return True
    return precision == "int8" and graph.get_buffer(str(node.args[1].target)).shape[1] > 1


def quantize(
    graph: "GraphModule", inputs: Sequence[TensorSpec], plan: Mapping[str, str], group_size: int
) -> "ExportedProgram":
    """Quantize the weights of the layers in ``plan`` and export the result.

    Weights are symmetric with one scale per output channel. 4-bit weights have one scale per ``group_size``
    inputs if that divides the number of inputs (torchao's ``Int8DynamicActivationIntxWeightConfig``). All
    other layers go through ``prepare_pt2e`` and ``convert_pt2e``.

    Args:
        graph: a graph in the plain form.
        inputs: its input specs.
        plan: node name -> ``int8`` or ``int4``.
        group_size: inputs per scale of 4-bit weights.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    float_graph = torch_to_modules.with_modules(graph)
    # Export renames nodes but keeps their order: this order maps the names of ``plan`` to the new ones.
    order = [node.name for node in graph.graph.nodes if operator_name(node) in QUANTIZED]
    grouped = {
        name
        for name, precision in plan.items()
        if precision == "int4" and _inputs(float_graph, name) % group_size == 0
    }
    module: Any = float_graph
    if grouped:
        module = _quantize_groups(float_graph, grouped, group_size)
    module = torch_program.export(module, inputs).module(check_guards=False)
    rest = {name: precision for name, precision in plan.items() if name not in grouped}
    loops = set[str]()
    if rest:
        exported = [node for node in module.graph.nodes if operator_name(node) in QUANTIZED]
        chosen = {node: rest[name] for name, node in zip(order, exported, strict=True) if name in rest}
        loops = {node.name for node in chosen if operator_name(node) == STEP_LOOP}
        precision_of = {node.name: chosen[node] for node in chosen if node.name not in loops}
        module = prepare_pt2e(module, _quantizer(precision_of))
        # Activations are quantized at run time: only the weight observers need data.
        torch_ranges.assign(module, torch_ranges.Ranges({}, 0))
        module = convert_pt2e(module)
    torch_recurrent.to_scans(module, loops)
    return torch_program.export(module, inputs)


def _inputs(float_graph: "GraphModule", name: str) -> int:
    return int(float_graph.get_submodule(f"{torch_to_modules.PREFIX}{name}").in_features)


def _quantize_groups(float_graph: "GraphModule", names: set[str], group_size: int) -> Any:
    """Quantize the named linear layers to 4 bits in groups of inputs, in place."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.utils import unwrap_tensor_subclass

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(group_size)
    )
    layers = {f"{torch_to_modules.PREFIX}{name}" for name in names}
    quantize_(float_graph, config, filter_fn=lambda _, name: name in layers)
    # torch.export cannot serialize tensor subclasses.
    return unwrap_tensor_subclass(float_graph)


def _quantizer(precision_of: Mapping[str, str]) -> Any:
    """A quantizer that annotates the input and weight of the given nodes, and nothing else."""
    import torch
    from torchao.quantization.pt2e import PerChannelMinMaxObserver, PlaceholderObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=True,
        observer_or_fake_quant_ctr=PlaceholderObserver.with_args(eps=SMALLEST_SCALE),
    )
    weights = {
        precision: QuantizationSpec(
            dtype=torch.int8,
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=SMALLEST_SCALE),
        )
        for precision, (low, high) in WEIGHT_LEVELS.items()
    }

    class Named(Quantizer):
        def annotate(self, model: "GraphModule") -> "GraphModule":
            for node in model.graph.nodes:
                if node.name in precision_of:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map={
                            node.args[0]: activation,
                            node.args[1]: weights[precision_of[node.name]],
                        },
                        _annotated=True,
                    )
            return model

        def validate(self, model: "GraphModule") -> None:
            pass

    return Named()
