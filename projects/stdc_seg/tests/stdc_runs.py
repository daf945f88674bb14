"""Trainings of this project that are small."""

from functools import partial

from testkit import REPOSITORY, run_command

PROJECT = REPOSITORY / "projects" / "stdc_seg"
SMALL = (
    *("model.name=stdc1", "data.dataset=custom", "augment.crop_size=[65, 65]", "augment.scales=[0.75, 1.0]"),
    *("optimizer.warmup_iters=2", "train.batch_size=2", "train.log_every=1", "eval.input_scale=1.0"),
)
command = partial(run_command, "stdc_seg")


def train_words(data, output, iters, *more):
    return ["--config", "quickstart", "--data", data, "--output", output, "--iters", iters, *SMALL, *more]


def train(data, output, iters, *more, **kwargs):
    return command("train.py", *train_words(data, output, iters, *more), **kwargs)
