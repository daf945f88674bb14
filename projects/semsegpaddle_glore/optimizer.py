"""SGD with momentum as the original has it, or AdamW; with groups of parameters that learn and decay differently."""

from __future__ import annotations

from semsegpaddle_glore.config import OptimizerConfig
from semsegpaddle_glore.models import Segmentor

import paddle
from paddle import nn


def build_optimizer(model: Segmentor, config: OptimizerConfig) -> paddle.optimizer.Optimizer:
    """SGD with momentum, its weight decay added to the gradient as PyTorch's SGD does; or AdamW.

    Heads learn at `head_lr_factor` times the rate. Normalisations and biases decay only if `decay_norm_and_bias`, the
    last convolution's weight of each head only if `decay_classifier`, the heads' normalisations only if also
    `decay_head_norm`. The rate itself is set before every update.

    Reference: src/utils/solver.py and src/models/libs/model_libs.py of the original. There `conv` overwrites the
        attributes that it is given, so that the exemption which the heads ask for their classifiers is lost; `bn`
        exempts the weights and biases of the heads' normalisations.
    """
    in_heads = {id(p) for head in model.head_layers() for p in head.parameters()}
    exempt = set()
    is_norm = (nn.BatchNorm2D, nn.LayerNorm)
    if not config.decay_norm_and_bias:
        exempt |= {id(layer.weight) for layer in model.sublayers() if isinstance(layer, is_norm)}
        exempt |= {id(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    if not config.decay_head_norm:
        norms = [layer for head in model.head_layers() for layer in head.sublayers() if isinstance(layer, is_norm)]
        exempt |= {id(parameter) for layer in norms for parameter in (layer.weight, layer.bias)}
    if not config.decay_classifier:
        exempt |= {id(head.classifier.weight) for head in model.head_layers()}
    groups: dict[tuple[bool, bool], list] = {}
    for parameter in model.parameters():
        if not parameter.stop_gradient:  # Paddle lists running statistics among the parameters
            key = (id(parameter) in in_heads, id(parameter) not in exempt)
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
