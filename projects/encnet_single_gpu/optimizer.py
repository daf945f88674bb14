"""SGD or AdamW over groups of parameters, and the running mean of the weights."""

from __future__ import annotations

import copy

from encnet_single_gpu.config import OptimizerConfig

import torch
from torch import nn


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer, its parameters grouped by rate and weight decay.

    Where the network has a backbone, everything else learns at `head_lr_factor` times the rate. Parameters of one
    dimension (normalisation, biases, slopes) decay only if `decay_norm_and_bias`. `set_learning_rate` sets the rate.
    """
    in_backbone = {id(p) for p in model.backbone.parameters()} if hasattr(model, "backbone") else None
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        factor = 1.0 if in_backbone is None or id(parameter) in in_backbone else config.head_lr_factor
        decay = config.weight_decay if config.decay_norm_and_bias or parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(settings, config.learning_rate, config.momentum)
    return torch.optim.AdamW(settings, config.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


class WeightAverage:
    """The exponential running mean of a network's weights and normalisation statistics, as a network of its own.

    In the first updates the mean is shorter, (1 + step) / (10 + step) in place of `decay`, so that the random start is
    forgotten at once.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    # twin: awesome_pytorch_seg/optimizer.py
    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after update number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mean, new = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in mean.items() if value.is_floating_point()]
        torch._foreach_lerp_([mean[name] for name in floats], [new[name] for name in floats], 1 - decay)
        for name in mean.keys() - set(floats):  # counters
            mean[name].copy_(new[name])
