"""OpenVINO's side of `tower_speed`, run by a Python that has openvino and none of this project.

    python openvino_peer.py GRAPH.onnx INPUTS.npy float32|bfloat16 THREADS BATCH VECTORS.npy

Compiles the graph, runs it once over the inputs and writes what it gave; then each line that comes in is answered with
a JSON list: wall and CPU seconds an input of one more run. Batches are in flight side by side, as OpenVINO's guide to
throughput has it.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import openvino


def main() -> None:
    """Serves until its input ends."""
    graph, values, precision, threads, batch_size, out = sys.argv[1:]
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": int(threads),
        "ENABLE_HYPER_THREADING": True,  # else it leaves one of two cores that share an engine idle
    }
    model = openvino.Core().compile_model(graph, "CPU", options)
    inputs, size = np.load(values), int(batch_size)
    found: dict[int, np.ndarray] = {}
    queue = openvino.AsyncInferQueue(model)
    queue.set_callback(lambda request, start: found.__setitem__(start, request.get_output_tensor(0).data.copy()))

    def run() -> None:
        for start in range(0, len(inputs), size):
            queue.start_async({0: inputs[start : start + size]}, start)
        queue.wait_all()

    run()
    np.save(out, np.concatenate([found[start] for start in sorted(found)]))
    for _ in sys.stdin:
        began = time.perf_counter(), time.process_time()
        run()
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        print(json.dumps([value / len(inputs) for value in seconds]), flush=True)


if __name__ == "__main__":
    main()
