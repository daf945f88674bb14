"""The learning rate of a step: warm-up, then poly, one-cycle or steps."""

from __future__ import annotations

import math

from awesome_pytorch_seg.config import ScheduleConfig

ONE_CYCLE_END = 1e-3  # the last rate of one-cycle over its highest


def learning_rate(step: int, iters: int, highest: float, config: ScheduleConfig) -> float:
    """The rate for update number `step`, counted from 0, of `iters`.

    For `warmup_iters` it rises from `warmup_factor` times `highest` in a straight line (one_cycle: along half a
    cosine). From there it falls: poly as (1 - done) ** power, one_cycle along half a cosine to a thousandth, step by
    `step_factor` every `step_iters` since the start.
    """
    warmup = config.warmup_iters
    if step < warmup:
        share = step / warmup
        if config.name == "one_cycle":
            share = _half_cosine(share)
        return highest * (config.warmup_factor + (1 - config.warmup_factor) * share)
    done = (step - warmup) / (iters - warmup)
    if config.name == "poly":
        return highest * (1 - done) ** config.power
    if config.name == "one_cycle":
        return highest * (1 - (1 - ONE_CYCLE_END) * _half_cosine(done))
    return highest * config.step_factor ** (step // config.step_iters)


def _half_cosine(share: float) -> float:
    """0 -> 0, 1 -> 1, flat at both ends."""
    return (1 - math.cos(math.pi * share)) / 2
