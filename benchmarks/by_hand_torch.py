"""The library calls of ``digits-torch`` for all formats as a plain script: ``by_hand_torch.py OUT``."""

import copy
import sys
from pathlib import Path

import ai_edge_quantizer
import litert_torch
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeopt.devices.device import shipped
from edgeopt.evaluation.datasets.digits import Digits

recipes = shipped("recipes")
sys.path.insert(0, str(recipes))
from models.digits_cnn import digits_cnn  # noqa: E402

out = Path(sys.argv[1])
model = digits_cnn().eval()
model.load_state_dict(load_file(recipes / "digits" / "digits.safetensors"))
images = [s.inputs[0].astype(np.float32)[None] / 16 for s in Digits(part="calibration").samples()]
batches = [torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))) for image in images]
example = (batches[0],)
program = torch.export.export(model, example)


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"image": batch.numpy()}


torch.onnx.export(
    program, example, out / "float.onnx", dynamo=True, input_names=["image"], external_data=False
)
quant_pre_process(out / "float.onnx", out / "prepared.onnx")
quantize_static(
    out / "prepared.onnx",
    out / "int8.onnx",
    Batches(),
    quant_format=QuantFormat.QDQ,
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QUInt8,
)

litert_torch.convert(litert_torch.to_channel_last_io(model, args=[0]), (torch.from_numpy(images[0]),)).export(
    str(out / "float.tflite")
)
quantizer = ai_edge_quantizer.Quantizer(str(out / "float.tflite"), ai_edge_quantizer.recipe.static_wi8_ai8())
data = {"serving_default": [{"args_0": image} for image in images]}
quantizer.quantize(quantizer.calibrate(data)).export_model(str(out / "int8.tflite"), overwrite=True)


def lower(exported: torch.export.ExportedProgram, path: Path) -> None:
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(program.buffer)


lower(program, out / "float.pte")
prepared = prepare_pt2e(
    torch.export.export(model, example).module(),
    XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)),
)
with torch.no_grad():
    for batch in batches:
        prepared(batch)
lower(torch.export.export(convert_pt2e(prepared), example), out / "int8.pte")


def save(module: torch.nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.trace(module, example))._save_for_lite_interpreter(str(path))


save(model, out / "float.ptl")
torch.backends.quantized.engine = "qnnpack"
observed = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("qnnpack"), example)
with torch.no_grad():
    for batch in batches:
        observed(batch)
save(convert_fx(observed), out / "int8.ptl")
