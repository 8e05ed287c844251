"""An exported program in int8 for TorchScript, by FX graph mode quantization."""

import operator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.errors import StageError
from edgeopt.formats import torch_engine, torch_program, torch_script, torch_specs
from edgeopt.formats.torch_operators import LAYERS, WEIGHTED, operator_name
from edgeopt.model import Model
from edgeopt.plugin import Context, Stage, Worker

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

KERNELS = frozenset({"add", "mul", "cat"})
"""Operators with an int8 kernel: one that reads a value that was int8 was missed."""


class QuantizeFx(Stage):
    """Static int8 for the qnnpack engine: weights symmetric per output channel, activations per tensor.

    The program's operators are first written as the modules and functions that FX quantization knows.
    Observers keep histograms, so memory does not grow with the number of samples.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"exported_program"})
    produces: ClassVar[str] = "torchscript_module"
    fulfils: ClassVar[dict[str, frozenset[str]]] = {"quantize": frozenset({"int8"})}
    needs_calibration: ClassVar[bool] = True
    worker: ClassVar[Worker] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "torchao")
    extra: ClassVar[str | None] = "torch"

    scheme: Literal["int8"] = Field("int8", description="int8 weights and activations")
    ranges: Literal["histogram", "minmax"] = Field(
        "histogram", description="activation ranges: of least squared error, or the extremes seen"
    )

    def run(self, model: Model, context: Context) -> Model:
        """Quantize one program.

        Raises:
            StageError: when the program cannot be read, calibration data are missing, this torch has no
                qnnpack engine, or an operator has no int8 kernel or stays in float.
        """
        import torch

        if context.calibration is None:
            raise StageError("quantizing needs calibration data", fix="give 'data.calibration' in the recipe")
        if "qnnpack" not in torch.backends.quantized.supported_engines:
            raise StageError(
                "this build of torch has no qnnpack engine, only "
                f"{', '.join(torch.backends.quantized.supported_engines)}",
                fix="install torch from pypi.org or pytorch.org",
            )
        graph, inputs = torch_program.plain_graph(model)
        described = model.model_copy(update={"inputs": inputs})
        outputs = torch_specs.describe_outputs(torch_engine.run(graph, inputs), model.outputs)
        with (
            torch_engine.quiet(),
            torch_engine.mobile_engine(),
            torch_engine.one_thread(),
            torch.no_grad(),
        ):
            from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

            prepared = prepare_fx(with_modules(graph), self._mapping(), torch_specs.zeros(inputs))
            count = 0
            for values in context.calibration.inputs(described):
                prepared(*(torch.from_numpy(value) for value in values))
                count += 1
            if not count:
                raise StageError(
                    "the calibration data are empty", fix="correct 'data.calibration' in the recipe"
                )
            context.progress(f"calibrated with {count} samples")
            converted = convert_fx(prepared)
            _refuse_float(converted)
            try:
                script = torch_script.trace(converted, inputs)
            except RuntimeError as error:
                raise StageError(
                    f"qnnpack cannot run the int8 model: {str(error).strip().splitlines()[-1]}",
                    fix="leave torchscript out for this variant",
                ) from error
            path = context.folder / "model.pt"
            torch_script.save_script(script, path)
        return Model(format=self.produces, path=path, inputs=inputs, outputs=outputs)

    def _mapping(self) -> Any:
        import torch
        from torch.ao import quantization

        # The smallest scale that qnnpack's requantization takes is 2**-12.
        observer = (
            quantization.HistogramObserver if self.ranges == "histogram" else quantization.MinMaxObserver
        )
        activation = observer.with_args(dtype=torch.quint8, reduce_range=False, eps=2**-12)
        weight = quantization.PerChannelMinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127, eps=2**-12
        )
        config = quantization.QConfig(activation=activation, weight=weight)
        mapping = quantization.get_default_qconfig_mapping("qnnpack").set_global(config)
        for kind in list(mapping.object_type_qconfigs):
            default = mapping.object_type_qconfigs[kind]
            if default is not None and not _fixed_range(default):
                mapping.set_object_type(kind, config)
        return mapping


def _fixed_range(config: Any) -> bool:
    """Sigmoid, tanh and their like have a range known beforehand."""
    from torch.ao import quantization

    observer = config.activation()
    fixed = getattr(quantization, "FixedQParamsObserver", ())
    return isinstance(observer, fixed) or type(observer).__name__.startswith("FixedQParams")


def with_modules(graph: "GraphModule") -> "GraphModule":
    """Write a graph of the plain form with the modules and functions that FX quantization knows.

    Convolutions and linear layers with constant weights become ``torch.nn`` modules; the numbers stay.
    """
    import torch

    root = torch.nn.Module()
    result = torch.fx.Graph()
    known: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            result.output(torch.fx.map_arg(node.args[0], lambda old: known[old]))
        elif node.op == "get_attr":
            if not hasattr(root, node.target):
                root.register_buffer(node.target, getattr(graph, node.target))
            known[node] = result.get_attr(node.target)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda old: known[old])
            layer = _layer(node, graph)
            if layer is not None:
                name = f"layer_{node.name}"
                root.add_module(name, layer)
                known[node] = result.call_module(name, (args[0],))
            else:
                target, args, kwargs = _function(node, args, kwargs)
                known[node] = result.call_function(target, args, kwargs)
        else:
            known[node] = result.node_copy(node, lambda old: known[old])
    # The graph is run as it stands: a module's training flag would bring dropout back to life.
    module = torch.fx.GraphModule(root, result)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module.eval()


def _layer(node: "Node", graph: "GraphModule") -> "torch.nn.Module | None":
    import torch

    name = operator_name(node)
    if name not in LAYERS or any(
        getattr(arg, "op", "get_attr") != "get_attr" for arg in node.args[1:3] if arg
    ):
        return None
    weight = getattr(graph, node.args[1].target)
    bias = None if node.args[2] is None else getattr(graph, node.args[2].target)
    layer: Any
    if name == "linear":
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        stride, padding, dilation, groups = node.args[3:7]
        kinds = {"conv1d": torch.nn.Conv1d, "conv2d": torch.nn.Conv2d, "conv3d": torch.nn.Conv3d}
        layer = kinds[name](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_tuple(stride, weight.dim() - 2),
            padding=padding if isinstance(padding, str) else _tuple(padding, weight.dim() - 2),
            dilation=_tuple(dilation, weight.dim() - 2),
            groups=groups,
            bias=bias is not None,
        )
    layer.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer.eval()


def _tuple(values: Any, rank: int) -> tuple[int, ...]:
    return tuple(values) * rank if len(values) == 1 else tuple(values)


def _function(node: "Node", args: Any, kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function that FX quantization knows for an aten operator, or the operator itself."""
    import torch
    import torch.nn.functional as F

    name = operator_name(node)
    if name in ("add", "mul") and len(args) == 2 and not kwargs:
        return (operator.add if name == "add" else operator.mul), args, {}
    same: dict[str, Any] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "hardtanh": F.hardtanh,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "leaky_relu": F.leaky_relu,
        "elu": F.elu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "cat": torch.cat,
        "reshape": torch.reshape,
        "permute": torch.permute,
        "mean": torch.mean,
        "avg_pool2d": F.avg_pool2d,
        "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
        "clamp": torch.clamp,
    }
    if name == "clamp" and len(args) == 3 and args[1] is not None and args[2] is not None:
        return F.hardtanh, args, {}
    if name in ("max_pool2d", "max_pool1d"):
        pool = F.max_pool2d if name == "max_pool2d" else F.max_pool1d
        return pool, args, {}
    if name == "constant_pad_nd":
        return F.pad, (args[0], tuple(args[1]), "constant", args[2] if len(args) > 2 else 0.0), {}
    if name == "slice":
        rank = int(args[1]) if len(args) > 1 else 0
        start, stop, step = (*args[2:5], *(None,) * (5 - len(args)))[:3]
        stop = None if stop is not None and stop >= 2**62 else stop
        whole = (slice(None),) * rank
        return operator.getitem, (args[0], (*whole, slice(start, stop, step))), {}
    if name in same:
        return same[name], args, dict(kwargs)
    return node.target, args, dict(kwargs)


def _refuse_float(module: "GraphModule") -> None:
    """Raise for operators that have an int8 kernel and yet compute in float."""
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    left = []
    modules = dict(module.named_modules())
    for node in module.graph.nodes:
        if node.op == "call_module":
            # The quantized modules with a float class as base are the references that no kernel took over.
            if isinstance(modules[str(node.target)], kinds):
                left.append(str(node.target).removeprefix("layer_"))
        elif node.op == "call_function" and _float_call(node):
            left.append(node.name)
    if left:
        raise StageError(
            f"int8 was asked for, and these operators would stay in float: {', '.join(left)}",
            fix="FX quantization does not know their pattern; leave torchscript out for this variant",
        )


def _float_call(node: "Node") -> bool:
    import torch

    names = {operator.add: "add", operator.mul: "mul", torch.cat: "cat"}
    name = names.get(node.target) or operator_name(node)
    if name in WEIGHTED:
        return True  # aten's own operator, where a quantized layer should be
    if name not in KERNELS:
        return False
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    return len(sources) > 0 and any(
        source.op == "call_method" and source.target == "dequantize" for source in sources
    )
