"""The learning rate of a step: warm-up (the original's is linear and off by default), then poly; or one-cycle."""

from __future__ import annotations

import math

from semsegpaddle_glore.config import OptimizerConfig

ONE_CYCLE_END = 1e-3  # the last rate of one-cycle over its highest


def learning_rate(step: int, iters: int, config: OptimizerConfig) -> float:
    """The backbone's rate for the update number `step`, counted from 0.

    Exponential: up to and including `warmup_iters` the rate rises from `warmup_start_lr` to `learning_rate` by equal
    factors. Linear: update number n of N has n / N of the rate, counted from 1. From there it falls as
    (1 - (step - warmup) / (iters - warmup)) ** power. One-cycle: up from `warmup_start_lr` along half a cosine, and
    down to a thousandth along another.

    Reference: of linear, src/utils/solver.py of the original (`lr_warmup`).
    """
    if config.schedule == "one_cycle":
        if step < config.warmup_iters:
            low, high, share = config.warmup_start_lr, config.learning_rate, step / config.warmup_iters
            return low + (high - low) * _half_cosine(share)
        done = (step - config.warmup_iters) / (iters - config.warmup_iters)
        return config.learning_rate * (1 - (1 - ONE_CYCLE_END) * _half_cosine(done))
    if config.warmup == "linear" and step < config.warmup_iters:
        return config.learning_rate * (step + 1) / config.warmup_iters
    if config.warmup == "exponential" and 0 < config.warmup_iters >= step:
        ratio = config.learning_rate / config.warmup_start_lr
        return config.warmup_start_lr * ratio ** (step / config.warmup_iters)
    done = (step - config.warmup_iters) / (iters - config.warmup_iters)
    return config.learning_rate * (1.0 - done) ** config.power


def _half_cosine(share: float) -> float:
    """0 -> 0, 1 -> 1, flat at both ends."""
    return (1 - math.cos(math.pi * share)) / 2
