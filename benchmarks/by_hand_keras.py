"""The library calls of ``digits-keras`` for TFLite and ONNX as a plain script: ``by_hand_keras.py OUT``."""

import sys
from pathlib import Path

import ai_edge_quantizer
import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeopt.devices.device import shipped
from edgeopt.evaluation.datasets.digits import Digits

out = Path(sys.argv[1])
model = keras.models.load_model(shipped("recipes") / "digits" / "digits.keras")
images = [s.inputs[0].astype(np.float32)[None] / 16 for s in Digits(part="calibration").samples()]
spec = tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")

(out / "float.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
quantizer = ai_edge_quantizer.Quantizer(str(out / "float.tflite"), ai_edge_quantizer.recipe.static_wi8_ai8())
name = next(iter(tf.lite.Interpreter(str(out / "float.tflite")).get_signature_runner().get_input_details()))
data = {"serving_default": [{name: image} for image in images]}
quantizer.quantize(quantizer.calibrate(data)).export_model(str(out / "int8.tflite"), overwrite=True)

function = tf.function(lambda image: model(image, training=False), input_signature=[spec])
tf2onnx.convert.from_function(function, input_signature=[spec], opset=17, output_path=str(out / "float.onnx"))


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"image": batch}


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
