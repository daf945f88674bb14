import dataclasses

from common.cli import UserError
from common.config.typed import config_from_text, config_to_text
from common.labels import label_set
from semsegpaddle_glore import original_keys
from semsegpaddle_glore.config import (
    CONFIG_DIR,
    Config,
    EvalProtocol,
    multi_scales,
    options_of_file,
    parse_overrides,
    read_config,
    take_options,
    word_vectors_file,
)
from semsegpaddle_glore.models.backbones import backbone_names, build_backbone

import pytest

NAMES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
ORIGINAL_NAMES = {f"{head}_res101_cityscapes" for head in ("pspnet", "deeplabv3", "glore")}
ORIGINAL_NAMES |= {f"{head}_res101_pascalcontext" for head in ("pspnet", "deeplabv3", "glore")}
ORIGINAL_NAMES |= {"pspnet_res101_ade", "pspnet_hrnet_cityscapes"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid_and_survives_a_round_trip(name):
    config = read_config(name)
    assert config_from_text(Config, config_to_text(config), "text") == config
    assert config.model.backbone in backbone_names()
    if config.data.dataset != "toy":
        label_set(config.data.dataset)


def test_the_names_of_the_original_are_kept_and_the_others_are_there():
    assert set(NAMES) >= ORIGINAL_NAMES
    assert {f"ginet_res101_{data}" for data in ("cityscapes", "pascalcontext", "ade")} <= set(NAMES)
    families = {read_config(name).model.backbone.split("_")[0].rstrip("0123456789") for name in NAMES}
    assert families == {"resnet", "resnext", "hrnet", "xception", "efficientnet"}


SMALLEST = {
    "resnet101": "resnet50",
    "resnext101_32x8d": "resnext50_32x4d",
    "hrnet_w48": "hrnet_w18",
    "efficientnet_b4": "efficientnet_b0",
}


@pytest.mark.parametrize("name", NAMES)
def test_output_stride_and_multi_grid_of_the_configs_are_possible(name):
    # A smaller network of the same family is built, for speed. Each setting is tried once: many configs share one.
    model = read_config(name).model
    first = next(n for n in NAMES if _settings(read_config(n).model) == _settings(model))
    if name == first:
        backbone = build_backbone(*_settings(model))
        assert model.output_stride in (None, backbone.output_stride)


def _settings(model):
    return SMALLEST.get(model.backbone, model.backbone), model.output_stride, model.multi_grid


def test_the_original_recipe_of_pspnet_on_cityscapes():
    config = read_config("pspnet_res101_cityscapes")
    assert (config.model.name, config.model.backbone, config.model.output_stride) == ("pspnet", "resnet101", 8)
    assert config.model.multi_grid == (1, 2, 4)
    assert (config.model.first_block_dilated, config.model.head_norm_momentum) == (True, 0.99)
    augment, optimizer = config.augment, config.optimizer
    assert (augment.base_size, augment.scale_min, augment.scale_max, augment.crop_size) == (1024, 0.5, 2.0, (769, 769))
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.power) == (0.01, 4e-5, 0.9)
    assert (optimizer.warmup_iters, optimizer.warmup, optimizer.head_lr_factor) == (0, "linear", 1.0)
    # src/models/libs/model_libs.py there: `conv` loses the exemption of the classifiers, `bn` exempts the heads' norms.
    assert (optimizer.decay_norm_and_bias, optimizer.decay_classifier, optimizer.decay_head_norm) == (True, True, False)
    assert (config.train.iters, config.train.batch_size, config.loss.aux_weight) == (80 * 2975 // 8, 8, 0.4)
    assert (config.eval.long_side, config.eval.window) == (2048, (769, 769))


def test_the_quickstarts_differ_in_the_head_alone():
    first = read_config("quickstart")
    for head in ("deeplabv3", "glore", "ginet"):
        assert read_config(f"quickstart_{head}") == read_config("quickstart.yaml", [f"model.name={head}"])
        assert dataclasses.replace(read_config(f"quickstart_{head}"), model=first.model) == first


def test_overrides_in_both_spellings():
    words = ["optimizer.learning_rate=0.02", "TRAIN.ITERS", "77", "SOLVER.POWER", "0.5", "solver.momentum=0.8"]
    expected = ["optimizer.learning_rate=0.02", "train.iters=77", "optimizer.power=0.5", "optimizer.momentum=0.8"]
    assert parse_overrides(words) == expected
    assert parse_overrides(expected) == expected
    config = read_config("quickstart", words)
    assert (config.optimizer.learning_rate, config.optimizer.power, config.optimizer.momentum) == (0.02, 0.5, 0.8)
    assert config.train.iters == 77


def test_a_value_may_hold_an_equals_sign():
    assert parse_overrides(["DATASET.DATA_DIR", "a=b"]) == ["data.root=a=b"]
    assert parse_overrides(["data.root=a=b"]) == ["data.root=a=b"]


EXAMPLES = {
    "TRAIN_BATCH_SIZE": ("16", "train.batch_size", 16),
    "MEAN": ("[0.5, 0.5, 0.5]", "data.mean", (0.5, 0.5, 0.5)),
    "STD": ("[0.5, 0.5, 0.5]", "data.std", (0.5, 0.5, 0.5)),
    "DATALOADER.NUM_WORKERS": ("3", "train.num_workers", 3),
    "DATASET.DATASET_NAME": ("pascalContext", "data.dataset", "pascal_context"),
    "DATASET.DATA_DIR": ("./data/x/", "data.root", "./data/x/"),
    "DATASET.DATA_ROOT": ("./data/y", "data.root", "./data/y"),
    "DATASET.TRAIN_FILE_LIST": ("./data/x/train.lst", "data.train_list", "./data/x/train.lst"),
    "DATASET.VAL_FILE_LIST": ("val.lst", "data.val_list", "val.lst"),
    "DATAAUG.BASE_SIZE": ("520", "augment.base_size", 520),
    "DATAAUG.CROP_SIZE": ("520", "augment.crop_size", (520, 520)),
    "DATAAUG.RAND_SCALE_MIN": ("0.75", "augment.scale_min", 0.75),
    "DATAAUG.RAND_SCALE_MAX": ("1.5", "augment.scale_max", 1.5),
    "DATAAUG.EXTRA": ("False", "augment.blur_probability", 0.0),
    "MODEL.MODEL_NAME": ("glore", "model.name", "glore"),
    "MODEL.BACKBONE_OUTPUT_STRIDE": ("16", "model.output_stride", 16),
    "MODEL.BACKBONE_MULTI_GRID": ("False", "model.multi_grid", None),
    "MODEL.BN_MOMENTUM": ("0.95", "model.head_norm_momentum", 0.95),
    "MODEL.MULTI_LOSS_WEIGHT": ("[1.0, 0.2]", "loss.aux_weight", 0.2),
    "TRAIN.PRETRAINED_MODEL_DIR": ("./r", "model.backbone_weights", "./r"),
    "TRAIN.PRETRAINED_MODEL_FILE": ("r.pdparams", "model.backbone_weights", "r.pdparams"),
    "SOLVER.LR": ("1e-3", "optimizer.learning_rate", 1e-3),
    "SOLVER.OPTIMIZER": ("sgd", "optimizer.name", "sgd"),
    "SOLVER.MOMENTUM": ("0.8", "optimizer.momentum", 0.8),
    "SOLVER.POWER": ("1.0", "optimizer.power", 1.0),
    "SOLVER.WEIGHT_DECAY": ("0.0001", "optimizer.weight_decay", 1e-4),
    "SOLVER.NUM_EPOCHS": ("40", "train.iters", 14875),  # 40 x 2975 / 8
    "TEST.BASE_SIZE": ("1024", "eval.long_side", 1024),
    "TEST.CROP_SIZE": ("713", "eval.window", (713, 713)),
    "TEST.FLIP": ("True", "eval.flip", True),
}


@pytest.mark.parametrize("key", original_keys.RENAMED)
def test_every_key_of_the_original_reaches_its_place(key):
    value, ours, expected = EXAMPLES[key]
    before, after = (read_config("pspnet_res101_cityscapes", words) for words in ([], [key, value]))
    section, name = ours.split(".")
    changed = dataclasses.replace(getattr(before, section), **{name: expected})
    assert after == dataclasses.replace(before, **{section: changed})


@pytest.mark.parametrize("key", original_keys.INSTEAD)
def test_keys_without_counterpart_say_what_to_write(key):
    idle, _ = original_keys.INSTEAD[key]
    for value in idle or ("17",):
        assert parse_overrides([key.lower(), value]) == []
    if idle is not None:
        with pytest.raises(UserError, match=f"^{key} 17 is not known here: "):
            parse_overrides([key.lower(), "17"])


def test_the_options_among_the_originals_keys():
    words = ["SOLVER.LR", "0.1", "TEST.TEST_MODEL", "a/best", "train.model_save_dir=out", "eval.flip=true"]
    options, others = take_options(words)
    assert options == {"weights": "a/best", "output": "out"}
    assert others == ["SOLVER.LR", "0.1", "eval.flip=true"]
    assert take_options(["eval.flip=true", "TEST.TEST_MODEL"]) == ({}, ["eval.flip=true", "TEST.TEST_MODEL"])
    with pytest.raises(UserError, match="TEST.TEST_MODEL is an option .* --weights x"):
        parse_overrides(["TEST.TEST_MODEL", "x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.LRR", "1"], "'SOLVER.LRR': unknown key: did you mean 'SOLVER.LR'"),
        (["optimizer.learning_rat=1"], "did you mean 'optimizer.learning_rate'"),
        (["solver.lr_polic=1"], "sections augment, data, eval, loss, model, optimizer, train"),
        (["FOO.BAR", "1"], "sections augment, data"),
        (["SOLVER.LR"], "no value: write SOLVER.LR VALUE"),
        (["MODEL.MULTI_LOSS_WEIGHT", "[0.5, 0.4]"], r"is \[1.0\] or \[1.0, AUX\]"),
        (["DATAAUG.EXTRA", "maybe"], "DATAAUG.EXTRA is True or False"),
        (["SOLVER.OPTIMIZER", "adam"], "'optimizer.name' is 'adam'.*adamw"),
        (["train.batch_size=6", "train.accumulate=4"], "accumulate must be a divisor of batch_size 6"),
        (["augment.crop_size=[64, 65]"], "crop_size must be at least 65"),
        (["augment.scale_min=2.5"], "scale_min must be positive and at most scale_max"),
        (["eval.window=[769]"], "list of 2 values"),
        (["eval.stride_fraction=0"], r"stride_fraction must be in \(0, 1\]"),
        (["model.name=ginet"], "word_embeddings is missing: ginet needs"),
        (["train.epochs=0"], "train.epochs must be a whole number"),
        (["train.epochs=2", "data.train_list=trainval.txt"], "trainval.txt is not under .*its length is not known"),
        (["train.iters=5", "optimizer.warmup_iters=5", "optimizer.warmup_start_lr=0.001"], "warmup_iters must be less"),
        (
            ["optimizer.warmup=exponential", "optimizer.warmup_iters=5", "optimizer.warmup_start_lr=0.1"],
            r"warmup_start_lr must be in \(0, learning",
        ),
        (["train.amp=O3"], "'train.amp' is 'O3'"),
        (["MEAN", "[123.675, 116.28, 103.53]"], "scaled to 0..1: divide values of 0..255 by 255"),
        (["data.std=[58.4, 57.1, 57.4]"], "scaled to 0..1: divide values of 0..255 by 255"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UserError, match=message):
        read_config("pspnet_res101_cityscapes", words)


def test_a_missing_config_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'pspnet_res101_cityscapes'"):
        read_config("pspnet_res101_cityscape.yaml")


def test_the_originals_path_works_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("./configs/pspnet_res101_cityscapes.yaml") == read_config("pspnet_res101_cityscapes")


def test_epochs_are_rounded_up_to_whole_batches():
    assert read_config("quickstart", ["SOLVER.NUM_EPOCHS", "3", "train.batch_size=7"]).train.iters == 86  # 600 / 7
    assert read_config("pspnet_res101_ade", ["SOLVER.NUM_EPOCHS", "120"]).train.iters == 303150


def test_multi_scales_of_the_original():
    assert multi_scales("cityscapes") == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
    assert multi_scales("pascal_context") == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_protocols_have_names():
    protocol = EvalProtocol(long_side=2048, scales=(1.0,), flip=False, window=(769, 769), stride_fraction=1 / 3)
    assert (protocol.short_name, str(protocol)) == (
        "long2048_slide769",
        "long side 2048, ss, windows 769x769 stride 0.333",
    )
    protocol = EvalProtocol(long_side=None, scales=(0.5, 1.0), flip=True, window=(97, 129), stride_fraction=2 / 3)
    assert (protocol.short_name, str(protocol)) == (
        "slide97x129_ms_flip",
        "ms 0.5/1, flip, windows 97x129 stride 0.667",
    )
    protocol = EvalProtocol(long_side=None, scales=(1.0,), flip=False, window=None, stride_fraction=1.0)
    assert (protocol.short_name, str(protocol)) == ("whole", "ss, whole image")


def test_word_vectors_are_found_here_or_beside_the_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vectors.txt").write_text("road 1 2\n")
    model = read_config("quickstart").model
    assert word_vectors_file(dataclasses.replace(model, word_embeddings="vectors.txt")).read_text() == "road 1 2\n"
    beside = next(CONFIG_DIR.glob("*.yaml")).name
    assert word_vectors_file(dataclasses.replace(model, word_embeddings=beside)) == CONFIG_DIR / beside
    with pytest.raises(UserError, match="no word vectors nowhere.txt"):
        word_vectors_file(dataclasses.replace(model, word_embeddings="nowhere.txt"))


@pytest.mark.parametrize(
    ("words", "backbone"),
    [
        (["MODEL.BACKBONE_LAYERS", "50", "MODEL.BACKBONE", "resnet"], "resnet50"),
        (["MODEL.BACKBONE", "resnet", "MODEL.BACKBONE_LAYERS", "50"], "resnet50"),
        (["MODEL.BACKBONE_LAYERS", "18"], "resnet18"),
        (["MODEL.BACKBONE", "hrnet"], "hrnet_w48"),
        (["MODEL.BACKBONE", "xception_65"], "xception65"),
        (["MODEL.BACKBONE", "hrnet_w18"], "hrnet_w18"),
    ],
)
def test_the_originals_backbone_keys_in_any_order(words, backbone):
    model = read_config("pspnet_res101_cityscapes", words).model
    assert (model.backbone, model.first_block_dilated) == (backbone, backbone.startswith("resnet"))


def test_warmup_steps_count_only_with_warmup_as_in_the_original(capsys):
    def warmup(*words):
        optimizer = read_config("pspnet_res101_cityscapes", list(words)).optimizer
        return optimizer.warmup, optimizer.warmup_iters

    assert warmup("SOLVER.LR_WARMUP_STEPS", "500") == ("linear", 0)
    assert "no effect without SOLVER.LR_WARMUP True" in capsys.readouterr().err
    assert warmup("SOLVER.LR_WARMUP_STEPS", "500", "SOLVER.LR_WARMUP", "True") == ("linear", 500)
    assert warmup("SOLVER.LR_WARMUP", "True") == ("linear", 2000)
    assert warmup("SOLVER.LR_WARMUP", "False", "SOLVER.LR_WARMUP_STEPS", "500") == ("linear", 0)


def test_epochs_are_those_of_the_list(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"{i}.png {i}.png\n" for i in range(12)) + "\n")
    words = ["SOLVER.NUM_EPOCHS", "1", "TRAIN_BATCH_SIZE", "2"]
    assert read_config("pspnet_res101_cityscapes", [*words, f"data.root={tmp_path}"]).train.iters == 6
    assert read_config("pspnet_res101_cityscapes", words, root=str(tmp_path)).train.iters == 6


