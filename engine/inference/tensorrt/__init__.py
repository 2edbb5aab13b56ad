"""Run the backbone with TensorRT."""
