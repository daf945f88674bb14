"""The learning rate of a step."""

from __future__ import annotations

import math

from encnet_single_gpu.config import OptimizerConfig

WARMUP_START = 0.05  # the first rate of a warm-up over the highest
ONE_CYCLE_END = 1e-3  # the last rate of one_cycle over the highest


def learning_rate(step: int, iters: int, config: OptimizerConfig) -> float:
    """The rate for update number `step`, counted from 0, of `iters`.

    Over the first `warmup_share` it rises from `WARMUP_START` times its highest in a straight line (one_cycle: along
    half a cosine). From there: poly falls as (1 - done) ** power, one_cycle along half a cosine, constant stays.
    """
    highest, warmup = config.learning_rate, int(config.warmup_share * iters)
    if step < warmup:
        share = step / warmup
        if config.schedule == "one_cycle":
            share = _half_cosine(share)
        return highest * (WARMUP_START + (1 - WARMUP_START) * share)
    done = (step - warmup) / (iters - warmup)
    if config.schedule == "poly":
        return highest * (1 - done) ** config.power
    if config.schedule == "one_cycle":
        return highest * (1 - (1 - ONE_CYCLE_END) * _half_cosine(done))
    return highest


def _half_cosine(share: float) -> float:
    """0 -> 0, 1 -> 1, flat at both ends."""
    return (1 - math.cos(math.pi * share)) / 2