ORIGINAL_FILE = """\
DATAAUG: {BASE_SIZE: 1024, CROP_SIZE: 769, EXTRA: True, RAND_SCALE_MAX: 1.5}
TRAIN_BATCH_SIZE_PER_GPU: 2
NUM_TRAINERS: 4
EVAL_BATCH_SIZE: 1
DATASET:
    DATASET_NAME: "cityscapes"
    DATA_DIR: "./data/elsewhere/"
    IMAGE_TYPE: "rgb"
    NUM_CLASSES: 19
    TRAIN_FILE_LIST: "./data/elsewhere/cityscapes_list/train.lst"
    IGNORE_INDEX: 255
    DATA_DIM: 3
MODEL:
    MODEL_NAME: "deeplabv3"
    DEFAULT_NORM_TYPE: "bn"
    MULTI_LOSS_WEIGHT: [1.0, 0.4]
    BACKBONE_LAYERS: 50
    BACKBONE: "resnet"
    BACKBONE_MULTI_GRID: True
    DEEPLABv3: {DEPTH_MULTIPLIER: 1, ASPP_WITH_SEP_CONV: True, AuxHead: True}
TRAIN: {MODEL_SAVE_DIR: "snapshots/mine/", PRETRAINED_MODEL_DIR: "./nowhere/resnet50_v2/", SNAPSHOT_EPOCH: 1}
TEST: {TEST_MODEL: "snapshots/mine/last", BASE_SIZE: 2048, CROP_SIZE: 769, SLIDE_WINDOW: True}
SOLVER: {LR: 0.02, LR_POLICY: "poly", OPTIMIZER: "sgd", NUM_EPOCHS: 80, LOSS: "['softmax_loss']"}
"""


