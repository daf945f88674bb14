"""PaddleSeg's model zoo as its README of 2.0 lists it: one row per network and backbone, each built with its losses."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import UserError, did_you_mean, shown
from common.config.strict_yaml import load_yaml
from common.config.typed import read_config_text
from common.labels import IGNORE
from paddleseg_benchmark.zoo import config_check, paddleseg_compat

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddleseg.cvlibs import Config, SegBuilder
from paddleseg.cvlibs.config import merge_config_dicts

CONFIG_DIR = Path(__file__).parents[1] / "configs"
BENCHMARK_DIR = CONFIG_DIR.with_name("benchmark")  # the configs of PaddleSeg's own benchmark
NHWC_NETWORKS = ("DeepLabV3P",)
_BY_VALUES = "the loss {} decides in Python by the values of tensors"
# What paddleseg 2.8.0's networks and losses do that a graph cannot: (network, graph) -> why.
GRAPH_OBSTACLES = {
    **dict.fromkeys([("GSCNN", "to_static"), ("GSCNN", "static")], "the Canny edges are computed by OpenCV"),
    **dict.fromkeys([("ISANet", "to_static"), ("ISANet", "static")], "the attention pads by sizes read from tensors"),
    **dict.fromkeys(
        [(network, graph) for network in ("SFNet", "DecoupledSegNet") for graph in ("to_static", "static")],
        _BY_VALUES.format("OhemCrossEntropyLoss"),
    ),
    ("HarDNet", "static"): _BY_VALUES.format("BootstrappedCrossEntropyLoss"),
    ("EMANet", "static"): "the network registers a tensor as buffer, where a Program has none",
    ("UNet3Plus", "static"): "the network passes an initialiser's class where a Program wants the initialiser",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of the zoo.

    Attributes:
        name: As in every table and command: `deeplabv3p_resnet50`.
        network: As PaddleSeg's README writes it: "DeepLabv3+".
        backbone: "ResNet50_vd", or "-".
        config: File in `configs/`.
        reference_params: Trainable parameters with 19 classes in paddleseg 2.8.0 as published: counted there, but for
            eight networks on ResNet101, which have their ResNet50's and `_RESNET101_MORE`. ShuffleNetV2's were counted
            in PaddleSeg 2.1, the last that had it.
    """

    name: str
    network: str
    backbone: str
    config: str
    reference_params: int


_RESNET101_MORE = 18_992_128  # trainable parameters of ResNet101_vd over ResNet50_vd


def _resnets(name: str, network: str, params_50: int, params_101: int | None = None) -> tuple[Row, Row]:
    """Both backbones of a network; without `params_101` it is ResNet50's and the difference of the backbones."""
    params_101 = params_101 or params_50 + _RESNET101_MORE
    return (
        Row(f"{name}_resnet50", network, "ResNet50_vd", f"{name}.yml", params_50),
        Row(f"{name}_resnet101", network, "ResNet101_vd", f"{name}_resnet101.yml", params_101),
    )


def _alone(name: str, network: str, params: int) -> Row:
    return Row(name, network, "-", f"{name}.yml", params)


ROWS: tuple[Row, ...] = (
    *_resnets("ann", "ANN", 48_597_638),
    _alone("bisenetv2", "BiSeNetv2", 2_516_455),
    *_resnets("danet", "DANet", 47_522_862),
    *_resnets("deeplabv3", "Deeplabv3", 39_068_531, 58_060_659),
    *_resnets("deeplabv3p", "Deeplabv3P", 26_723_395, 45_715_523),
    _alone("fastscnn", "Fast-SCNN", 1_420_342),
    Row("fcn_hrnet_w18", "FCN", "HRNet_W18", "fcn_hrnet_w18.yml", 9_641_119),
    Row("fcn_hrnet_w48", "FCN", "HRNet_W48", "fcn_hrnet_w48.yml", 65_859_379),
    *_resnets("gcnet", "GCNet", 49_632_007),
    *_resnets("gscnn", "GSCNN", 39_405_488),
    _alone("hardnet", "HarDNet", 4_119_257),
    Row("ocrnet_hrnet_w18", "OCRNet", "HRNet_W18", "ocrnet_hrnet_w18.yml", 12_083_122),
    Row("ocrnet_hrnet_w48", "OCRNet", "HRNet_W48", "ocrnet_hrnet_w48.yml", 70_374_982),
    *_resnets("pspnet", "PSPNet", 67_863_942, 86_856_070),
    _alone("unet", "U-Net", 13_406_227),
    _alone("u2net", "U2-Net", 44_260_987),
    _alone("attention_unet", "Att U-Net", 34_879_743),
    _alone("unet_plusplus", "U-Net++", 8_363_820),
    _alone("unet_3plus", "U-Net3+", 27_023_635),
    *_resnets("decoupled_segnet", "DecoupledSegNet", 41_650_416),
    *_resnets("emanet", "EMANet", 42_351_750),
    *_resnets("isanet", "ISANet", 37_707_398),
    *_resnets("dnlnet", "DNLNet", 50_024_327),
    Row("sfnet_resnet50", "SFNet", "ResNet50_vd", "sfnet.yml", 41_972_851),
    _alone("shufflenetv2", "ShuffleNetV2", 230_853),  # of PaddleSeg 2.1, with 95 040 in branches that it never ran
)


