"""One update, for train.py, static_train.py and measure.py: dynamic, `to_static`, or a static Program."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from common.cli import UserError, did_you_mean
from paddleseg_benchmark.zoo import zoo
from paddleseg_benchmark.zoo.batch_norm import refuse_single_value_batch_norm
from paddleseg_benchmark.zoo.config_check import optimizer_type
from paddleseg_benchmark.zoo.zoo import ZooNetwork

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import static
from paddleseg.cvlibs import SegBuilder

PRECISIONS = ("fp32", "o1_fp16", "o2_fp16", "bf16")
LAYOUTS = ("NCHW", "NHWC")
GRAPHS = ("dynamic", "to_static", "static")
# As PaddleSeg's train(): what it adds to Paddle's lists of operators for mixed precision, and its first loss scale.
_WHITE_LIST = {"elementwise_add", "batch_norm", "sync_batch_norm"}
_BLACK_LIST = {"bilinear_interp_v2"}
_FIRST_LOSS_SCALE = 1024.0


class StepResult(NamedTuple):
    """The outcome of a training step.

    Attributes:
        loss: Of this process's share of the batch, before the update.
        skipped: True if the update was skipped because an fp16 gradient was inf or NaN. The dynamic graph then updates
            nothing; in a static Program momentum and weight decay are still applied.
        scale: The loss scale after the step; None where nothing is scaled.
    """

    loss: float
    skipped: bool
    scale: float | None


class StepState(NamedTuple):
    """Everything of a stepper that an update changes besides the network.

    Attributes:
        moments: The optimizer's tensors as "<the network's own parameter name>.<moment>", float32; others of a static
            Program by their name alone.
        schedule: State of the learning rate's schedule.
        loss_scale: State of the loss scaler; None where nothing is scaled.
    """

    moments: dict[str, np.ndarray]
    schedule: dict[str, Any]
    loss_scale: dict[str, Any] | None


def unsupported(device: str, precision: str, layout: str, graph: str, name: str) -> str | None:
    """Why a row of the zoo cannot be trained in this way on a device ("cpu" or "gpu"); None if it can.

    Raises:
        UserError: One of the names is unknown.
    """
    for name_given, known in ((precision, PRECISIONS), (layout, LAYOUTS), (graph, GRAPHS)):
        if name_given not in known:
            raise UserError(f"'{name_given}' is unknown: {did_you_mean(name_given, list(known))}")
    network = zoo.read_config(zoo.CONFIG_DIR / zoo.row(name).config).model_cfg["type"]
    if precision != "fp32" and device != "gpu":
        return "not supported here: Paddle has no mixed precision on a CPU, auto_cast would change nothing"
    if layout == "NHWC" and zoo.nhwc_obstacle(network):
        return f"not supported: {zoo.nhwc_obstacle(network)}"
    if graph == "static" and precision == "o2_fp16":
        return "not built here: O2 in a static Program, whose float32 master weights start from no network's weights"
    if zoo.graph_obstacle(network, graph):
        return f"not supported: {zoo.graph_obstacle(network, graph)}"
    return None


class DynamicStep:
    """Training steps in the dynamic graph, whole or with network and losses turned into a graph by `to_static`.

    In a distributed run every process calls it with its share of the batch, and gradients are averaged.

    Args:
        zoo_network: The network, trained in place. Its config says optimizer and rate.
        precision: One of `PRECISIONS`: O1 and O2 are Paddle's levels of mixed precision, bf16 is O1 with bfloat16.
        graph: "dynamic" or "to_static".
        iters: Steps after which the rate has fallen to its end; None takes the config's.
        careful: Skip the update where the loss is NaN or infinite. Finding out waits for the GPU, so a measurement
            goes without. (Under fp16 the loss scaler does it, and without waiting.)
    """

    def __init__(
        self,
        zoo_network: ZooNetwork,
        precision: str = "fp32",
        graph: str = "dynamic",
        iters: int | None = None,
        careful: bool = False,
    ):
        self.zoo_network, self._careful = zoo_network, careful
        self.parameters = zoo_network.trainable_parameters()
        self.schedule, self._optimizer = build_optimizer(zoo_network, iters)
        self._precision = precision
        self._scaler = paddle.amp.GradScaler(init_loss_scaling=_FIRST_LOSS_SCALE) if "fp16" in precision else None
        if precision == "o2_fp16":
            _, self._optimizer = paddle.amp.decorate(
                zoo_network.network, self._optimizer, level="O2", save_dtype="float32"
            )
        self._compute_loss, self._is_checked = zoo_network, False
        if graph == "to_static":
            self._compute_loss, self._is_checked = paddle.jit.to_static(zoo_network, full_graph=True), True
        if dist.get_world_size() > 1:
            self._compute_loss = paddle.DataParallel(self._compute_loss)

    def run(self, images: np.ndarray | paddle.Tensor, labels: np.ndarray | paddle.Tensor) -> StepResult:
        """One update on images float32 (B, 3, H, W) and labels int64 (B, H, W), finished when it returns."""
        self.zoo_network.train()
        checking = contextlib.nullcontext() if self._is_checked else refuse_single_value_batch_norm(self.zoo_network)
        self._is_checked = True
        with auto_cast(self._precision), checking:
            loss = self._compute_loss(_as_tensor(images), _as_tensor(labels))
        if self._scaler is None:
            if self._careful and not math.isfinite(float(loss)):
                return StepResult(float(loss), False, None)
            loss.backward()
            self._optimizer.step()
            skipped, scale = False, None
        else:
            before = self._scale()
            self._scaler.scale(loss).backward()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            scale = self._scale()
            skipped = scale < before  # the scaler lowers it at every step that it leaves out, and only there
        self._optimizer.clear_grad()
        self.schedule.step()
        synchronize()
        return StepResult(float(loss), skipped, scale)

    def predict(self, images: np.ndarray | paddle.Tensor) -> np.ndarray:
        """Class ids uint8 (B, H, W) in evaluation mode, in the precision of the weights."""
        return predict(self.zoo_network, images, self._precision)

    def peak_gpu_memory_gib(self) -> float | None:
        """The most memory that Paddle has allocated on the GPU; None on a CPU."""
        return peak_gpu_memory_gib()

    def weights(self) -> dict[str, np.ndarray]:
        """The network's tensors, float32; where it holds float16 copies (O2), the optimizer's own float32 weights."""
        masters = self._optimizer.state_dict().get("master_weights", {})
        named = self.zoo_network.network.state_dict().items()
        return {name: _float32(masters.get(value.name, value)) for name, value in named}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the network's parameters by their own names."""
        return _shapes(self.zoo_network)

    def state(self) -> StepState:
        """The state of optimizer, schedule and loss scaler.

        Paddle names parameters by a counter of the process ("conv2d_7.w_0"); here they have the network's own names.
        """
        stored, moments = self._optimizer.state_dict(), {}
        for name, parameter in self.zoo_network.network.named_parameters():
            for key, value in stored.items():
                if key.startswith(f"{parameter.name}_"):
                    moments[f"{name}.{key.removeprefix(f'{parameter.name}_')}"] = _float32(value)
        scale = {name: _plain(value) for name, value in self._scaler.state_dict().items()} if self._scaler else None
        return StepState(moments, self.schedule.state_dict(), scale)

    def load_state(self, weights: dict[str, np.ndarray], state: StepState) -> None:
        """Brings optimizer, schedule and loss scaler to `state`; `weights` are those the network was filled with."""
        parameters = dict(self.zoo_network.network.named_parameters())
        stored: dict[str, Any] = {"LR_Scheduler": state.schedule}
        for name, value in state.moments.items():
            owner, _, moment = name.rpartition(".")
            stored[f"{parameters[owner].name}_{moment}"] = paddle.to_tensor(value)
        reduced = {name: p for name, p in parameters.items() if p.dtype != paddle.float32}
        if reduced:
            stored["master_weights"] = {p.name: paddle.to_tensor(weights[name]) for name, p in reduced.items()}
        self._optimizer.set_state_dict(stored)
        self.schedule.set_state_dict(state.schedule)
        if self._scaler is not None and state.loss_scale:
            scale = np.array([state.loss_scale["scale"]], np.float32)
            self._scaler.load_state_dict(state.loss_scale | {"scale": scale})

    def _scale(self) -> float:
        return float(self._scaler.state_dict()["scale"][0])


