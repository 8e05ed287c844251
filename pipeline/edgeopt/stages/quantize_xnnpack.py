"""Static int8 quantization of an exported program for XNNPACK, by PyTorch 2 export quantization (pt2e)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.formats.torch.files import lowering as torch_lowering
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.formats.torch.graph import recurrent as torch_recurrent
from edgeopt.formats.torch.graph.executorch import for_executorch
from edgeopt.formats.torch.graph.operators import TRANSPOSED, WEIGHTED, operator_name
from edgeopt.formats.torch.graph.recurrent import RECURRENT, STEP_LOOP
from edgeopt.formats.torch.lab import engine as torch_engine
from edgeopt.formats.torch.lab import runtimes as torch_runtimes
from edgeopt.formats.torch.quantize import ranges as torch_ranges
from edgeopt.formats.torch.quantize.unquantizable import Unquantizable
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context
from edgeopt.stages._torch_int8 import Program, TorchInt8, calibration

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

KINDS = WEIGHTED | RECURRENT

SMALLEST_SCALE = 2**-12
"""Lower bound on activation scales, as in ExecuTorch's configuration for XNNPACK."""


class QuantizeXnnpack(TorchInt8):
    """Static int8: symmetric weights, activations quantized per tensor.

    The result computes in float between quantize and dequantize operators, which ExecuTorch lowers to int8
    kernels. Method: torchao's ``prepare_pt2e`` and ``convert_pt2e`` with the ``XNNPACKQuantizer`` of
    ExecuTorch. Calibration keeps one histogram per tensor, so memory does not grow with the number of
    samples. ``mixed`` is int8 with the fewest layers in float that preserve the accuracy.
    """

    produces: ClassVar[str] = "exported_program_xnnpack"
    requires: ClassVar[tuple[str, ...]] = ("torch", "executorch", "torchao")
    extra: ClassVar[str | None] = "executorch"
    revision: ClassVar[int] = 12

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: the program cannot be read, calibration data are missing, a pattern matches no
                layer, or a layer stays in float.
        """
        samples = calibration(context)
        graph, inputs = torch_program.plain_graph(model)
        if (looped := torch_recurrent.with_loops(for_executorch(graph, inputs))) is not graph:
            # Layers are identified by the names that their nodes have in an exported program.
            graph = torch_program.export(looped, inputs).module(check_guards=False)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with torch_engine.quiet(), torch_engine.one_thread():
            quantizing = _Pt2e(self, graph, inputs, context.folder)
            quantizing.calibrate(samples.inputs(described))
            context.progress(f"calibrated with {quantizing.ranges.samples} samples")
            if quantizing.ranges.remark:
                context.note(quantizing.ranges.remark)
            path = context.folder / "model.pt2"
            in_float = self.kept_in_float(quantizing, described, context)
            loops = {node.name for node in graph.graph.nodes if operator_name(node) == STEP_LOOP}
            if loops - quantizing.exempt(in_float):
                context.note(torch_recurrent.WIDENED)
            torch_program.write(quantizing.program(in_float), path)
            quantizing.trial.unlink(missing_ok=True)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)


class _Pt2e(Program):
    """One program with its calibrated activation ranges."""

    def __init__(
        self, options: QuantizeXnnpack, graph: "GraphModule", inputs: Sequence[TensorSpec], folder: Path
    ) -> None:
        super().__init__(options, graph, inputs, folder / "trial.pte", KINDS)
        self.ranges = torch_ranges.Ranges({}, 0)
        module: Any = torch_program.export(graph, inputs).module(check_guards=False)
        self.module: Any = torch_layers.separate_weights(module)

    def calibrate(self, samples: Any) -> None:
        """Measure the activation ranges, under the tensor names of the exported module."""
        self.ranges = torch_ranges.observe(
            self.module, samples, self.options.calibrator, self.options.percentile
        )

    def make(self, raised: frozenset[str]) -> Path:
        self.trial.write_bytes(torch_lowering.lower(self.program(raised)))
        return self.trial

    def load(self, path: Path) -> Any:
        return torch_runtimes.load_executorch(path.read_bytes())

    def program(self, raised: frozenset[str]) -> "ExportedProgram":
        """The program in int8, with the layers of the options and ``raised`` in float.

        Raises:
            StageError: another layer would stay in float.
        """
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import propagate_annotation
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        exempt = self.exempt(raised)
        self.refuse_volumes(exempt, "executorch")

        class Exempting(XNNPACKQuantizer):
            """Also leaves operators without weights in float, to which the filter does not apply.

            Arithmetic of integers, such as token indices, stays as it is: the quantizer would make it float.
            XNNPACK's slices and pads copy int8 values: their inputs and outputs share one scale.
            """

            def transform_for_annotation(self, model: Any) -> Any:
                integers = {node: node.args for node in model.graph.nodes if not _is_float32(node)}
                model = super().transform_for_annotation(model)
                for node, args in integers.items():
                    constants = [each for each in node.args if each not in args]
                    node.args = args
                    for constant in constants:
                        model.graph.erase_node(constant)
                        delattr(model, constant.target)
                model.recompile()
                return model

            def annotate(self, model: Any) -> Any:
                for node in model.graph.nodes:
                    if operator_name(node) in TRANSPOSED and node.name not in exempt:
                        _annotate_groups(node)
                model = super().annotate(model)
                for node in model.graph.nodes:
                    if _copies(node) and "quantization_annotation" not in node.meta:
                        _share_scale(node)
                        propagate_annotation(model)
                for node in model.graph.nodes:
                    if node.name in exempt or not _is_float32(node):
                        node.meta.pop("quantization_annotation", None)
                return model

        quantizer = Exempting().set_global(_config(self.options.per_channel))
        # The quantizer annotates only layers that pass the filter; the others stay in float.
        quantizer.set_filter_function(lambda node: node.name not in exempt)
        # A copy, because prepare_pt2e works in place and each candidate starts from the original.
        prepared = prepare_pt2e(copy.deepcopy(self.module), quantizer)
        torch_ranges.assign(prepared, self.ranges)
        converted = convert_pt2e(prepared)
        loops = {node.name for node in converted.graph.nodes if operator_name(node) == STEP_LOOP}
        refuse_float(converted, exempt | loops, self.names)
        _name_weights(converted, self.module)
        torch_recurrent.to_scans(converted, loops - exempt)
        return torch_program.export(converted, self.inputs)


def _is_float32(node: Any) -> bool:
    """Whether an operator reads and computes float32 only; those of several results count as such."""
    import torch

    values = [node, *node.all_input_nodes] if node.op == "call_function" else []
    dtypes = {getattr(value.meta.get("val"), "dtype", torch.float32) for value in values}
    return dtypes <= {torch.float32}


def _name_weights(converted: Any, source: Any) -> None:
    """Give quantized weights the names of the float ones: messages on later steps name layers by them."""
    names = {
        node.name: str(node.args[1].target)
        for node in source.graph.nodes
        if operator_name(node) in WEIGHTED and node.args[1].op == "get_attr"
    }
    for node in converted.graph.nodes:
        stored: Any = node.args[1].args[0] if node.name in names and node.args[1].args else None
        if getattr(stored, "op", "") == "get_attr" and "dequantize" in str(node.args[1].target):
            old, new = str(stored.target), names[node.name]
            read = {str(each.target) for each in converted.graph.nodes if each.op == "get_attr"}
            if new in read or len(stored.users) > 1:
                continue
            value = getattr(converted, old)
            if hasattr(converted, new):  # the float weight
                delattr(converted, new)
            delattr(converted, old)
            converted.register_buffer(new, value)
            stored.target = new
    converted.recompile()


def _annotate_groups(node: Any) -> None:
    """Quantize a transposed convolution of several groups, which the quantizer leaves in float.

    XNNPACK runs it with one scale for all weights, because a channel of its kernel is of all groups.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    if len(node.args) < 7 or node.args[6] == 1:
        return
    config = _config(per_channel=False)
    specs = (config.input_activation, config.weight, config.bias)
    given = {each: spec for each, spec in zip(node.args[:3], specs, strict=True) if each is not None}
    reader = next(iter(node.users))
    # A ReLU is part of the kernel: what enters it has no scale of its own.
    last = reader if len(node.users) == 1 and operator_name(reader) == "relu" else node
    for each in (*node.args[1:3], node, last):
        if each is not None:
            each.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)
    node.meta["quantization_annotation"].input_qspec_map = given
    last.meta["quantization_annotation"].output_qspec = config.output_activation


