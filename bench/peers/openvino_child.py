"""Run one ONNX graph in OpenVINO for each line on stdin, and print the milliseconds.

    .venv-openvino/bin/python openvino_child.py GRAPH.onnx FEEDS.npz NUMBER THREADS KEPT.xml

NUMBER is f32, bf16 or int8. int8 is post-training quantization by NNCF, with the first request of
FEEDS as calibration; the quantized model is kept in KEPT.xml. See openvino.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import openvino


def main(graph: str, feeds_file: str, number: str, threads: str, kept: str) -> None:
    """Serve stdin."""
    feeds = dict(np.load(feeds_file))
    core = openvino.Core()
    if number == "int8" and not Path(kept).is_file():
        import nncf

        data = nncf.Dataset([feeds])
        kind = nncf.ModelType.TRANSFORMER
        quantized = nncf.quantize(core.read_model(graph), data, model_type=kind)
        openvino.save_model(quantized, kept, compress_to_fp16=False)
    model = core.read_model(kept if number == "int8" else graph)
    settings = {"INFERENCE_NUM_THREADS": int(threads), "PERFORMANCE_HINT": "LATENCY"}
    if number != "int8":
        settings["INFERENCE_PRECISION_HINT"] = number
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.infer(feeds)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        request.infer(feeds)
        print(1000 * (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