class StaticStep:
    """Training steps in a static Program, run by an Executor.

    The network is built twice: in the dynamic graph, which draws its first weights, and in the Program, which gets
    them. So both graphs start from the same weights. (paddleseg's own initialisation has no effect on a Program.)

    Args:
        build: Makes the network, with its losses.
        batch_size: Images of this process's share of a batch.
        size: (height, width) of the images.
        precision: One of `PRECISIONS`, but not O2.
        iters: See `DynamicStep`.
    """

    def __init__(
        self,
        build: Callable[[], ZooNetwork],
        batch_size: int,
        size: tuple[int, int],
        precision: str = "fp32",
        iters: int | None = None,
    ):
        self.zoo_network = build()
        self.parameters = self.zoo_network.trainable_parameters()
        self._program, startup, self._scope = static.Program(), static.Program(), static.Scope()
        self._place = paddle.framework._current_expected_place()
        self._last_scale = _FIRST_LOSS_SCALE if "fp16" in precision else None
        with self._static_mode(), static.program_guard(self._program, startup):
            images = static.data("images", [batch_size, 3, *size], "float32")
            labels = static.data("labels", [batch_size, *size], "int64")
            twin = build()
            twin.train()
            self.schedule, optimizer = build_optimizer(twin, iters)
            with refuse_single_value_batch_norm(twin):
                self._fetched = _add_update(twin, optimizer, images, labels, precision)
            self._names = {name: value.name for name, value in twin.network.state_dict().items()}
            self._executor = static.Executor(self._place)
            self._executor.run(startup)
        for name, value in self.zoo_network.network.state_dict().items():
            self._variable(name).set(value.numpy(), self._place)

    def run(self, images: np.ndarray | paddle.Tensor, labels: np.ndarray | paddle.Tensor) -> StepResult:
        """One update on images float32 (B, 3, H, W) and labels int64 (B, H, W), finished when it returns."""
        feed = {"images": _feedable(images), "labels": _feedable(labels)}
        with self._static_mode():
            loss, *scale = self._executor.run(self._program, feed, self._fetched)
        self.schedule.step()
        if not scale:
            return StepResult(float(loss), False, None)
        before, self._last_scale = self._last_scale, float(scale[0].reshape(-1)[0])
        return StepResult(float(loss), self._last_scale < before, self._last_scale)

    def predict(self, images: np.ndarray | paddle.Tensor) -> np.ndarray:
        """Class ids uint8 (B, H, W) in evaluation mode; `zoo_network` gets the weights as they stand."""
        self.update_zoo_network()
        return predict(self.zoo_network, images)

    def update_zoo_network(self) -> None:
        """Gives `zoo_network` the weights and statistics as they stand in the Program."""
        values = {name: paddle.to_tensor(np.array(self._variable(name))) for name in self._names}
        self.zoo_network.network.set_state_dict(values)

    def peak_gpu_memory_gib(self) -> float | None:
        """The most memory that Paddle has allocated on the GPU; None on a CPU."""
        return peak_gpu_memory_gib()

    def weights(self) -> dict[str, np.ndarray]:
        """The network's tensors as they stand in the Program, float32; `zoo_network` gets them too."""
        self.update_zoo_network()
        return {name: _float32(value) for name, value in self.zoo_network.network.state_dict().items()}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the network's parameters by their own names."""
        return _shapes(self.zoo_network)

    def state(self) -> StepState:
        """The state of the Program besides the network, and of the schedule."""
        return StepState(
            {name: np.array(self._tensor(v)) for name, v in self._others()}, self.schedule.state_dict(), None
        )

    def load_state(self, weights: dict[str, np.ndarray], state: StepState) -> None:
        """Brings the Program and the schedule to `state`, its network to `weights`."""
        for name, value in weights.items():
            self._variable(name).set(value, self._place)
        for name, variable in self._others():
            if name not in state.moments:
                raise UserError(f"the checkpoint has no '{name}' for this Program: resume with the settings of its run")
            self._tensor(variable).set(state.moments[name], self._place)
        self.schedule.set_state_dict(state.schedule)
        if self._last_scale is not None:
            scales = [value for name, value in state.moments.items() if "loss_scaling" in name]
            self._last_scale = float(scales[0].reshape(-1)[0]) if scales else self._last_scale

    def _others(self) -> list[tuple[str, str]]:
        """Persistent variables that are not the network's: (name in a checkpoint, name in the Program)."""
        owners = {variable: name for name, variable in self._names.items()}
        pairs = []
        for variable in sorted(v.name for v in self._program.list_vars() if v.persistable):
            owner = next((o for o in owners if variable.startswith(f"{o}_")), None)
            if owner is not None:
                pairs.append((f"{owners[owner]}.{variable.removeprefix(f'{owner}_')}", variable))
            elif variable not in owners and not variable.startswith("learning_rate"):
                pairs.append((variable.replace(".", "_"), variable))
        return pairs

    @contextlib.contextmanager
    def _static_mode(self) -> Iterator[None]:
        paddle.enable_static()
        try:
            with static.scope_guard(self._scope):
                yield
        finally:
            paddle.disable_static()

    def _variable(self, name: str) -> Any:
        return self._tensor(self._names[name])

    def _tensor(self, variable: str) -> Any:
        return self._scope.find_var(variable).get_tensor()


