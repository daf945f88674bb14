"""model.backbone=FILE.py: a backbone of torch2paddle.py under every head; training, resuming, evaluation, export."""

from pathlib import Path

from common.cli import UserError
from semsegpaddle_glore.checkpoint import load_network
from semsegpaddle_glore.models import build_model, model_names
from semsegpaddle_glore.runs import plan_run
from semsegpaddle_glore.train import Trainer, parse_args
from weights_convert.graph.command import Wanted, convert_module

import numpy as np
import paddle
import pytest
from glore_runs import command, train_here, train_words, write_data


@pytest.fixture(scope="module", name="converted")
def _converted(tmp_path_factory):
    """timm's smallest ResNet as a backbone: the conversion, and its file."""
    out = tmp_path_factory.mktemp("converted") / "back"
    wanted = Wanted("timm:test_resnet:output_stride=8", features=True, size=(64, 96), out=out, training=False)
    result, files = convert_module(wanted)
    return result, files[0]


def overrides(result, file):
    return (
        *(f"model.backbone={file}", f"model.backbone_weights={file.with_suffix('.safetensors')}"),
        *("model.output_stride=null", f"data.mean={list(result.source.mean)}", f"data.std={list(result.source.std)}"),
    )


def test_every_head_stands_on_it(converted):
    result, file = converted
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 65, 97)).astype(np.float32))
    for name in model_names():
        model = build_model(name, str(file), 3)
        info = result.source.module.feature_info
        assert model.backbone.out_channels == tuple(info.channels())
        assert model.backbone.strides == tuple(info.reduction()) and model.backbone.output_stride == 8
        model.train()
        outputs = model(images)
        assert outputs["logits"].shape == outputs["aux"][0].shape == [2, 3, 65, 97]
        model.eval()
        assert model(images).shape == [2, 3, 65, 97]


def test_features_are_timms(converted):
    import torch

    result, file = converted
    model = build_model("pspnet", str(file), 3)
    model.backbone.set_state_dict({name: paddle.to_tensor(value) for name, value in result.tensors.items()})
    model.eval()
    images = np.random.default_rng(0).standard_normal((1, 3, 72, 88)).astype(np.float32)
    with torch.no_grad():
        theirs = result.source.module(torch.from_numpy(images))
    for ours, feature in zip(model.backbone(paddle.to_tensor(images)), theirs, strict=True):
        assert np.abs(ours.numpy() - feature.numpy()).max() <= 1e-5 * feature.abs().max()


def test_it_trains_resumes_evaluates_and_exports(converted, tmp_path):
    result, file = converted
    data = write_data(tmp_path / "data")
    more = overrides(result, file)
    whole = train_here(data, tmp_path / "run", 2, *more)
    a = {name: value.numpy() for name, value in load_network(whole / "last.safetensors").state_dict().items()}
    words = train_words(data, tmp_path / "run", 3, *more, "--resume", whole / "last.safetensors", "--extend")
    trainer = Trainer(plan_run(parse_args("test", [str(word) for word in words])))
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), a[name], err_msg=name)
    assert trainer.step == 2
    trainer.run()
    scored = command(
        "eval.py", "--weights", whole / "last.safetensors", "--data", data, "--output", tmp_path / "scored"
    )
    assert scored.returncode == 0, scored.stderr
    start = result.tensors["conv1.0.weight" if "conv1.0.weight" in result.tensors else "conv1.weight"]
    moved = next(value for name, value in a.items() if name.startswith("backbone.conv1"))
    assert 0 < np.abs(moved - start).max() < 1, "it began with the file's weights, and learned"
    done = command("export.py", "--weights", whole / "last.safetensors", "--output", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert any(Path(tmp_path / "exported").rglob("*"))


def test_what_does_not_fit_is_one_line(converted, tmp_path):
    result, file = converted
    data = write_data(tmp_path / "data")
    with pytest.raises(UserError, match="trained with mean .* set its data.mean"):
        train_here(data, tmp_path / "run", 1, *overrides(result, file)[:3], "data.mean=[0.1,0.1,0.1]")
    with pytest.raises(UserError, match="output_stride 16 is not that of .* convert the network again"):
        build_model("pspnet", str(file), 3, output_stride=16)
    with pytest.raises(UserError, match="no backbone file nowhere.py: torch2paddle.py"):
        build_model("pspnet", "nowhere.py", 3)
    with pytest.raises(UserError, match="multi_grid and first_block_dilated are not possible"):
        build_model("pspnet", str(file), 3, multi_grid=(1, 2, 4))
    other = tmp_path / "other.py"
    other.write_text("raise SystemExit('never run')\n")
    with pytest.raises(UserError, match="does not say OUT_CHANNELS and STRIDES"):
        build_model("pspnet", str(other), 3)
