"""Configs of PaddleSeg with mistakes: each is one line that names the file and the key."""

from common.cli import UserError
from paddleseg_benchmark import updates
from paddleseg_benchmark.zoo import zoo

import pytest


def written(path, change, base="deeplabv3p.yml"):
    path.write_text(f"_base_: {zoo.CONFIG_DIR / base}\n{change}\n")
    return path


def built(path):
    """What train.py makes of a config before it begins a run."""
    network = zoo.build_from_config(zoo.read_config(path))
    return updates.build_optimizer(network, 10)


READING = {
    "batch_sise: 8": "unknown key 'batch_sise': did you mean 'batch_size'",
    "test_config: {is_slide: true}": "'test_config' has no effect here (evaluation here is of whole images",
    "batch_size: two": "'batch_size' must be a whole number from 1, not 'two'",
    "batch_size: 0": "'batch_size' must be a whole number from 1, not 0",
    "batch_size: true": "'batch_size' must be a whole number from 1, not True",
    "iters: -1": "'iters' must be a whole number from 1, not -1",
    "iters: x": "'iters' must be a whole number from 1, not 'x'",
    "iters: 1.5": "'iters' must be a whole number from 1, not 1.5",
    "iters: 100000000000000000000": "'iters' is 100000000000000000000: give a finite number",
    "optimizer: 7": "'optimizer' must be a section of keys, not 7",
    "optimizer: {momentun: 0.9}": "unknown key 'optimizer.momentun': did you mean 'momentum'",
    "optimizer: {momentum: high}": "'optimizer.momentum' must be a number, not 'high'",
    "optimizer: {type: SDG}": "'optimizer.type' is 'SDG': did you mean 'SGD'",
    "optimizer: {weight_decay: .nan}": "'optimizer.weight_decay' is nan: give a finite number",
    "lr_scheduler: {learning_rate: high}": "'lr_scheduler.learning_rate' must be a number, not 'high'",
    "lr_scheduler: {learning_rate: 0}": "'lr_scheduler.learning_rate' is 0: give a number above 0",
    "lr_scheduler: {learning_rate: .inf}": "'lr_scheduler.learning_rate' is inf",
    "lr_scheduler: {typo: 1}": "unknown key 'lr_scheduler.typo'",
    "lr_scheduler: {type: Polynomial}": "did you mean 'PolynomialDecay'",
    "lr_scheduler: {warmup_iters: 10}": "key 'lr_scheduler.warmup_start_lr' is missing",
    "loss: null": "'loss' must be a section of keys, not None",
    "loss: {coef: []}": "'loss.coef' must be a list of one or more",
    "loss: {coef: [one]}": "'loss.coef[0]' must be a number, not 'one'",
    "loss: {types: [{type: CrossEntropy}]}": "'loss.types[0].type' is 'CrossEntropy': did you mean 'CrossEntropyLoss'",
    "loss: {types: [{type: CrossEntropyLoss, ignore_index: 0}]}": "'loss.types[0].ignore_index' is 0",
    "loss: {coef: [1, 1, 1], types: [{type: CrossEntropyLoss}, {type: CrossEntropyLoss}]}": "length of types",
    "model: {type: 5}": "'model.type' is 5: valid: ",
    "model: {type: DeepLabV4}": "'model.type' is 'DeepLabV4': did you mean 'DeepLabV3'",
    "model: {aspp_ratio: [1]}": "unknown key 'model.aspp_ratio': did you mean 'aspp_ratios'",
    "model: {backbone: 3}": "'model.backbone' must be a section with a type, not 3",
    "model: {backbone: {type: ResNet}}": "'model.backbone.type' is 'ResNet'",
    "model: {align_corners: 1}": "'model.align_corners' must be true or false, not 1",
    "train_dataset: {dataset_root: null}": "'train_dataset.dataset_root' must be text, not None",
    "train_dataset: {transforms: none}": "'train_dataset.transforms' must be a list",
    "train_dataset: {transforms: [{type: RandomPaddingCrop, crop_size: 64}]}": "crop_size' must be a list",
    "train_dataset: {transforms: [{type: RandomPadCrop}]}": "transforms[0].type' is 'RandomPadCrop': did you mean",
    "_base_: [mine.yml]": "'_base_' mine.yml is based on this file itself",
    "_base_: none.yml": "'_base_' 'none.yml': there is no such file",
    "_base_: 7": "'_base_' must be the name of a file",
    "model: [": "not valid YAML",
}


