"""The learning rate of a step: warm-up (the original's is linear and off by default), then poly."""

from __future__ import annotations

from semsegpaddle_glore.config import OptimizerConfig


def learning_rate(step: int, iters: int, config: OptimizerConfig) -> float:
    """The backbone's rate for the update number `step`, counted from 0.

    Exponential: up to and including `warmup_iters` the rate rises from `warmup_start_lr` to `learning_rate` by equal
    factors. Linear: update number n of N has n / N of the rate, counted from 1. From there it falls as
    (1 - (step - warmup) / (iters - warmup)) ** power.

    Reference: of linear, src/utils/solver.py of the original (`lr_warmup`).
    """
    if config.warmup == "linear" and step < config.warmup_iters:
        return config.learning_rate * (step + 1) / config.warmup_iters
    if config.warmup == "exponential" and 0 < config.warmup_iters >= step:
        ratio = config.learning_rate / config.warmup_start_lr
        return config.warmup_start_lr * ratio ** (step / config.warmup_iters)
    done = (step - config.warmup_iters) / (iters - config.warmup_iters)
    return config.learning_rate * (1.0 - done) ** config.power
