"""Training of TFLite files: a file as a differentiable module, and its weights as codes."""
