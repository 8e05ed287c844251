"""Weights of 8 and 4 bits for XNNPACK, with activations that are quantized to 8 bits at run time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.graph import to_modules as torch_to_modules
from edgeopt.formats.torch.graph.operators import WEIGHTED, operator_name
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.model import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

WEIGHT_LEVELS = {"int8": (-127, 127), "int4": (-8, 7)}
SMALLEST_SCALE = 2**-12


def has_kernel(node: Any, graph: "GraphModule", precision: str) -> bool:
    """Whether XNNPACK runs a layer with weights of ``precision`` and dynamically quantized activations.

    Linear layers, and in int8 convolutions over images unless each output reads one channel: depthwise, or
    of a grey image (``executorch/backends/xnnpack/partition/config/gemm_configs.py``).
    """
    kind = operator_name(node)
    if kind not in ("linear", "conv2d") or node.args[1].op != "get_attr":
        return False
    if kind == "linear":
        return True
    return precision == "int8" and graph.get_buffer(str(node.args[1].target)).shape[1] > 1


def quantize(
    graph: "GraphModule", inputs: Sequence[TensorSpec], plan: Mapping[str, str], group_size: int
) -> "ExportedProgram":
    """A program whose layers have the weights that ``plan`` says, by node name: ``int8`` or ``int4``.

    Weights are symmetric, with a scale per output channel; those of 4 bits with one per ``group_size``
    inputs where these divide evenly (torchao's ``Int8DynamicActivationIntxWeightConfig``). The others go
    through ``prepare_pt2e`` and ``convert_pt2e``.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    lifted = torch_to_modules.with_modules(graph)
    order = [node.name for node in graph.graph.nodes if operator_name(node) in WEIGHTED]
    grouped = {
        name
        for name, precision in plan.items()
        if precision == "int4" and _inputs(lifted, name) % group_size == 0
    }
    module: Any = lifted
    if grouped:
        module = _group(lifted, grouped, group_size)
    module = torch_program.export(module, inputs).module(check_guards=False)
    rest = {name: precision for name, precision in plan.items() if name not in grouped}
    if rest:
        found = [node for node in module.graph.nodes if operator_name(node) in WEIGHTED]
        wanted = {node.name: rest[name] for name, node in zip(order, found, strict=True) if name in rest}
        module = prepare_pt2e(module, _quantizer(wanted))
        torch_ranges.give(module, torch_ranges.Ranges({}, 0))
        module = convert_pt2e(module)
    return torch_program.export(module, inputs)


def _inputs(lifted: "GraphModule", name: str) -> int:
    return int(lifted.get_submodule(f"{torch_to_modules.PREFIX}{name}").in_features)


def _group(lifted: "GraphModule", names: set[str], group_size: int) -> Any:
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.utils import unwrap_tensor_subclass

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(group_size)
    )
    wanted = {f"{torch_to_modules.PREFIX}{name}" for name in names}
    quantize_(lifted, config, filter_fn=lambda _, name: name in wanted)
    return unwrap_tensor_subclass(lifted)


def _quantizer(wanted: Mapping[str, str]) -> Any:
    """Marks the input and the weight of each of these nodes, and nothing else."""
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
                if node.name in wanted:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map={
                            node.args[0]: activation,
                            node.args[1]: weights[wanted[node.name]],
                        },
                        _annotated=True,
                    )
            return model

        def validate(self, model: "GraphModule") -> None:
            pass

    return Named()