def _copies(node: Any) -> bool:
    """Whether an operator only copies values, and zeros, which any scale represents."""
    name = operator_name(node)
    return name == "slice" or (name == "constant_pad_nd" and not any(node.args[2:]))


def _share_scale(node: Any) -> None:
    """Let an operator that only moves values keep the scale of its input, if that is quantized."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    source = node.args[0]
    annotation = source.meta.get("quantization_annotation")
    if annotation is not None and annotation.output_qspec is not None:
        shared = SharedQuantizationSpec(source)
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map={source: shared}, output_qspec=shared, _annotated=True
        )


def _config(per_channel: bool) -> Any:
    """ExecuTorch's symmetric configuration, with observers that return exactly the given range."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    default = get_symmetric_quantization_config(is_per_channel=per_channel)
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=SMALLEST_SCALE),
    )
    return type(default)(activation, activation, default.weight, default.bias, default.is_qat)


def refuse_float(module: Any, exempt: set[str], names: Mapping[str, str]) -> None:
    """Raise for layers, except the nodes in ``exempt``, whose input or weight is not int8.

    ``names`` maps nodes to the layer names of the model.
    """
    left = [
        node
        for node in module.graph.nodes
        if operator_name(node) in KINDS
        and node.name not in exempt
        and not all("dequantize" in str(getattr(source, "target", "")) for source in node.args[:2])
    ]
    if left:
        layer_names = [names.get(node.name, node.name) for node in left]
        weights = [getattr(node.args[1], "name", "states") for node in left]
        shown = [f"{name} ({weight})" for name, weight in zip(layer_names, weights, strict=True)]
        raise Unquantizable(layer_names, "the XNNPACK quantizer does not support them", "executorch", shown)
