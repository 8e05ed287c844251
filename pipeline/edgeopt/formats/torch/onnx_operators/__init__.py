"""ONNX operators as PyTorch functions, and the graphs made of them."""