def auto_cast(precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision as `precision` says, for the operators within it."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(
        custom_white_list=_WHITE_LIST,
        custom_black_list=_BLACK_LIST,
        level="O2" if precision == "o2_fp16" else "O1",
        dtype="bfloat16" if precision == "bf16" else "float16",
    )


def build_optimizer(
    zoo_network: ZooNetwork, iters: int | None
) -> tuple[paddle.optimizer.lr.LRScheduler, paddle.optimizer.Optimizer]:
    """Schedule and optimizer as the network's config has them, the schedule ending after `iters` steps.

    Raises:
        UserError: They cannot be made as the config says.
    """
    config = copy.deepcopy(zoo_network.config)
    config.dic["iters"] = iters or config.iters
    builder = SegBuilder(config)
    section = "lr_scheduler"
    try:
        schedule = builder.lr_scheduler
        section = "optimizer"
        settings = config.optimizer_cfg
        optimizer = builder.build_component(settings | {"type": optimizer_type(settings)})
        return schedule, optimizer(zoo_network.network, schedule)
    except Exception as error:  # whatever paddle and paddleseg raise at values that they cannot use
        raise UserError(f"{config.source}: '{section}': {zoo.reason_of(error)}: correct it") from error


@paddle.no_grad()
def predict(zoo_network: ZooNetwork, images: np.ndarray | paddle.Tensor, precision: str = "fp32") -> np.ndarray:
    """Class ids of images (B, 3, H, W) in evaluation mode -> uint8 (B, H, W)."""
    zoo_network.eval()
    with auto_cast(precision if precision == "o2_fp16" else "fp32"):  # O2 has float16 weights, the others float32
        logits = zoo_network.predict(_as_tensor(images))
    return logits.argmax(axis=1).astype("uint8").numpy()


