"""The images of a run: of the toy data only, by the project's own command, small and in the labels' colours."""

import json

from common.cli import UserError
from common.labels import label_set
from common.toy_dataset import draw_toy
from results.make_panels import COUNT, LONGEST_SIDE, labels_of, make_panels

import cv2
import numpy as np
import pytest
from results_tree import write_run

# A stand-in for predict.py: class 13 (car) in the left half, 255 in the right.
PREDICT = """\
import argparse, cv2, numpy as np
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--weights", type=Path, required=True)
parser.add_argument("--input", type=Path, nargs="+")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
assert args.weights.read_text() == "weights"
for path in args.input:
    height, width = cv2.imread(str(path)).shape[:2]
    ids = np.full((height, width), 13, np.uint8)
    ids[:, width // 2:] = 255
    (args.output / "below").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.output / "below" / f"{path.stem}_ids.png"), ids)
"""


@pytest.fixture
def recorded(tree, tmp_path):
    """A recorded run with weights in an output folder, and a project that predicts: (root, output folder)."""
    data = tmp_path / "toy"
    draw_toy("cityscapes", data, num_train=1, num_val=6, size=(200, 400))
    config = json.dumps({"model": {"name": "x"}, "data": {"root": str(data), "val_list": "val.txt"}, "train": {}})
    write_run(tree / "results/runs/stdc_seg", config_text=config)
    folder = write_run(tmp_path / "output", config_text=config)
    (folder / "best.safetensors").write_text("weights")
    (tree / "projects/stdc_seg/predict.py").write_text(PREDICT)
    return tree, folder


def test_images_are_small_and_in_the_colours_of_the_labels(recorded):
    root, folder = recorded
    written = make_panels(folder, root)
    assert len(written) == 3 * COUNT
    assert {path.parent for path in written} == {root / "results/panels/stdc_seg" / folder.name}
    images = {path.name.rpartition("_")[2]: cv2.imread(str(path))[..., ::-1] for path in written}
    assert {image.shape for image in images.values()} == {(160, LONGEST_SIDE, 3)}
    car = label_set("cityscapes").palette[13]
    np.testing.assert_array_equal(images["prediction.png"][80, 40], car)
    np.testing.assert_array_equal(images["prediction.png"][80, 300], [0, 0, 0])
    palette = {tuple(color) for color in label_set("cityscapes").palette} | {(0, 0, 0)}
    assert {tuple(color) for color in images["label.png"].reshape(-1, 3)} <= palette
    assert sum(path.stat().st_size for path in written) < 60_000 * COUNT


def test_other_data_is_not_published(recorded):
    root, folder = recorded
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps(env | {"scope": "full"}))
    with pytest.raises(UserError, match="scope full: only runs of toy data"):
        make_panels(folder, root)


def test_what_is_missing_is_named(recorded, tmp_path):
    root, folder = recorded
    with pytest.raises(UserError, match="record it first"):
        make_panels(folder, tmp_path / "elsewhere")
    (root / "projects/stdc_seg/predict.py").write_text("raise SystemExit('no such weights')")
    with pytest.raises(UserError, match=r"predict.py failed: \['no such weights'\]"):
        make_panels(folder, root)
    (folder / "best.safetensors").unlink()
    with pytest.raises(UserError, match="best.safetensors is missing"):
        make_panels(folder, root)


def test_the_classes_are_those_of_the_form_that_the_toy_data_was_written_in():
    assert labels_of("toy").name == "cityscapes"
    assert labels_of("toy_ade20k_151").num_classes == 151
