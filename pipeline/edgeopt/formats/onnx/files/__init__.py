"""Reading ONNX files, and where their bytes go."""
