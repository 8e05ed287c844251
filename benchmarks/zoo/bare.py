"""The library calls that edgeopt stands for, as their documentation has them: ``bare.py RESULTS FILE...``.

A file is ``FOLDER/bare/float.tflite``, ``FOLDER/bare/int8.pte`` and so on, all of one folder of
``prepare.py``. One JSON object per file is appended to ``RESULTS``. The model is a PyTorch module, or a
Keras model: then ONNX and TFLite need a process with ``KERAS_BACKEND=tensorflow``, the others one with
``KERAS_BACKEND=torch``.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml

OUT = Path(sys.argv[2]).parent
FOLDER = OUT.parent
ABOUT = json.loads((FOLDER / "about.json").read_text())
NAMES = [name for name, _, _ in ABOUT["specs"]]


def calibration() -> Iterator[list[Any]]:
    with np.load(FOLDER / "calibration.npz") as archive:
        arrays = [archive[f"in_{name}"] for name in NAMES]
    kinds = {"int64": np.int32} if ABOUT["framework"] != "torch" else {}
    for row in range(len(arrays[0])):
        given = [each[row : row + 1] for each in arrays]
        yield [each.astype(kinds.get(each.dtype.name, each.dtype)) for each in given]


def tensors() -> Iterator[tuple[Any, ...]]:
    import torch

    for row in calibration():
        yield tuple(torch.from_numpy(each) for each in row)


def module() -> Any:
    """The source as a PyTorch module."""
    import torch

    if ABOUT["framework"] == "keras":
        import keras

        return keras.saving.load_model(FOLDER / "model.keras").eval()
    assert ABOUT["framework"] == "torch", "tf_keras has no way to PyTorch"
    recipe = yaml.safe_load((FOLDER / "recipe.yaml").read_text())["model"]
    sys.path.insert(0, str(FOLDER))
    name, _, function = recipe["factory"].partition(":")
    made = getattr(import_module(name), function)(**recipe.get("arguments", {})).eval()
    made.load_state_dict(torch.load(FOLDER / "weights.pt", weights_only=True))
    return made


def keras_model() -> Any:
    if ABOUT["framework"] == "keras":
        import keras

        return keras.saving.load_model(FOLDER / "model.keras")
    import tf_keras

    path = FOLDER / "model.h5"
    return tf_keras.models.load_model(path if path.exists() else FOLDER / "model")


def float_tflite(path: Path) -> None:
    if ABOUT["framework"] == "torch":
        import litert_torch

        litert_torch.convert(module(), next(tensors())).export(str(path))
        return
    import tensorflow as tf

    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(keras_model()).convert())


def quantized_tflite(path: Path, kind: str) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import Quantizer, recipe

    source = OUT / "float.tflite"
    if not source.exists():
        float_tflite(source)
    quantizer = Quantizer(str(source), getattr(recipe, kind)())
    needed = None
    if kind.startswith("static"):
        interpreter = Interpreter(str(source))
        key = next(iter(interpreter.get_signature_list()))
        inputs = interpreter.get_signature_runner(key).get_input_details()
        names = NAMES if set(inputs) == set(NAMES) else sorted(inputs, key=lambda name: (len(name), name))
        kinds = [inputs[name]["dtype"] for name in names]
        rows = ([each.astype(kind) for each, kind in zip(row, kinds, strict=True)] for row in calibration())
        needed = quantizer.calibrate({key: [dict(zip(names, row, strict=True)) for row in rows]})
    quantizer.quantize(needed).export_model(str(path), overwrite=True)


def float_onnx(path: Path) -> None:
    if ABOUT["framework"] == "torch":
        import torch

        example = next(tensors())
        torch.onnx.export(module(), example, path, dynamo=True, input_names=NAMES, external_data=False)
        return
    import tensorflow as tf
    import tf2onnx

    model = keras_model()
    signature = [
        tf.TensorSpec(each.shape, each.dtype, name) for each, name in zip(model.inputs, NAMES, strict=True)
    ]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*given: Any) -> Any:
        return model(list(given) if len(given) > 1 else given[0], training=False)

    tf2onnx.convert.from_function(call, signature, opset=17, output_path=str(path))


def quantized_onnx(path: Path, dynamic: bool) -> None:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared = OUT / "float.onnx", OUT / "prepared.onnx"
    if not source.exists():
        float_onnx(source)
    try:
        quant_pre_process(source, prepared)
    except Exception:  # noqa: BLE001  # the next thing that its users try
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if dynamic:
        quantize_dynamic(prepared, path)
        return
    names = [each.name for each in InferenceSession(prepared).get_inputs()]
    order = NAMES if set(names) == set(NAMES) else names

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = calibration()

        def get_next(self) -> Any:
            row = next(self.left, None)
            return None if row is None else dict(zip(order, row, strict=True))

    quantize_static(
        prepared,
        path,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False},
    )


def save_script(made: Any, path: Path) -> None:
    import torch

    with torch.no_grad():
        traced = torch.jit.trace(made, next(tensors()), strict=False)
    torch.jit.freeze(traced.eval())._save_for_lite_interpreter(str(path))


def float_ptl(path: Path) -> None:
    save_script(module(), path)


def fx_ptl(path: Path) -> None:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "qnnpack"
    example = next(tensors())
    observed = prepare_fx(copy.deepcopy(module()), get_default_qconfig_mapping("qnnpack"), example)
    with torch.no_grad():
        for row in tensors():
            observed(*row)
    save_script(convert_fx(observed), path)


def dynamic_ptl(path: Path) -> None:
    import torch
    from torch import nn

    torch.backends.quantized.engine = "qnnpack"
    save_script(torch.ao.quantization.quantize_dynamic(module(), {nn.Linear, nn.LSTM, nn.GRU}), path)


def lower(exported: Any, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(program.buffer)


def float_pte(path: Path) -> None:
    import torch

    lower(torch.export.export(module(), next(tensors())), path)


def quantized_pte(path: Path, dynamic: bool) -> None:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = next(tensors())
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    prepared = prepare_pt2e(
        torch.export.export(module(), example).module(), XNNPACKQuantizer().set_global(config)
    )
    with torch.no_grad():
        for row in tensors():
            prepared(*row)
    lower(torch.export.export(convert_pt2e(prepared), example), path)


CELLS: dict[str, Callable[[Path], None]] = {
    "float.tflite": float_tflite,
    "float.onnx": float_onnx,
    "float.ptl": float_ptl,
    "float.pte": float_pte,
    "int8.tflite": lambda path: quantized_tflite(path, "static_wi8_ai8"),
    "int8.onnx": lambda path: quantized_onnx(path, False),
    "int8.ptl": fx_ptl,
    "int8.pte": lambda path: quantized_pte(path, False),
    "dynamic_int8.tflite": lambda path: quantized_tflite(path, "dynamic_wi8_afp32"),
    "dynamic_int8.onnx": lambda path: quantized_onnx(path, True),
    "dynamic_int8.ptl": dynamic_ptl,
    "dynamic_int8.pte": lambda path: quantized_pte(path, True),
}


def main(results: Path, files: list[Path]) -> None:
    OUT.mkdir(exist_ok=True)
    for file in files:
        with results.open("a") as stream:
            stream.write(json.dumps({"file": str(file), "started": True}) + "\n")
        row: dict[str, Any] = {"made": True}
        try:
            CELLS[file.name](file)
        except Exception as error:  # noqa: BLE001  # the library's failure is the result of its cell
            row = {"error": f"{type(error).__name__}: {error}"[:600]}
        with results.open("a") as stream:
            stream.write(json.dumps({"file": str(file), **row}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
