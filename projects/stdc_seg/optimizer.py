"""The optimizer of the official code, SGD with momentum and four groups of parameters; or AdamW with the same."""

from __future__ import annotations

from stdc_seg.config import OptimizerConfig
from stdc_seg.models import STDCSeg

import paddle
from paddle import nn


def build_optimizer(model: STDCSeg, config: OptimizerConfig) -> paddle.optimizer.Optimizer:
    """SGD with momentum, its weight decay added to the gradient as PyTorch's SGD does; or AdamW.

    Heads (FFM and all prediction heads) learn at `head_lr_factor` times the rate; normalisation weights and biases
    decay only if `decay_norm_and_bias`. Without `train_backbone_norm` the backbone's normalisation weights and biases
    get no gradient and keep their values, as in the official code, which collects the parameters of InPlaceABN layers
    and so misses the backbone's plain BatchNorm2d (models/model_stages.py). The rate itself is set before every update.
    """
    in_heads = {id(p) for layer in model.head_layers() for p in layer.parameters()}
    in_norms = {
        id(p) for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D) for p in (layer.weight, layer.bias)
    }
    if not config.train_backbone_norm:
        for parameter in model.backbone.parameters():
            parameter.stop_gradient = parameter.stop_gradient or id(parameter) in in_norms
    groups: dict[tuple[bool, bool], list] = {}
    for parameter in model.parameters():
        if not parameter.stop_gradient:  # Paddle lists running statistics among the parameters
            key = (id(parameter) in in_heads, config.decay_norm_and_bias or id(parameter) not in in_norms)
            groups.setdefault(key, []).append(parameter)
    settings = [
        {
            "params": parameters,
            "learning_rate": config.head_lr_factor if head else 1.0,  # a factor of the optimizer's rate
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in groups.items()
    ]
    if config.name == "adamw":
        return paddle.optimizer.AdamW(config.learning_rate, parameters=settings)
    return paddle.optimizer.Momentum(config.learning_rate, config.momentum, parameters=settings)