def peak_gpu_memory_gib() -> float | None:
    """The most memory that Paddle has allocated on the GPU; None on a CPU."""
    if not paddle.device.get_device().startswith("gpu"):
        return None
    return paddle.device.cuda.max_memory_allocated() / 2**30


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if paddle.device.get_device().startswith("gpu"):
        paddle.device.cuda.synchronize()


def _shapes(zoo_network: ZooNetwork) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in zoo_network.network.named_parameters()}


def _float32(value: paddle.Tensor) -> np.ndarray:
    return np.ascontiguousarray(value.astype("float32").numpy())


def _plain(value: Any) -> Any:
    return np.asarray(value).reshape(-1)[0].item() if isinstance(value, np.ndarray | paddle.Tensor) else value


def _as_tensor(values: np.ndarray | paddle.Tensor) -> paddle.Tensor:
    return values if isinstance(values, paddle.Tensor) else paddle.to_tensor(values)


def _feedable(values: np.ndarray | paddle.Tensor) -> Any:
    return values.value().get_tensor() if isinstance(values, paddle.Tensor) else values


def _add_update(
    twin: ZooNetwork, optimizer: paddle.optimizer.Optimizer, images: Any, labels: Any, precision: str
) -> list[Any]:
    """Adds loss, gradients and update to the Program under construction. Returns the values to fetch."""
    if dist.get_world_size() > 1:
        _average_gradients(optimizer)
    if precision == "fp32":
        loss = twin(images, labels)
        optimizer.minimize(loss)
        return [loss]
    dtype = "bfloat16" if precision == "bf16" else "float16"
    _, optimizer = paddle.amp.decorate(twin.network, optimizer, level="O1", dtype=dtype)
    with auto_cast(precision):
        loss = twin(images, labels)
    if precision == "bf16":
        scaler = paddle.amp.GradScaler(init_loss_scaling=1.0, use_dynamic_loss_scaling=False)
    else:
        scaler = paddle.amp.GradScaler(init_loss_scaling=_FIRST_LOSS_SCALE)
    scaler.minimize(optimizer, scaler.scale(loss))
    return [loss] if precision == "bf16" else [loss, optimizer.get_loss_scaling()]


def _average_gradients(optimizer: paddle.optimizer.Optimizer) -> None:
    """Lets `optimizer.backward` add the averaging of gradients over all processes to the Program."""
    backward = optimizer.backward

    def averaged(*args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        params_grads = backward(*args, **kwargs)
        for _, grad in params_grads:
            dist.all_reduce(grad)
        return [(param, grad / dist.get_world_size()) for param, grad in params_grads]

    optimizer.backward = averaged
