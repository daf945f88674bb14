"""Backbones from timm and torchvision behind one door: features of four stages at an output stride of 8, 16 or 32.

Names: `resnet50` has the 7x7 stem of torchvision's weight files; `resnet50s` has the stem of three 3x3 convolutions
(64, 64, 128) that PSPNet, EncNet, OCNet and the original of this project use; `resnet50_half` is the latter with half
of all channels, ICNet's. `xception65` is DeepLab's aligned Xception. `efficientnet_lite0` is timm's
`tf_efficientnet_lite0`, padded as TensorFlow pads.
"""

from __future__ import annotations

from pathlib import Path

from common.cli import UserError, did_you_mean
from common.weights.package import weight_file, with_timm_names
from common.weights.wrappers import plain_names, unwrap

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torchvision.models import vgg

RESNETS = ("resnet18", "resnet50", "resnet101", "resnet152", "resnet50s", "resnet101s", "resnet152s")
DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201")
VGGS = ("vgg16", "vgg16_bn")
LITES = ("efficientnet_lite0",)
BACKBONES = (*RESNETS, "resnet50_half", *DENSENETS, *VGGS, "xception65", *LITES)
STAGE_STRIDES = (4, 8, 16, 32)
# What a file of ImageNet weights holds for the classifier, which is not built here.
CLASSIFIER_PREFIXES = ("fc.", "classifier.", "head.")


class Backbone(nn.Module):
    """A classification network without its classifier, cut into a stem and four stages.

    Shapes: images (B, 3, H, W) -> four features (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])), where VGG
        and DenseNet round down in the poolings that they have between stages.

    Args:
        name: One of `BACKBONES`.
        output_stride: 8, 16 or 32. Below 32 the last stages keep their size and their convolutions are dilated so that
            each sees what it saw.
        first_block_dilated: Whether the first block of a ResNet's dilated stage looks as far as its others, as in
            hszhao/semseg; else it keeps the dilation of the stage before, as in torchvision and PyTorch-Encoding.
        weights: A local file of ImageNet weights, as timm or torchvision publish them for that name
            (`.safetensors`, `.pth`, `.bin`), or "package" for those of a pip package; None starts from random weights.

    Attributes:
        stem: What precedes the stages.
        stages: The four stages.
        channels: Of each stage's features.
        strides: Of each stage's features.

    Raises:
        UserError: Unknown name or output stride; a weight file that does not fit.
    """

    def __init__(
        self, name: str, output_stride: int = 32, weights: str | None = None, first_block_dilated: bool = False
    ):
        super().__init__()
        if name not in BACKBONES:
            raise UserError(f"unknown backbone '{name}': {did_you_mean(name, list(BACKBONES))}")
        if output_stride not in (8, 16, 32):
            raise UserError(f"output stride {output_stride} of backbone '{name}': use 8, 16 or 32")
        network = _library_network(name, output_stride)
        if weights is not None:
            load_imagenet_weights(network, weight_file(weights, name))
        stem, stages, self.channels = _cut(name, network)
        if first_block_dilated:
            _dilate_first_blocks(name, stages)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.strides = tuple(min(stride, output_stride) for stride in STAGE_STRIDES)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features of the four stages."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def load_imagenet_weights(network: nn.Module, path: str) -> None:
    """Fills a timm or torchvision network from a local file; the file's classifier is left out, nothing else may be.

    Raises:
        UserError: No such file, no weights in it, or tensors that are missing, unknown or of another shape.
    """
    stored = read_tensors(path)
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(CLASSIFIER_PREFIXES)}
    given = {name: value for name, value in stored.items() if not name.startswith(CLASSIFIER_PREFIXES)}
    # Files from before PyTorch 0.4.1 lack this counter, which only matters to cumulative averages.
    missing = sorted(name for name in wanted.keys() - given.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(given.keys() - wanted.keys())
    reshaped = sorted(name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape)
    broken = sorted(name for name, value in given.items() if not torch.isfinite(value.float()).all())
    if broken:
        raise UserError(f"{path}: '{broken[0]}' holds values that are not finite: the weights are broken, take others")
    for problem, names in (("lacks", missing), ("has besides", unknown), ("has in another shape", reshaped)):
        if names:
            raise UserError(
                f"{path} is of another network than this backbone: it {problem} {len(names)} tensors, "
                f"first '{names[0]}': give the file of the same name"
            )
    network.load_state_dict(given, strict=False)


def read_tensors(path: str) -> dict[str, torch.Tensor]:
    """Reads a file of ImageNet weights, running nothing that it holds.

    Takes the weights out of a checkpoint of training and the prefixes of wrapped models off their names, see
    `common.weights.wrappers`. Beside averaged weights it takes the others, and says so.

    Raises:
        UserError: No such file, or no tensors in it.
    """
    if not Path(path).is_file():
        raise UserError(f"no weight file {path}: check the path (weights are never downloaded)")
    try:
        if path.endswith(".safetensors"):
            stored = safetensors.torch.load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole weight file ({reason}): copy it again") from None
    except Exception as error:  # pickle's own errors have no common base below Exception
        raise UserError(
            f"{path}: holds more than tensors, it is not read ({type(error).__name__}): give a state dict"
        ) from None
    tensors, note = unwrap(stored, path)
    if note is not None:
        print(f"{path}: {note}")
    is_plain = all(isinstance(name, str) for name in tensors)
    if not is_plain or not all(_is_plain_tensor(value) for value in tensors.values()):
        raise UserError(f"{path}: holds more than named tensors: give a file of weights alone")
    names = plain_names(tensors, path)
    # torchvision's DenseNet files name layers "norm.1" where its code of today says "norm1".
    return with_timm_names({_without_inner_dot(names[name]): value for name, value in tensors.items()})


def _is_plain_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _without_inner_dot(name: str) -> str:
    for kind in ("norm", "conv"):
        for number in ("1", "2"):
            name = name.replace(f".{kind}.{number}.", f".{kind}{number}.")
    return name


def _library_network(name: str, output_stride: int) -> nn.Module:
    """The network of timm or torchvision, dilated."""
    if name == "resnet50_half":
        widths, stem = (32, 64, 128, 256), {"stem_width": 32, "stem_type": "deep"}
        return ResNet(Bottleneck, (3, 4, 6, 3), 0, 3, output_stride, channels=widths, zero_init_last=False, **stem)
    if name in RESNETS:
        # Every branch learns from the first step, as in the networks of these papers.
        return timm.create_model(name, num_classes=0, output_stride=output_stride, zero_init_last=False)
    if name == "xception65":
        return timm.create_model(name, num_classes=0, output_stride=output_stride)
    if name in LITES:
        return timm.create_model(f"tf_{name}", num_classes=0, output_stride=output_stride)
    if name in VGGS:
        network = _vgg_without_classifier(name)
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=1)
    _dilate(network, output_stride)
    return network


