"""int8 of a recipe by another tool and its defaults, as a plain script: ``by_hand_tasks.py RECIPE TOOL OUT``.

The tool gets the trained network in its own format, and the recipe's calibration samples if it calibrates.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.resolve import load_recipe

Images: TypeAlias = list[np.ndarray]
"""Inputs ``[1, height, width, 1]`` for Keras, ``[1, 1, height, width]`` for torch."""
Tool: TypeAlias = Callable[[ModelPart, Images, Path], None]


def torch_module(model: ModelPart) -> Any:
    import torch

    torch.set_num_threads(1)
    if model.path is not None:
        os.environ["KERAS_BACKEND"] = "torch"  # layers of Keras are torch modules then
        return keras_model(model).eval()
    from safetensors.torch import load_file

    assert model.factory is not None
    assert model.weights is not None
    module = model.factory.load()()
    module.load_state_dict(load_file(model.weights))
    return module.eval()


def keras_model(model: ModelPart) -> Any:
    import keras

    return keras.saving.load_model(model.path, compile=False)


def float_tflite(model: ModelPart, images: Images, out: Path) -> str:
    """Write a float file, and return the name of its input."""
    if model.path is not None:
        import tensorflow as tf

        out.write_bytes(tf.lite.TFLiteConverter.from_keras_model(keras_model(model)).convert())
    else:
        import litert_torch
        import torch

        litert_torch.convert(torch_module(model), (torch.from_numpy(images[0]),)).export(str(out))
    from ai_edge_litert.interpreter import Interpreter

    (name,) = Interpreter(str(out)).get_signature_runner().get_input_details()
    return str(name)


def float_onnx(model: ModelPart, images: Images, out: Path) -> None:
    if model.path is not None:
        import tensorflow as tf
        import tf2onnx

        network = keras_model(model)
        spec = [tf.TensorSpec(images[0].shape, tf.float32, name="image")]
        function = tf.function(lambda image: network(image, training=False), input_signature=spec)
        tf2onnx.convert.from_function(function, input_signature=spec, opset=17, output_path=str(out))
    else:
        import torch

        example = (torch.from_numpy(images[0]),)
        torch.onnx.export(
            torch_module(model), example, out, dynamo=True, input_names=["image"], external_data=False
        )


def ai_edge_quantizer(model: ModelPart, images: Images, out: Path, *, static: bool = True) -> None:
    from ai_edge_quantizer import Quantizer, recipe

    name = float_tflite(model, images, out)
    quantizer = Quantizer(str(out), recipe.static_wi8_ai8() if static else recipe.dynamic_wi8_afp32())
    samples = {"serving_default": [{name: image} for image in images]}
    ranges = quantizer.calibrate(samples) if static else None
    quantizer.quantize(ranges).export_model(str(out), overwrite=True)


def ai_edge_quantizer_dynamic(model: ModelPart, images: Images, out: Path) -> None:
    ai_edge_quantizer(model, images, out, static=False)


def tflite_converter(model: ModelPart, images: Images, out: Path) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(keras_model(model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image] for image in images)
    out.write_bytes(converter.convert())


def onnxruntime(model: ModelPart, images: Images, out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    before = out.with_suffix(".float.onnx")
    float_onnx(model, images, before)
    quantize_static(before, out, Reader())


def onnxruntime_dynamic(model: ModelPart, images: Images, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    before = out.with_suffix(".float.onnx")
    float_onnx(model, images, before)
    quantize_dynamic(before, out)


def torch_fx(model: ModelPart, images: Images, out: Path) -> None:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "qnnpack"
    example = (torch.from_numpy(images[0]),)
    observed = prepare_fx(torch_module(model), get_default_qconfig_mapping("qnnpack"), example)
    with torch.no_grad():
        for image in images:
            observed(torch.from_numpy(image))
    torch.jit.freeze(torch.jit.trace(convert_fx(observed), example))._save_for_lite_interpreter(str(out))


def torch_dynamic(model: ModelPart, images: Images, out: Path) -> None:
    import torch

    torch.backends.quantized.engine = "qnnpack"
    example = (torch.from_numpy(images[0]),)
    module = torch.ao.quantization.quantize_dynamic(torch_module(model))
    torch.jit.freeze(torch.jit.trace(module, example))._save_for_lite_interpreter(str(out))


def executorch(model: ModelPart, images: Images, out: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (torch.from_numpy(images[0]),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    with torch.no_grad():
        observed = prepare_pt2e(torch.export.export(torch_module(model), example).module(), quantizer)
        for image in images:
            observed(torch.from_numpy(image))
        program = torch.export.export(convert_pt2e(observed), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    out.write_bytes(lowered.buffer)


TOOLS: dict[str, Tool] = {
    tool.__name__: tool
    for tool in (
        ai_edge_quantizer,
        ai_edge_quantizer_dynamic,
        tflite_converter,
        onnxruntime,
        onnxruntime_dynamic,
        torch_fx,
        torch_dynamic,
        executorch,
    )
}


def main(name: str, tool: str, out: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.calibration is not None
    samples = recipe.calibration.samples()
    images = [np.asarray(sample.inputs[0], np.float32)[np.newaxis] / 255 for sample in samples]
    if recipe.model.path is None:
        # Copies: of one channel, a view counts as contiguous, but torch would take its strides for NHWC.
        images = [image.transpose(0, 3, 1, 2).copy() for image in images]
    TOOLS[tool](recipe.model, images, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
