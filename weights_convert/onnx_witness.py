"""The third witness: the source network's weights through ONNX Runtime, beside the Paddle network.

Exporting and running happen in a process of their own: an exporter that aborts takes only that one with it, and the
graph's copies of the weights do not add to this one's memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from common.cli import UserError, run_command
from weights_convert.archs import find_arch
from weights_convert.networks import OUTPUT, Network, PaddleNetwork, TorchNetwork
from weights_convert.proof import LIMIT, difference

import numpy as np
import paddle
import safetensors.numpy
import torch

OPSET = 13


def onnx_outputs(
    arch: str, source_name: str, num_classes: int, source: Network, images: np.ndarray
) -> list[np.ndarray]:
    """Returns what ONNX Runtime makes of the source network's weights: its outputs, flat.

    Args:
        arch: A name of `archs`.
        source_name: Of the source within it.
        num_classes: Of the network.
        source: Whose weights are exported.
        images: One image (1, 3, H, W), normalised.

    Raises:
        UserError: The export failed.
    """
    with tempfile.TemporaryDirectory(prefix="onnx_witness_") as name:
        folder = Path(name)
        tensors = {name: np.asarray(value, order="C") for name, value in source.tensors().items()}
        safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
        np.save(folder / "images.npy", images)
        job = json.dumps([arch, source_name, num_classes, name])
        command = [sys.executable, "-P", "-m", "weights_convert.onnx_witness", job]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if "rror" in line] or ["it said nothing"]
            raise UserError(f"{arch}: ONNX export ended with status {result.returncode}: {lines[-1][:300]}")
        with np.load(folder / "outputs.npz", allow_pickle=False) as file:
            return [file[f"output{index}"] for index in range(len(file.files))]


def require_same(arch: str, theirs: list[np.ndarray], target: Network, images: np.ndarray) -> float:
    """Returns max|a - b| / max|a| between ONNX Runtime's outputs for the images and the Paddle network's.

    Raises:
        UserError: It is beyond the proof's limit.
    """
    found = difference(target.run(images, [])[OUTPUT], theirs)
    if not found <= LIMIT:
        raise UserError(
            f"{arch}: ONNX Runtime departs from the Paddle network by {found:.1e} (limit {LIMIT:g}); "
            f"nothing was written"
        )
    return found


def write_outputs(arch: str, source_name: str, num_classes: int, folder: str) -> None:
    """Worker: exports the source network with the weights in `folder`, runs it, writes outputs.npz."""
    import onnxruntime

    source = next(source for source in find_arch(arch).sources if source.name == source_name)
    network = source.build(num_classes)
    network.load(safetensors.numpy.load_file(Path(folder) / "weights.safetensors"))
    images = np.load(Path(folder) / "images.npy", allow_pickle=False)
    path = Path(folder) / "network.onnx"
    if isinstance(network, TorchNetwork):
        _export_torch(network, images, path)
    else:
        _export_paddle(network, images, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    np.savez(Path(folder) / "outputs.npz", **{f"output{index}": value for index, value in enumerate(outputs)})


def _export_torch(network: TorchNetwork, images: np.ndarray, path: Path) -> None:
    class Whole(torch.nn.Module):
        """The network with the forward pass that is compared."""

        def __init__(self):
            super().__init__()
            self.inner = network.module

        def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            result = network.forward(images)
            return tuple(result) if isinstance(result, list) else result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the exporter without torch.export is the old one
        torch.onnx.export(Whole().eval(), (torch.from_numpy(images),), str(path), dynamo=False, opset_version=OPSET)


def _export_paddle(network: PaddleNetwork, images: np.ndarray, path: Path) -> None:
    import paddle2onnx

    class Whole(paddle.nn.Layer):
        """The network with the forward pass that is compared."""

        def __init__(self):
            super().__init__()
            self.inner = network.layer

        def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
            return network.forward(images)

    spec = paddle.static.InputSpec(list(images.shape), "float32", "images")
    whole = Whole()
    whole.eval()
    static = paddle.jit.to_static(whole, input_spec=[spec], full_graph=True)
    paddle.jit.save(static, str(path.with_suffix("")))
    program, parameters = str(path.with_suffix(".json")), str(path.with_suffix(".pdiparams"))
    # The default optimize_tool calls pip to install packages.
    paddle2onnx.export(program, parameters, str(path), opset_version=OPSET, optimize_tool=None)


if __name__ == "__main__":
    run_command(lambda: write_outputs(*json.loads(sys.argv[1])))
