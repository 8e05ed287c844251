"""A Keras model to an exported program, through Keras' torch backend."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.errors import StageError
from edgeopt.formats.keras.files import loading as keras_loading
from edgeopt.formats.torch.files import program as torch_program
from edgeopt.formats.torch.files import specs as torch_specs
from edgeopt.formats.torch.graph import layers as torch_layers
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin import Context, Worker
from edgeopt.stages._keras import KerasStage
from edgeopt.stages._keras_recurrent import recurrent_operators

if TYPE_CHECKING:
    import keras
    import torch


class KerasToExportedProgram(KerasStage):
    """Load with ``KERAS_BACKEND=torch``, where a Keras model is an ``nn.Module``, and export the module.

    Inputs keep the layout of the source, NHWC. Keras puts permutes around each convolution; those that
    cancel out are removed. Layers keep their Keras names.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"keras"})
    produces: ClassVar[str] = "exported_program"
    worker: ClassVar[Worker] = "torch"
    cost: ClassVar[int] = 4
    requires: ClassVar[tuple[str, ...]] = ("keras", "torch", "torchao")
    extra: ClassVar[str | None] = "keras,torch"
    revision: ClassVar[int] = 5

    def run(self, model: Model, context: Context) -> Model:
        """Export one model.

        Raises:
            StageError: Keras cannot load the file, or ``torch.export`` cannot trace the model.
        """
        # Keras reads its backend once, on the first import.
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        if keras.backend.backend() != "torch":
            raise StageError(
                f"Keras uses the backend {keras.backend.backend()} in this process, but torch is required",
                fix="set KERAS_BACKEND=torch before Keras is imported",
            )
        network = keras_loading.load_keras(model.path, self.trust, self.code)
        inputs = _inputs(network, model)
        # In training mode, the trace would contain dropout and batch statistics.
        network.eval()
        context.progress("exporting")
        path = context.folder / "model.pt2"
        named = model.model_copy(update={"outputs": _outputs(network)})
        with recurrent_operators():
            return torch_program.save_module(
                _positional(network), path, named, inputs, dict(_weights(network))
            )


def _positional(network: "keras.Model") -> "torch.nn.Module":
    """The model as a module that takes the inputs one by one, instead of in a list or dictionary.

    Layers that change images at random do so unless they are called with ``training=False``.
    """
    import keras
    import torch

    structure = keras_loading.input_structure(network)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.network(keras.tree.pack_sequence_as(structure, list(inputs)), training=False)

    return Positional().eval()


def _weights(network: "keras.Model", prefix: str = "") -> Iterator[tuple[int, str]]:
    """Address of every weight, with a name from which `layer_of` derives the layer.

    Keras' own variable paths omit the nested model that contains a layer.
    """
    import keras

    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _weights(layer, f"{prefix}{layer.name}/")
            continue
        for variable in layer.variables:
            inside, _, name = variable.path.rpartition("/")
            own = inside.removeprefix(layer.path) if inside.startswith(f"{layer.path}/") else ""
            address = variable.value.data_ptr()
            if address:  # an empty tensor has no storage
                yield address, torch_layers.weight_name(f"{prefix}{layer.name}{own}", name)


def _outputs(network: "keras.Model") -> tuple[TensorSpec, ...]:
    """The outputs of a model that returns a dictionary, whose keys are their names; otherwise empty."""
    if not isinstance(getattr(network, "output", None), dict):
        return ()
    shapes = [(1, *tensor.shape[1:]) for tensor in network.outputs]
    names = keras_loading.output_names(network)
    return tuple(TensorSpec(name=name, shape=shape) for name, shape in zip(names, shapes, strict=True))


def _inputs(network: "keras.Model", model: Model) -> tuple[TensorSpec, ...]:
    if not getattr(network, "inputs", None):
        raise StageError(
            f"{model.path.name} is a subclassed model whose input shapes are unknown",
            fix="call it once on real data before saving it",
        )
    specs = []
    for index, tensor in enumerate(network.inputs):
        known = model.inputs[index] if len(model.inputs) == len(network.inputs) else None
        shape = (1, *tensor.shape[1:])
        if known is not None and len(known.shape) == len(shape):
            shape = tuple(a if a is not None else b for a, b in zip(shape, known.shape, strict=True))
        layout = (known.layout if known else None) or ("NHWC" if len(shape) == 4 else None)
        name = known.name if known else str(tensor.name).partition(":")[0]
        dtype = str(tensor.dtype)
        specs.append(torch_specs.fix_batch(TensorSpec(name=name, shape=shape, dtype=dtype, layout=layout)))
    return tuple(specs)