def _vgg_without_classifier(name: str) -> nn.Module:
    """Torchvision's VGG16, its weights drawn as there, without the 120 million of its fully connected layers."""
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=name.endswith("_bn"))
    for conv in features:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
    return nn.ModuleDict({"features": features})


def _dilate(network: nn.Module, output_stride: int) -> None:
    """Takes poolings out of a torchvision network; every 3x3 convolution behind them spreads its taps instead."""
    stride = dilation = 1
    for owner in network.features.modules():
        for child_name, child in owner.named_children():
            if isinstance(child, nn.Conv2d):
                stride *= child.stride[0]
                if child.kernel_size == (3, 3):
                    child.dilation = child.padding = (dilation, dilation)
            elif isinstance(child, nn.MaxPool2d | nn.AvgPool2d):
                if stride * 2 > output_stride:
                    dilation *= 2
                    setattr(owner, child_name, nn.Identity())
                else:
                    stride *= 2


def _dilate_first_blocks(name: str, stages: list[nn.Module]) -> None:
    if name not in (*RESNETS, "resnet50_half"):
        raise UserError(f"backbone '{name}' has no first blocks to dilate: take a ResNet, or leave the variant out")
    for stage in stages:
        conv = stage[0].conv2 if isinstance(stage[0], Bottleneck) else stage[0].conv1
        if conv.stride == (1, 1):
            conv.dilation = conv.padding = stage[-1].conv2.dilation


def _cut(name: str, network: nn.Module) -> tuple[nn.Module, list[nn.Module], tuple[int, ...]]:
    """Stem, the four stages and their channels."""
    if name in VGGS:
        return _cut_vgg(network.features)
    if name in DENSENETS:
        return _cut_densenet(network.features)
    if name == "xception65":
        # Stride 4 after block 0, 8 after block 1, 16 after the middle flow (to block 18), 32 after the exit flow.
        blocks = network.blocks
        stages = [blocks[:1], blocks[1:2], blocks[2:19], blocks[19:]]
        return network.stem, stages, tuple(stage[-1].out_channels for stage in stages)
    if name in LITES:
        blocks = network.blocks
        stages = [blocks[:2], blocks[2:3], blocks[3:5], blocks[5:]]
        return nn.Sequential(network.conv_stem, network.bn1), stages, (24, 40, 112, 320)
    stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    return stem, stages, tuple(info["num_chs"] for info in network.feature_info[1:])


def _cut_vgg(features: nn.Sequential) -> tuple[nn.Module, list[nn.Module], tuple[int, ...]]:
    """Stages end with a pooling (pool2 to pool5), so that FCN finds what its paper names."""
    layers = list(features)
    ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d | nn.Identity)]
    parts = [nn.Sequential(*layers[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return parts[0], parts[1:], (128, 256, 512, 512)


def _cut_densenet(features: nn.Module) -> tuple[nn.Module, list[nn.Module], tuple[int, ...]]:
    """A stage is a dense block with the transition before it; the last one is normalised and rectified."""
    stem = nn.Sequential(features.conv0, features.norm0, features.relu0, features.pool0)
    transitions = [features.transition1, features.transition2, features.transition3]
    stages = [
        nn.Sequential(features.denseblock1),
        nn.Sequential(transitions[0], features.denseblock2),
        nn.Sequential(transitions[1], features.denseblock3),
        nn.Sequential(transitions[2], features.denseblock4, features.norm5, nn.ReLU(inplace=True)),
    ]
    channels = [transition.norm.num_features for transition in transitions]
    return stem, stages, (*channels, features.norm5.num_features)
