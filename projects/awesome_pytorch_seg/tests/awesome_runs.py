"""Trainings of this project that are small."""

from functools import partial

from awesome_pytorch_seg.train import main as train_main

import yaml
from testkit import REPOSITORY, run_command, run_here

PROJECT = REPOSITORY / "projects" / "awesome_pytorch_seg"
STAGES = (
    "augment.stages=[{share: 0.4, scales: [0.5, 0.8], crop_size: [32, 48]}, "
    "{share: 0.6, scales: [0.75, 1.25], crop_size: [64, 64]}]"
)
SMALL = (
    *("data.dataset=custom", STAGES, "loss.class_weights=[1.0, 2.0, 3.0]", "schedule.warmup_iters=1"),
    *("train.batch_size=2", "train.log_every=1", "train.num_workers=0", "optimizer.ema_decay=0.9"),
)
command = partial(run_command, "awesome_pytorch_seg")


def train_words(data, output, iters, *more):
    words = [f"train.iters={iters}", *SMALL, *more]
    return ["--config", "enet_camvid", "--data", data, "--output", output, *words]


def train(data, output, iters, *more):
    return run_here(train_main, *train_words(data, output, iters, *more))


def without_new_keys(config_text):
    """A config as the first version wrote it."""
    config = yaml.safe_load(config_text)
    new = {
        "model": ("backbone_weights", "output_stride", "variant", "finetune"),
        "augment": ("base_size", "blur_probability"),
        "train": ("accumulate", "encoder_iters", "compile"),
        "eval": ("window", "stride", "centre_crop"),
    }
    for section, keys in new.items():
        for key in keys:
            del config[section][key]
    return yaml.safe_dump(config, sort_keys=False)
