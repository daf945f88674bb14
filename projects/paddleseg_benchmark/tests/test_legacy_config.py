"""The YAML of PaddleSeg's static-graph code, translated."""

from common.cli import UserError
from paddleseg_benchmark.zoo import legacy_config, zoo

import numpy as np
import paddle
import pytest

HRNET = zoo.CONFIG_DIR / "hrnetw18_cityscapes_1024x512_215.yaml"
DEEPLAB = zoo.CONFIG_DIR / "deeplabv3p_resnet50_vd_cityscapes.yaml"


def test_hrnet_becomes_fcn_without_bias_in_its_head():
    config = legacy_config.to_paddleseg(legacy_config.read_legacy(HRNET, []))
    model = config.model_cfg
    assert (model["type"], model["backbone"]["type"], model["bias"]) == ("FCN", "HRNet_W18", False)
    assert config.optimizer_cfg == {"type": "SGD", "momentum": 0.9, "weight_decay": 5e-4}
    assert config.lr_scheduler_cfg["learning_rate"] == 0.01
    assert config.train_dataset_cfg["transforms"][1]["crop_size"] == [1024, 512]
    # Without two biases of 270 and 19 it has that many parameters less than the row of the zoo.
    network = zoo.build_from_config(config)
    assert network.trainable_parameters() == zoo.row("fcn_hrnet_w18").reference_params - (270 + 19)


def test_hrnet_pads_strided_convolutions_on_both_sides_as_the_original():
    """(filter size - 1) // 2 on each side: the first output of the first convolution sees a border of zeros."""
    config = legacy_config.to_paddleseg(legacy_config.read_legacy(HRNET, []))
    stem = zoo.build_from_config(config).network.backbone.conv_layer1_1._conv
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, :, 0, 0] = 1
    out = stem(paddle.to_tensor(image)).numpy()[0]  # (64, 4, 4)
    np.testing.assert_allclose(out[:, 0, 0], stem.weight.numpy()[:, :, 1, 1].sum(axis=1), rtol=1e-5, atol=1e-7)


def test_deeplab_becomes_the_row_of_the_zoo():
    config = legacy_config.to_paddleseg(legacy_config.read_legacy(DEEPLAB, []))
    wanted = zoo.read_config("deeplabv3p.yml")
    keys = ("type", "backbone", "backbone_indices", "aspp_ratios", "num_classes")
    assert {key: config.model_cfg[key] for key in keys} == {key: wanted.model_cfg[key] for key in keys}
    assert config.optimizer_cfg == wanted.optimizer_cfg
    assert config.loss_cfg == wanted.loss_cfg


def test_the_command_line_changes_single_keys():
    seed = ("BATCH_SIZE", "2", "SOLVER.NUM_EPOCHS", "3", "MODEL.FP16", "True")
    legacy = legacy_config.read_legacy(HRNET, [*seed, "TRAIN_CROP_SIZE", "(768,384)", "AUG.MIRROR", "False"])
    assert (legacy["BATCH_SIZE"], legacy["SOLVER.NUM_EPOCHS"], legacy["MODEL.FP16"]) == (2, 3, True)
    config = legacy_config.to_paddleseg(legacy)
    types = [transform["type"] for transform in config.train_dataset_cfg["transforms"]]
    assert types == ["ResizeStepScaling", "RandomPaddingCrop", "Normalize"]
    assert config.train_dataset_cfg["transforms"][1]["crop_size"] == [768, 384]


def test_text_of_the_original_files_is_read(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        'TRAIN_CROP_SIZE: (512, 256) # (width, height)\nMODEL:\n    MODEL_NAME: "deeplabv3p"\n    DEEPLAB:\n'
        '        BACKBONE: "resnet_vd_101"\n        OUTPUT_STRIDE: 16\nTRAIN:\n'
        '    PRETRAINED_MODEL_DIR: u"pretrained_model/resnet"\nSOLVER:\n    LR: 1\n'
    )
    config = legacy_config.to_paddleseg(legacy_config.read_legacy(path, []))
    assert config.model_cfg["backbone"] == {"type": "ResNet101_vd", "output_stride": 16, "multi_grid": [1, 2, 4]}
    assert config.model_cfg["aspp_ratios"] == [1, 6, 12, 18]
    assert config.train_dataset_cfg["transforms"][1]["crop_size"] == [512, 256]
    assert config.lr_scheduler_cfg["learning_rate"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BATCHSIZE", "2"], "command line: unknown key 'BATCHSIZE': did you mean 'BATCH_SIZE'"),
        (["BATCH_SIZE"], "'BATCH_SIZE' has no value"),
        (["BATCH_SIZE", "many"], "BATCH_SIZE must be int, not 'many'"),
        (["MODEL.MODEL_NAME", "unet"], "MODEL.MODEL_NAME 'unet' is not supported: give 'hrnet' or 'deeplabv3p'"),
        (
            ["SOLVER.LR_WARMUP", "True"],
            "SOLVER.LR_WARMUP True is not supported: PaddleSeg's solver of 2.1",
        ),
        (
            ["TRAIN.RESUME_MODEL_DIR", "saved/3"],
            "'saved/3' is not supported: give --resume_model RUN_DIR",
        ),
        (["SOLVER.OPTIMIZER", "adam"], "SOLVER.OPTIMIZER 'adam' is not supported"),
        (["BATCH_SIZE", "0"], "command line: BATCH_SIZE 0: give a number from 1"),
        (["BATCH_SIZE", "-2"], "command line: BATCH_SIZE -2: give a number from 1"),
        (["BATCH_SIZE", "True"], "BATCH_SIZE must be int, not True"),
        (["SOLVER.NUM_EPOCHS", "0"], "command line: SOLVER.NUM_EPOCHS 0: give a number from 1"),
        (["DATALOADER.NUM_WORKERS", "-1"], "command line: DATALOADER.NUM_WORKERS -1: give a number from 0"),
        (["TRAIN_CROP_SIZE", "(64,0)"], "command line: TRAIN_CROP_SIZE (64, 0): give a number from 1"),
        (["TRAIN_CROP_SIZE", "(64,)"], "TRAIN_CROP_SIZE must be tuple, not (64,)"),
        (["SOLVER.LR", "0"], "command line: SOLVER.LR 0: give a number above 0"),
        (["SOLVER.LR", "1e999"], "SOLVER.LR must be float, not inf"),
        (["MODEL.HRNET.BIAS", "3"], "MODEL.HRNET.BIAS must be"),
    ],
)
def test_a_mistake_names_the_key(words, message):
    with pytest.raises(UserError) as caught:
        legacy_config.read_legacy(HRNET, words)
    assert message in str(caught.value)


def test_uneven_hrnet_channels_are_refused():
    legacy = legacy_config.read_legacy(HRNET, ["MODEL.HRNET.STAGE2.NUM_CHANNELS", "[18, 40]"])
    with pytest.raises(UserError, match="each branch must have twice"):
        legacy_config.to_paddleseg(legacy)


def test_an_unknown_file_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'hrnetw18_cityscapes_1024x512_215.yaml'"):
        legacy_config.read_legacy("configs/hrnetw18_cityscapes_1024x512.yaml", [])


def test_warm_up_that_is_off_and_its_steps_have_no_effect_as_in_the_original():
    with_keys = legacy_config.read_legacy(HRNET, ["SOLVER.LR_WARMUP", "False", "SOLVER.LR_WARMUP_STEPS", "2000"])
    assert with_keys == legacy_config.read_legacy(HRNET, [])
