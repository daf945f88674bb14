"""Trainings of this project that are small."""

from functools import partial

from semsegpaddle_glore.runs import plan_run
from semsegpaddle_glore.train import Trainer, parse_args

import testkit
from testkit import CLASSES, REPOSITORY, run_command

PROJECT = REPOSITORY / "projects" / "semsegpaddle_glore"
SMALL = (
    *("model.name=glore", "model.backbone=resnet18", "model.output_stride=16", "data.dataset=custom"),
    *("augment.base_size=72", "augment.crop_size=[65, 65]"),
    *("optimizer.warmup_iters=2", "train.batch_size=2", "train.log_every=1"),
)
command = partial(run_command, "semsegpaddle_glore")


def write_data(root, count=6, size=(72, 80), names=CLASSES):
    """The data of all projects in large squares, and word vectors of its classes for GINet."""
    testkit.write_data(root, count, size, names, block=24)
    (root / "vectors.txt").write_text("one 1 0 0 0\ntwo 0 1 0 0\nthree 0 0 1 0.5\nfour 1 1 0 0\nfive 0 1 1 0\n")
    return root


def train_words(data, output, iters, *more):
    vectors = f"model.word_embeddings={data}/vectors.txt"
    return ["--config", "quickstart", "--data", data, "--output", output, "--iters", iters, vectors, *SMALL, *more]


def train(data, output, iters, *more, **kwargs):
    return command("train.py", *train_words(data, output, iters, *more), **kwargs)


def train_here(data, output, iters, *more):
    """The same in this process. Returns the run folder."""
    plan = plan_run(parse_args("test", [str(word) for word in train_words(data, output, iters, *more)]))
    Trainer(plan).run()
    return plan.folder
