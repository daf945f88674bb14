"""The learning rate of a step: exponential warm-up (the original has none), then poly."""

from __future__ import annotations

from semsegpaddle_glore.config import OptimizerConfig


def learning_rate(step: int, iters: int, config: OptimizerConfig) -> float:
    """The backbone's rate for the update number `step`, counted from 0.

    Up to and including `warmup_iters` the rate rises from `warmup_start_lr` to `learning_rate` by equal factors; from
    there it falls as (1 - (step - warmup) / (iters - warmup)) ** power.
    """
    if config.warmup_iters > 0 and step <= config.warmup_iters:
        ratio = config.learning_rate / config.warmup_start_lr
        return config.warmup_start_lr * ratio ** (step / config.warmup_iters)
    done = (step - config.warmup_iters) / (iters - config.warmup_iters)
    return config.learning_rate * (1.0 - done) ** config.power
