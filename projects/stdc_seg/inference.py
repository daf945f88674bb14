"""Networks ready to run, in three runtimes behind one method, and what must be known to feed them.

    network, info = PaddleNetwork("best.safetensors"), read_checkpoint_info("best.safetensors")
    network = OnnxNetwork("model.onnx")   # info = network.info
    logits = network.logits(images)       # float32 (B, 3, H, W) normalised -> float32 (B, num_classes, H, W)

Mean, std, channel order, scale, class names and palette come from the weight file; nothing here has values of its own.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from common.config.typed import config_from_text
from common.files import sha256_of
from common.runs.environment import git_commit
from common.samples.roots import labels_of
from common.weights import exported
from common.weights.exported import Network, palette_of
from stdc_seg.checkpoint import load_network, read_state
from stdc_seg.config import Config
from stdc_seg.protocol import Model

import numpy as np
import paddle


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo(exported.ModelInfo):
    """What travels with a network of this project, besides what all have.

    Attributes:
        network: "stdc1" or "stdc2".
        commit: Commit of the code that read the weights.
        commit_changed: Tracked files differed from that commit.
        input_scale: Factor on the image's sides before the network (0.5 = "Seg50"), as the run was evaluated.
    """

    FORMAT = "segrepro-stdc_seg-export-1"

    network: str
    commit: str
    commit_changed: bool
    input_scale: float


class PaddleNetwork:
    """The Paddle network itself, filled from a checkpoint.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """

    def __init__(self, weights: str | os.PathLike):
        self.model = load_network(weights)

    @paddle.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `common.weights.exported.Network`."""
        return self.model(paddle.to_tensor(images)).numpy()


class OnnxNetwork(exported.OnnxNetwork[ModelInfo]):
    """An exported model.onnx of this project in ONNX Runtime, see `common.weights.exported.OnnxNetwork`."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, ModelInfo)


class InferenceNetwork:
    """An exported model.json + model.pdiparams in Paddle's own predictor, on the CPU.

    oneDNN is switched off by name: it is on by default, and its resizing aborts in Paddle 3.3 and ignores
    `align_corners` in 3.2 without a word.
    """

    # twin: semsegpaddle_glore/inference.py
    def __init__(self, folder: str | os.PathLike):
        config = paddle.inference.Config(str(Path(folder) / "model.json"), str(Path(folder) / "model.pdiparams"))
        config.disable_gpu()
        config.disable_mkldnn()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._predictor = paddle.inference.create_predictor(config)

    # twin: semsegpaddle_glore/inference.py
    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `common.weights.exported.Network`."""
        predictor = self._predictor
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def as_model(network: Network) -> Model:
    """What `class_scores` calls: Paddle's own network as it is, which leaves tensors on its device, others wrapped."""
    if isinstance(network, PaddleNetwork):
        return network.model
    return lambda images: paddle.to_tensor(network.logits(images.numpy()))


def read_checkpoint_info(weights: str | os.PathLike) -> ModelInfo:
    """What a checkpoint says about its network's input and output.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state = read_state(weights)
    config = config_from_text(Config, state.config_text, f"config in {weights}")
    commit, changed = git_commit(Path(__file__).parent)
    labels = None if config.data.dataset == "custom" or state.palette is not None else labels_of(config.data)
    return ModelInfo(
        format=ModelInfo.FORMAT,
        network=config.model.name,
        step=state.step,
        commit=commit,
        commit_changed=changed,
        weights_sha256=sha256_of(weights),
        class_names=state.class_names,
        palette=palette_of(state.palette, labels, len(state.class_names)),
        mean=state.mean,
        std=state.std,
        input_scale=config.eval.input_scale,
    )
