"""What a run leaves while it trains: the tables of common/run_log.py, the curve, and TensorBoard's files if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awesome_pytorch_seg import processes
from awesome_pytorch_seg.runs import RunPlan
from common.config.typed import config_to_text
from common.run_log import Evaluation, RunLog
from common.runs.environment import RunEnvironment
from common.samples.list_dataset import ListDataset
from common.weights.package import weight_file

import torch


class TrainingLog:
    """The files of one run folder; one process of a run has it.

    Args:
        plan: The run.
        loss_names: Parts of the loss.
        class_names: By train id.
        step: Where the run starts or is resumed; later rows are dropped.
        is_evaluated: Whether the evaluation of this step has been made; else its rows are dropped, too.
        env: For env.json.
        tensorboard: Whether TensorBoard's files are written too, into the folder `tensorboard`.
    """

    def __init__(
        self,
        plan: RunPlan,
        loss_names: Sequence[str],
        class_names: tuple[str, ...],
        step: int,
        is_evaluated: bool,
        env: RunEnvironment,
        tensorboard: bool,
    ):
        self.plan, self.class_names = plan, class_names
        columns = ("step", "epoch", "loss", *loss_names, "learning_rate", "grad_norm", "step_time_s", "data_time_s")
        self.log = RunLog(plan.folder, columns)
        self.log.trim(step, None if is_evaluated else step - 1)
        self.log.start(config_to_text(plan.config), env)
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and few ask for it

            self.board = SummaryWriter(str(plan.folder / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, epoch: float, row: Mapping[str, float], step_time_s: float, data_time_s: float) -> None:
        """Writes what an update reported."""
        times = {"step_time_s": step_time_s, "data_time_s": data_time_s}
        values = {name: f"{value:.9g}" for name, value in row.items()}
        shown = {name: f"{value:.4f}" for name, value in times.items()}
        self.log.log_train({"step": step, "epoch": f"{epoch:.3f}", **values, **shown})
        self._to_board("train", {**row, **times}, step)

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Writes a validation and draws the curve anew."""
        config = self.plan.config
        self.log.log_eval(step, "val", str(config.eval), result, self.class_names)
        self.log.draw_curve(f"{self.plan.config_name}, {config.data.dataset} val, {config.eval}")
        self._to_board("val", {"miou_percent": 100 * result.matrix.mean_iou(), "loss": result.loss}, step)

    def close(self) -> None:
        """Ends the run's files."""
        if self.board is not None:
            self.board.close()

    def _to_board(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)


def describe_run(
    plan: RunPlan,
    train_set: ListDataset,
    val_set: ListDataset,
    device: torch.device,
    parameters: int,
    step: int,
    seen: Mapping[str, Any],
) -> RunEnvironment:
    """What env.json says of a run that starts or is resumed at `step`; `seen` is its data, see `data_seen`."""
    config, log, resumed = plan.config, RunLog(plan.folder), plan.checkpoint is not None
    weights = None if resumed else weight_file(config.model.backbone_weights, config.model.backbone)
    return RunEnvironment.here(
        ("torch", "torchvision", "timm", "numpy", "opencv-python-headless"),
        project="awesome_pytorch_seg",
        config=plan.config_name,
        seed=config.train.seed,
        scope=config.scope,
        dataset=config.data.dataset,
        train_images=len(train_set),
        val_images=len(val_set),
        class_names=train_set.labels.class_names,
        processes=processes.world_size(),
        device=device.type,
        torch_threads=torch.get_num_threads(),
        trainable_parameters=parameters,
        **log.start_digests(resumed, backbone_weights=weights, finetune=config.model.finetune),
        **seen,
        resumed_at_step=step,
    )
