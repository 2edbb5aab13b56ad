"""Emit backbone and encoder as ONNX graphs."""
