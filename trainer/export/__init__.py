"""A model for other programs: ONNX, its card and its check."""