def row(name: str) -> Row:
    """The row of that name.

    Raises:
        UserError: There is none.
    """
    for candidate in ROWS:
        if candidate.name == name:
            return candidate
    raise UserError(f"no network '{name}' in the zoo: {did_you_mean(name, [r.name for r in ROWS])}")


class ZooNetwork(nn.Layer):
    """A network of paddleseg with the losses of its config: images and labels in, one loss out.

    A layer, so that `paddle.DataParallel` and `paddle.jit.to_static` can take network and losses as one.

    Args:
        network: A model of paddleseg; in training mode it returns one output per loss.
        losses: {"types": [...], "coef": [...]} of paddleseg.
        config: Where both come from; it also says optimizer and rate.
        data_format: "NCHW" or "NHWC": the layout inside the network. Images and logits outside are always NCHW.

    Shapes: images float32 (B, 3, H, W), labels int64 (B, H, W), 255 ignored -> scalar float32.
    """

    def __init__(
        self, network: nn.Layer, losses: dict[str, Sequence[Any]], config: ZooConfig, data_format: str = "NCHW"
    ):
        super().__init__()
        self.network = network
        self.losses = losses
        self.config = config
        self.data_format = data_format
        self.learns_edges = any(getattr(loss, "edge_label", False) for loss in losses["types"])

    def forward(self, images: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """The sum of the losses, each with its coefficient; in float32 also under mixed precision."""
        outputs = self.network(self._in_own_layout(images))
        if len(outputs) != len(self.losses["types"]):
            raise UserError(
                f"{self.config.source}: 'loss.coef' has {len(self.losses['types'])} values, the network "
                f"{len(outputs)} outputs: give one for each"
            )
        with paddle.amp.auto_cast(enable=False), paddleseg_compat.mixed_types():
            edge_labels = edges(labels) if self.learns_edges else None
            loss_computation = importlib.import_module("paddleseg.core.train").loss_computation
            return sum(loss_computation(_as_float32(outputs), labels, edge_labels, self.losses))

    def predict(self, images: paddle.Tensor) -> paddle.Tensor:
        """Logits of the network in evaluation mode: (B, 3, H, W) -> (B, num_classes, H, W)."""
        logits = self.network(self._in_own_layout(images))[0]
        return logits.transpose([0, 3, 1, 2]) if self.data_format == "NHWC" else logits  # (B, C, H, W)

    def trainable_parameters(self) -> int:
        """The number of trainable parameters, without running statistics."""
        return sum(p.size for p in self.network.parameters() if not p.stop_gradient)

    def _in_own_layout(self, images: paddle.Tensor) -> paddle.Tensor:
        return images.transpose([0, 2, 3, 1]) if self.data_format == "NHWC" else images  # (B, H, W, 3)


def edges(labels: paddle.Tensor) -> paddle.Tensor:
    """1 where another label, or the image's border, is within 2 pixels, else 0.

    What paddleseg's `Dataset(edge=True)` computes on the CPU (`mask_to_binary_edge`, radius 2), as tensor operations.
    Pixels outside the image count as ignored. Two ignored neighbours have no edge between them, which
    is learnt like any other label.

    Shapes: int64 (B, H, W) -> int64 (B, H, W).
    """
    height, width = labels.shape[1:]
    padded = F.pad(labels.unsqueeze(1), [2, 2, 2, 2], value=IGNORE).squeeze(1)  # (B, H + 4, W + 4)
    found = paddle.zeros_like(labels)
    for down in range(-2, 3):
        for right in range(-2, 3):
            if 0 < down**2 + right**2 <= 4:
                neighbour = padded[:, 2 + down : 2 + down + height, 2 + right : 2 + right + width]
                found = paddle.maximum(found, (neighbour != labels).astype("int64"))
    return found


def build(name: str, num_classes: int = 19, data_format: str = "NCHW") -> ZooNetwork:
    """A row of the zoo with random weights and the losses of its config.

    Raises:
        UserError: No such row, or one without NHWC.
    """
    return build_from_config(read_config(CONFIG_DIR / row(name).config), num_classes, data_format)


class ZooConfig(Config):
    """paddleseg's config, its files read by `common.config.strict_yaml` and looked at by `config_check`.

    paddleseg's own reader takes doubled keys and tags, and any key.

    Attributes:
        source: The file, for errors.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        super().__init__(self.source)

    @classmethod
    def _parse_from_yaml(cls, path: str) -> dict:
        tree = _with_bases(Path(path), ())
        config_check.check(tree, path)
        return tree


def _with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a YAML file over those of its `_base_` files; `above` are the files that it is a base of."""
    tree = load_yaml(read_config_text(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, this is {type(tree).__name__}")
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: '_base_' must be the name of a file or a list of such, not {shown(bases)}")
    for base in bases:
        file = path.parent / base
        if file.resolve() in (*above, path.resolve()):
            raise UserError(f"{path}: '_base_' {base} is based on this file itself: take one of the two out")
        if not file.is_file():
            raise UserError(f"{path}: '_base_' {shown(base)}: there is no such file beside it: correct the path")
        tree = merge_config_dicts(tree, _with_bases(file, (*above, path.resolve())))
    return tree


def read_config(path: str | Path) -> ZooConfig:
    """A config of PaddleSeg, with what it takes from `_base_`: by path, or by the bare name of a file in `configs/`.

    Raises:
        UserError: No such file, no YAML, or a mistake in it: see `config_check`.
    """
    paddleseg_compat.apply()
    path = find_config(path, ".yml")
    try:
        return ZooConfig(path)
    except UserError:
        raise
    except Exception as error:  # paddleseg's rules raise whatever comes
        raise UserError(f"{path}: no config of PaddleSeg: {reason_of(error)}: correct it") from error


def config_from_text(text: str, source: str) -> ZooConfig:
    """A config of PaddleSeg from its YAML without `_base_`, as a checkpoint holds it; `source` names it in errors.

    Raises:
        UserError: No YAML, or a mistake in it: see `config_check`.
    """
    paddleseg_compat.apply()
    tree = load_yaml(text, source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: a config is a mapping of sections, this is {type(tree).__name__}")
    config_check.check(tree, source)
    config = ZooConfig.__new__(ZooConfig)  # paddleseg's own constructor opens a file
    config.source, config.dic = source, tree
    return config


def reason_of(error: BaseException) -> str:
    """The reason in paddleseg's long message about a config, on one line."""
    return " ".join(str(error).rpartition("error message is:")[2].split())


def find_config(given: str | Path, ending: str) -> Path:
    """A config file by path, or by the name of one in `configs/`, with or without its ending.

    Raises:
        UserError: There is none.
    """
    path = Path(given)
    if not path.is_file() and path.parent in (Path("."), Path("configs"), Path("benchmark")):
        folder = BENCHMARK_DIR if path.parent == Path("benchmark") else CONFIG_DIR
        path = folder / f"{path.name.removesuffix(ending)}{ending}"
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob(f"*{ending}")) or sorted(
            p.name for p in CONFIG_DIR.glob(f"*{ending}")
        )
        raise UserError(f"no config file {given}: {did_you_mean(path.name, known)}")
    return path


def build_from_config(config: ZooConfig, num_classes: int = 19, data_format: str = "NCHW") -> ZooNetwork:
    """Network and losses of a config of PaddleSeg.

    Raises:
        UserError: The config does not describe a network, asks for a download, or the network has no NHWC.
    """
    model, losses = config.model_cfg, config.loss_cfg
    obstacle = nhwc_obstacle(model["type"])
    if data_format == "NHWC":
        if obstacle:
            raise UserError(f"NHWC: {model['type']}: {obstacle}: leave out --data_format")
        model |= {"data_format": "NHWC", "backbone": model["backbone"] | {"data_format": "NHWC"}}
        losses = losses | {"types": [loss | {"data_format": "NHWC"} for loss in losses["types"]]}
    _refuse_downloads(model, config.source)
    builder = SegBuilder(config)
    section = "model"
    try:
        network = builder.build_component(model | {"num_classes": num_classes})
        section = "loss"
        types = [builder.build_component(loss) for loss in losses["types"]]
    except RuntimeError as error:
        if isinstance(error.__context__, UserError):  # paddleseg's builder wraps what a constructor raises
            raise error.__context__ from None
        raise UserError(f"{config.source}: '{section}': {reason_of(error)}: correct it") from error
    return ZooNetwork(network, {"types": types, "coef": losses["coef"]}, config, data_format)


def nhwc_obstacle(network: str) -> str | None:
    """Why a network of paddleseg cannot run channels-last; None if it can."""
    if network in NHWC_NETWORKS:
        return None
    return f"in paddleseg 2.8.0 only {' and '.join(NHWC_NETWORKS)} takes data_format throughout"


def graph_obstacle(network: str, graph: str) -> str | None:
    """Why a network of paddleseg cannot be trained in a graph ("to_static", "static"); None if it can."""
    return GRAPH_OBSTACLES.get((network, graph))


def _refuse_downloads(model: dict[str, Any], where: str) -> None:
    for part in (model, model.get("backbone") or {}):
        if "://" in str(part.get("pretrained") or ""):
            raise UserError(
                f"{where}: pretrained {part['pretrained']}: download it yourself and name the file, or write null"
            )


def _as_float32(outputs: Any) -> Any:
    """Outputs of a network, also nested, as float32."""
    if isinstance(outputs, list | tuple):
        return [_as_float32(output) for output in outputs]
    return outputs if outputs.dtype == paddle.float32 else outputs.astype("float32")