@pytest.mark.parametrize("change", READING)
def test_a_mistake_is_found_when_the_config_is_read(tmp_path, change):
    path = tmp_path / "mine.yml"
    written(path, change)
    if change.startswith("_base_"):
        path.write_text(change)
    with pytest.raises(UserError) as caught:
        zoo.read_config(path)
    message = str(caught.value)
    assert READING[change] in message and str(path) in message and "\n" not in message


BUILDING = {
    "model: {backbone: {pretrained: 'https://host/resnet50.pdparams'}}": "download it yourself",
    "model: {backbone: {pretrained: none.pdparams}}": "'model': ",
    "model: {backbone: {layer: 50}}": "'model': ",
    "loss: {types: [{type: RelaxBoundaryLoss, border: -1, upper_bound: 2}, {type: MixedLoss, losses: [], coef: 1}], "
    "coef: [1, 1]}": "'loss': ",
    "optimizer: {weight_decay: 1}": "'optimizer': `weight_decay` must be a float",
    "optimizer: {custom_cfg: [{lr_mult: 2}]}": "'optimizer': ",
    "optimizer: {grad_clip_cfg: {name: Clip}}": "'optimizer': ",
    "lr_scheduler: {power: -1, decay_steps: 0}": "'lr_scheduler': ",
}


@pytest.mark.parametrize("change", BUILDING)
def test_what_a_constructor_refuses_is_one_line(tmp_path, change):
    path = written(tmp_path / "mine.yml", change)
    with pytest.raises(UserError) as caught:
        built(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and BUILDING[change] in message and "\n" not in message


def test_more_losses_than_outputs_are_refused(tmp_path):
    path = written(tmp_path / "mine.yml", "loss: {coef: [1, 1]}", base="shufflenetv2.yml")
    network = zoo.build_from_config(zoo.read_config(path))
    images, labels = zoo.paddle.zeros([2, 3, 32, 32]), zoo.paddle.zeros([2, 32, 32], "int64")
    with pytest.raises(
        UserError, match=r"mine.yml: 'loss.coef' has 2 values, the network 1 outputs: give one for each"
    ):
        network(images, labels)


@pytest.mark.parametrize(
    "change",
    [
        "optimizer: {type: sgd}",
        "optimizer: {_inherited_: false, type: adam, beta1: 0.8}",
        "lr_scheduler: {warmup_iters: 3, warmup_start_lr: 1.0e-5}",
        "lr_scheduler: {_inherited_: false, type: PiecewiseDecay, boundaries: [2], values: [0.1, 0.01]}",
        "loss: {types: [{type: MixedLoss, losses: [{type: CrossEntropyLoss}, {type: DiceLoss}], coef: [1, 1]}]}",
    ],
)
def test_what_paddleseg_takes_is_taken(tmp_path, change):
    schedule, _ = built(written(tmp_path / "mine.yml", change, base="shufflenetv2.yml"))
    assert 0 < schedule() < 1


def test_the_rate_of_paddleseg_2_0_names_its_successor(tmp_path):
    path = tmp_path / "old.yml"
    path.write_text(f"_base_: {zoo.CONFIG_DIR}/fastscnn.yml\nlearning_rate: {{value: 0.01}}\n")
    with pytest.raises(UserError, match=r"old.yml: 'learning_rate' .* successor is lr_scheduler"):
        zoo.read_config(path)
