"""The third witness for any network: the PyTorch module through ONNX Runtime, beside the generated Paddle network.

Building, exporting and running happen in a process of their own, as in `weights_convert.onnx_witness`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from common.cli import UserError, run_command
from weights_convert.graph.prove import flat, run_paddle
from weights_convert.graph.spec import Source, build_source
from weights_convert.networks import OUTPUT
from weights_convert.proof import LIMIT, difference

import numpy as np
import paddle
import safetensors.torch
import torch

OPSET = 17


def onnx_difference(spec: str, source: Source, layer: paddle.nn.Layer, images: np.ndarray) -> float:
    """Returns max|a - b| / max|a| between ONNX Runtime's outputs for the images and the Paddle network's.

    Raises:
        UserError: The export failed, or they differ.
    """
    with tempfile.TemporaryDirectory(prefix="onnx_third_") as name:
        folder = Path(name)
        tensors = {key: value.clone().contiguous() for key, value in source.module.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / "weights.safetensors")
        np.save(folder / "images.npy", images)
        job = json.dumps([spec, source.features, list(source.size), name])
        command = [sys.executable, "-P", "-m", "weights_convert.graph.onnx_third", job]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if "rror" in line] or ["it said nothing"]
            raise UserError(f"{spec}: ONNX export ended with status {result.returncode}: {lines[-1][:300]}")
        with np.load(folder / "outputs.npz", allow_pickle=False) as file:
            theirs = [file[f"output{index}"] for index in range(len(file.files))]
    found = difference(run_paddle(layer, images, [])[OUTPUT], theirs)
    if not found <= LIMIT:
        raise UserError(
            f"{spec}: ONNX Runtime departs from the Paddle network by {found:.1e} (limit {LIMIT:g}); "
            f"nothing was written"
        )
    return found


def write_outputs(spec: str, features: bool, size: list[int], folder: str) -> None:
    """Worker: builds the network anew, exports it with the weights in `folder`, runs it, writes outputs.npz."""
    import onnxruntime

    module = build_source(spec, features and "features_only" not in spec, tuple(size)).module
    module.load_state_dict(safetensors.torch.load_file(Path(folder) / "weights.safetensors"))
    images = np.load(Path(folder) / "images.npy", allow_pickle=False)
    path = Path(folder) / "network.onnx"

    class Whole(torch.nn.Module):
        """The network with its outputs as a flat tuple."""

        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(flat(self.inner(images)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter without torch.export is the old one
        whole, given = Whole().eval(), (torch.from_numpy(images),)
        try:
            torch.onnx.export(whole, given, str(path), dynamo=False, opset_version=OPSET)
        except Exception:  # what the old exporter does not know, the new one may
            torch.onnx.export(whole, given, str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    np.savez(Path(folder) / "outputs.npz", **{f"output{index}": value for index, value in enumerate(outputs)})


if __name__ == "__main__":
    run_command(lambda: write_outputs(*json.loads(sys.argv[1])))
