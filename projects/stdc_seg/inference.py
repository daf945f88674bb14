"""Networks ready to run, in three runtimes behind one method, and what must be known to feed them.

    network, info = PaddleNetwork("best.safetensors"), read_checkpoint_info("best.safetensors")
    network = OnnxNetwork("model.onnx")   # info = network.info
    logits = network.logits(images)       # float32 (B, 3, H, W) normalised -> float32 (B, num_classes, H, W)

Mean, std, channel order, scale, class names and palette come from the weight file; nothing here has values of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common.cli import UserError
from common.config.typed import config_from_text
from common.files import sha256_of
from common.labels import voc_colormap
from common.runs.environment import git_commit
from common.samples.roots import labels_of
from common.weights.header import header_from_values
from stdc_seg.checkpoint import TrainState, load_model, read_state
from stdc_seg.config import Config
from stdc_seg.models import STDCSeg, build_model
from stdc_seg.protocol import Model

import numpy as np
import paddle

FORMAT = "segrepro-stdc_seg-export-1"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What travels with a network: in ONNX as metadata properties, beside a Paddle inference model as model.yaml.

    Attributes:
        format: `FORMAT`.
        network: "stdc1" or "stdc2".
        step: Training step of the weights.
        commit: Commit of the code that read them.
        commit_changed: Tracked files differed from that commit.
        weights_sha256: Of the checkpoint file.
        class_names: By train id.
        palette: RGB by train id, 0..255.
        channel_order: Of the input's channels: "RGB".
        scale: Factor on 0..255 pixel values, before mean and std.
        mean: Per channel, of scaled values.
        std: Likewise.
        input_scale: Factor on the image's sides before the network (0.5 = "Seg50"), as the run was evaluated.
    """

    format: str
    network: str
    step: int
    commit: str
    commit_changed: bool
    weights_sha256: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channel_order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_scale: float

    def to_texts(self) -> dict[str, str]:
        """The fields as text: strings as they are, the rest as JSON."""
        fields = dataclasses.asdict(self)
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], where: str | os.PathLike) -> ModelInfo:
        """The inverse of `to_texts`.

        Raises:
            UserError: Not the metadata of an export of this project, or an input that `normalize` does not make.
        """
        if texts.get("format") != FORMAT:
            raise UserError(f"{where}: holds no metadata of export.py, so mean and std are unknown: export it again")
        try:
            values = {
                field.name: texts[field.name] if field.type == "str" else json.loads(texts[field.name])
                for field in dataclasses.fields(cls)
            }
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: its metadata is damaged ({error}): export it again") from None
        info = header_from_values(cls, values, where)
        if info.channel_order != "RGB" or not math.isclose(info.scale * 255, 1):
            raise UserError(
                f"{where}: wants {info.channel_order} x {info.scale:g}; this program feeds RGB x 1/255: export it again"
            )
        return info


class Network(Protocol):
    """One method for all runtimes."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Float32 (B, 3, H, W), normalised -> float32 (B, num_classes, H, W)."""


class PaddleNetwork:
    """The Paddle network itself, filled from a checkpoint.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """

    def __init__(self, weights: str | os.PathLike):
        self.model = load_network(weights)

    @paddle.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return self.model(paddle.to_tensor(images)).numpy()


class OnnxNetwork:
    """An exported model.onnx in ONNX Runtime, on the CPU with `OMP_NUM_THREADS` threads.

    Raises:
        UserError: ONNX Runtime is not installed; the file is missing, no ONNX model, or none of export.py.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import onnxruntime
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install onnxruntime, or --runtime paddle") from None
        if not Path(path).is_file():
            raise UserError(f"no weight file {path}: check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{path}: not an ONNX model that ONNX Runtime can run ({reason}): export it again"
            ) from None
        self.info = ModelInfo.from_texts(self._session.get_modelmeta().custom_metadata_map, path)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return self._session.run(["logits"], {"images": images})[0]


class InferenceNetwork:
    """An exported model.json + model.pdiparams in Paddle's own predictor, on the CPU.

    oneDNN is switched off by name: it is on by default, and its resizing aborts in Paddle 3.3 and ignores
    `align_corners` in 3.2 without a word.
    """

    def __init__(self, folder: str | os.PathLike):
        config = paddle.inference.Config(str(Path(folder) / "model.json"), str(Path(folder) / "model.pdiparams"))
        config.disable_gpu()
        config.disable_mkldnn()
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._predictor = paddle.inference.create_predictor(config)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Network`."""
        predictor = self._predictor
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def as_model(network: Network) -> Model:
    """What `class_scores` calls: Paddle's own network as it is, which leaves tensors on its device, others wrapped."""
    if isinstance(network, PaddleNetwork):
        return network.model
    return lambda images: paddle.to_tensor(network.logits(images.numpy()))


def load_network(weights: str | os.PathLike) -> STDCSeg:
    """Builds the network that a checkpoint holds, filled and in evaluation mode.

    Raises:
        UserError: The checkpoint is missing, damaged, or for another network.
    """
    state = read_state(weights)
    config = config_from_text(Config, state.config_text, f"config in {weights}")
    model = build_model(config.model.name, num_classes=len(state.class_names))
    load_model(weights, model, state.class_names)
    model.eval()
    return model


def read_checkpoint_info(weights: str | os.PathLike) -> ModelInfo:
    """What a checkpoint says about its network's input and output.

    Raises:
        UserError: The checkpoint is missing, damaged, or none of this project.
    """
    state = read_state(weights)
    config = config_from_text(Config, state.config_text, f"config in {weights}")
    commit, changed = git_commit(Path(__file__).parent)
    return ModelInfo(
        format=FORMAT,
        network=config.model.name,
        step=state.step,
        commit=commit,
        commit_changed=changed,
        weights_sha256=sha256_of(weights),
        class_names=state.class_names,
        palette=_tuples(_palette(config, state).tolist()),
        channel_order="RGB",
        scale=1 / 255,
        mean=state.mean,
        std=state.std,
        input_scale=config.eval.input_scale,
    )


def _palette(config: Config, state: TrainState) -> np.ndarray:
    """(num_classes, 3) uint8: the checkpoint's; the data set's or default colours for a file that holds none."""
    if state.palette is not None:
        return np.array(state.palette, np.uint8)
    if config.data.dataset != "custom":
        return labels_of(config.data).palette
    return voc_colormap()[1 : len(state.class_names) + 1]  # as load_custom gives them: the first of the map is black


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
