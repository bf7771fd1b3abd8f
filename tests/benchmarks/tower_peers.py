"""The other programs of `tower_speed`: ONNX Runtime here, OpenVINO and clip-retrieval in their own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

TITLES = "title"


def export(model: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """One tower as ONNX, its batch of any size."""
    with torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=True,
            verbose=False,
            input_names=["input"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
        )


class OnnxInt8:
    """The same model on ONNX Runtime, its products in 8-bit integers."""

    def __init__(self, graphs: dict[str, Path], inputs: dict[str, np.ndarray], threads: int, batch_size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._sessions, self._inputs, self._batch_size = {}, inputs, batch_size
        for what, graph in graphs.items():
            quantised = graph.with_suffix(".int8.onnx")
            quantize_dynamic(graph, quantised, weight_type=QuantType.QInt8)
            self._sessions[what] = onnxruntime.InferenceSession(quantised, options, ["CPUExecutionProvider"])

    def vectors(self, what: str) -> torch.Tensor:
        """float32 `[n, D]`."""
        values = self._inputs[what]
        batches = (values[start : start + self._batch_size] for start in range(0, len(values), self._batch_size))
        return torch.from_numpy(
            np.concatenate([self._sessions[what].run(None, {"input": batch})[0] for batch in batches])
        )


class OpenVino:
    """The same model in a process of the peers' environment, which answers a line with what a run took."""

    def __init__(self, python: Path, graph: Path, values: Path, precision: str, threads: int, batch_size: int) -> None:
        words = [graph, values, precision, threads, batch_size]
        script = Path(__file__).with_name("openvino_peer.py")
        self._found = values.with_suffix(f".{precision}.npy")
        self._process = subprocess.Popen(
            [python, script, *map(str, words), self._found],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self) -> tuple[float, float]:
        """Asks for one run."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"OpenVINO's process ended with {self._process.wait()}: run tests/benchmarks/openvino_peer.py")
        wall, cpu = json.loads(line)
        return wall, cpu

    def vectors(self) -> torch.Tensor:
        """float32 `[n, D]`, of the warm-up."""
        return torch.from_numpy(np.load(self._found))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate("")


class ClipRetrieval:
    """clip-retrieval's inference command over one WebDataset file."""

    def __init__(self, python: Path, dataset: Path, weights: Path, tower: str, threads: int, batch_size: int) -> None:
        self._out = dataset.with_suffix(".found")
        options = {
            "input_dataset": dataset,
            "output_folder": self._out,
            "input_format": "webdataset",
            "clip_model": f"open_clip:{tower}/{weights}",
            "enable_text": True,
            "enable_image": True,
            "enable_metadata": False,
            "use_jit": False,
            "batch_size": batch_size,
            "num_prepro_workers": 1,
            "enable_wandb": False,
            "output_partition_count": 1,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._command = [python.with_name("clip-retrieval"), "inference", *words]
        threads_of = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._environment = {**os.environ, **threads_of, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._environment.pop("PYTHONPATH", None)

    def run(self) -> tuple[float, None]:
        """Runs the command; its time is what its own statistics add up over the batches."""
        done = subprocess.run(self._command, env=self._environment, capture_output=True, text=True)
        statistics_file = self._out / "stats" / "0.json"
        if done.returncode or not statistics_file.is_file():
            sys.exit(f"clip-retrieval failed with {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(statistics_file.read_text())
        return found["total_duration"] / found["sample_count"], None

    def vectors(self, what: str) -> np.ndarray:
        """float32 `[n, D]` of the titles or of the pictures."""
        name = "text_emb" if what == TITLES else "img_emb"
        return np.load(self._out / name / f"{name}_0.npy").astype(np.float32)
