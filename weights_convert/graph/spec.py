"""What stands behind `--module`: the name of a network, and the network."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from common.cli import UserError, did_you_mean

import torch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINDS = "timm:NAME, torchvision:NAME, smp:DECODER:ENCODER or FILE.py:FUNCTION, then :option=value as often as needed"


@dataclasses.dataclass
class Source:
    """A PyTorch network that is to be converted.

    Attributes:
        spec: As it was typed.
        title: The expression that builds it.
        module: The network, random weights, evaluation mode.
        features: It returns a list of features.
        channels: Of its images.
        size: (height, width) that it is traced with.
        mean: Of the images that its published weights expect, scaled to 0..1.
        std: Likewise.
        out_channels: Of its features, where they are known.
        strides: Likewise.
    """

    spec: str
    title: str
    module: torch.nn.Module
    features: bool = False
    channels: int = 3
    size: tuple[int, int] = (224, 256)
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    out_channels: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None


def build_source(spec: str, features: bool = False, size: tuple[int, int] | None = None) -> Source:
    """Builds the network of a `--module`, with random weights that are always the same.

    Raises:
        UserError: A name that is not known, an option that the network does not take, a file that cannot be used.
    """
    names = [part for part in spec.split(":") if "=" not in part]
    options = dict(_option(part) for part in spec.split(":") if "=" in part)
    torch.manual_seed(0)
    if names[0] == "timm" and len(names) == 2:
        source = _timm(spec, names[1], options, features)
    elif names[0] == "torchvision" and len(names) == 2:
        source = _torchvision(spec, names[1], options)
    elif names[0] == "smp" and len(names) == 3:
        source = _smp(spec, names[1], names[2], options)
    elif names[0].endswith(".py") and len(names) == 2:
        source = _file(spec, Path(names[0]), names[1], options)
    else:
        raise UserError(f"--module '{spec}': use {KINDS}")
    if features and not source.features:
        raise UserError(f"--features goes with timm networks; of '{spec}' return the list of features yourself")
    source.module = source.module.eval().float()
    source.size = size or source.size
    return source


def _option(part: str) -> tuple[str, Any]:
    name, _, text = part.partition("=")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def _built(spec: str, function: Any, *args: Any, **options: Any) -> torch.nn.Module:
    try:
        module = function(*args, **options)
    except UserError:
        raise
    except Exception as error:  # whatever the builder raises is about its options
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise UserError(f"--module '{spec}': it cannot be built: {type(error).__name__}: {lines[0][:300]}") from None
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"--module '{spec}': gives a {type(module).__name__}, not a torch.nn.Module")
    return module


def _timm(spec: str, name: str, options: dict[str, Any], features: bool) -> Source:
    import timm

    if name not in timm.list_models():
        nearest = timm.list_models(f"*{name}*")[:8] or timm.list_models()[:8]
        raise UserError(f"--module '{spec}': timm has no '{name}': {did_you_mean(name, nearest)}")
    if features:
        options["features_only"] = True
    module = _built(spec, timm.create_model, name, pretrained=False, **options)
    defaults = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    shape = defaults.get("input_size", (3, 224, 224))
    source = Source(spec, f"timm.create_model('{name}')", module, bool(options.get("features_only")), shape[0])
    source.size = _trace_size(tuple(shape[1:]), bool(defaults.get("fixed_input_size")))
    source.mean, source.std = tuple(defaults.get("mean", IMAGENET[0])), tuple(defaults.get("std", IMAGENET[1]))
    if "img_size" in options:
        edge = options["img_size"]
        source.size = tuple(edge) if isinstance(edge, list | tuple) else (edge, edge)
    if source.features:
        source.out_channels = tuple(module.feature_info.channels())
        source.strides = tuple(module.feature_info.reduction())
    return source


def _trace_size(size: tuple[int, int], fixed: bool) -> tuple[int, int]:
    """The network's own size; where it is free, another width, so that the two are told apart."""
    if fixed:
        return size
    height, width = min(size[0], 224), min(size[1], 224)
    return (height, width + 32) if height == width else (height, width)


def _torchvision(spec: str, name: str, options: dict[str, Any]) -> Source:
    import torchvision

    if name not in torchvision.models.list_models():
        raise UserError(
            f"--module '{spec}': torchvision has no '{name}': {did_you_mean(name, torchvision.models.list_models())}"
        )
    builder = torchvision.models.get_model_builder(name)
    known = inspect.signature(builder).parameters
    options.update({"weights_backbone": None} if "weights_backbone" in known else {})
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", True)
    module = _built(spec, torchvision.models.get_model, name, weights=None, **options)
    fixed = name.startswith(("vit", "swin", "maxvit"))
    edge = 299 if name == "inception_v3" else getattr(module, "image_size", 224) if fixed else 224
    size = (edge, edge) if fixed else (edge, edge + 32)
    return Source(spec, f"torchvision.models.{name}", module, size=size)


def _smp(spec: str, decoder: str, encoder: str, options: dict[str, Any]) -> Source:
    import segmentation_models_pytorch as smp

    names = [name for name in dir(smp) if inspect.isclass(getattr(smp, name))]
    if decoder not in names:
        raise UserError(
            f"--module '{spec}': segmentation_models_pytorch has no '{decoder}': {did_you_mean(decoder, names)}"
        )
    module = _built(spec, getattr(smp, decoder), encoder, encoder_weights=None, **options)
    return Source(spec, f"segmentation_models_pytorch.{decoder}('{encoder}')", module)


def _file(spec: str, path: Path, function: str, options: dict[str, Any]) -> Source:
    if not path.is_file():
        raise UserError(f"--module '{spec}': no file {path}: check the path")
    found = importlib.util.spec_from_file_location(f"segrepro_user_{path.stem}", path)
    code = importlib.util.module_from_spec(found)
    sys.modules[found.name] = code
    sys.path.insert(0, str(path.resolve().parent))
    try:
        found.loader.exec_module(code)
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"--module '{spec}': {path} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not hasattr(code, function):
        names = [name for name, value in vars(code).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"--module '{spec}': {path} has no '{function}': {did_you_mean(function, names)}")
    module = _built(spec, getattr(code, function), **options)
    return Source(spec, f"{path.name}:{function}", module)