def test_a_yaml_file_of_the_original_is_read(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(ORIGINAL_FILE)
    config = read_config(str(path), ["SOLVER.POWER", "1.0"])
    model, augment, optimizer = config.model, config.augment, config.optimizer
    assert (model.name, model.backbone, model.multi_grid) == ("deeplabv3", "resnet50", (1, 2, 4))
    assert (augment.scale_min, augment.scale_max, augment.crop_size) == (0.75, 1.5, (769, 769))  # 0.75 is the default
    assert (optimizer.learning_rate, optimizer.power, optimizer.weight_decay) == (0.02, 1.0, 4e-5)
    assert (config.train.batch_size, config.train.iters) == (8, 80 * 2975 // 8)
    assert (config.data.root, config.eval.window) == ("./data/elsewhere/", (769, 769))
    assert model.backbone_weights is None
    assert "no ./nowhere/resnet50_v2/: the backbone starts from random weights" in capsys.readouterr().err
    assert options_of_file(str(path)) == {"output": "snapshots/mine/", "weights": "snapshots/mine/last"}
    assert options_of_file("quickstart") == options_of_file(None) == {}
    path.write_text(ORIGINAL_FILE.replace("LR_POLICY", "LR_POLICE"))
    with pytest.raises(UserError, match=r"mine.yaml: 'SOLVER.LR_POLICE' is not a key of SemSegPaddle"):
        read_config(str(path))
    path.write_text(ORIGINAL_FILE.replace('"poly"', '"cosine"'))
    with pytest.raises(UserError, match="SOLVER.LR_POLICY cosine is not known here: the learning rate is poly"):
        read_config(str(path))
