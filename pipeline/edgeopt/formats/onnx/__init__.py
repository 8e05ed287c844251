"""ONNX files: reading, calibrating, quantizing."""
