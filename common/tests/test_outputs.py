"""Which images are predicted, and where results go."""

from pathlib import Path
from types import SimpleNamespace

from common.cli import UserError
from common.files import files_below, write_csv
from common.images.outputs import (
    CITYSCAPES_ENDING,
    Job,
    cityscapes_name,
    find_jobs,
    images_in,
    predict,
    require_cityscapes_size,
    write_ids,
)
from common.images.read import read_image, read_label
from common.labels import label_set, labels_of_format

import cv2
import numpy as np
import pytest


def put(path, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 100, np.uint8))
    return path


def by_stem(image):
    return image.stem


def test_places_mirror_the_folders(tmp_path):
    put(tmp_path / "in" / "b" / "two.png")
    put(tmp_path / "in" / "one.JPG")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    single = put(tmp_path / "three.png")
    jobs = find_jobs([tmp_path / "in", single], tmp_path / "out", by_stem)
    assert [(job.image.name, job.target.relative_to(tmp_path / "out").as_posix()) for job in jobs] == [
        ("two.png", "b/two"),
        ("one.JPG", "one"),
        ("three.png", "three"),
    ]


@pytest.mark.parametrize("hidden", ["._one.png", ".ipynb_checkpoints/one.png", "b/.cache/deep/one.png"])
def test_hidden_files_and_folders_are_not_predicted(tmp_path, hidden):
    seen = put(tmp_path / ".in" / "one.png")  # what is named by the user may be hidden
    (tmp_path / ".in" / hidden).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".in" / hidden).write_bytes(b"resource fork")
    assert [job.image for job in find_jobs([tmp_path / ".in"], tmp_path / "out", by_stem)] == [seen]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere" / "deep" / "far.png")
    near = put(tmp_path / "in" / "near.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    found = images_in(tmp_path / "in")
    assert found == [tmp_path / "in" / "linked" / "deep" / "far.png", near]
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out", by_stem)
    assert [job.target for job in jobs] == [tmp_path / "out" / "linked" / "deep" / "far", tmp_path / "out" / "near"]


def test_the_same_folder_linked_twice_is_found_twice(tmp_path):
    put(tmp_path / "elsewhere" / "far.png")
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere")
    assert [path.relative_to(tmp_path / "in").as_posix() for path in images_in(tmp_path / "in")] == [
        "a/far.png",
        "b/far.png",
    ]


def test_a_link_to_nothing_is_named(tmp_path):
    put(tmp_path / "in" / "one.png")
    (tmp_path / "in" / "two.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"two\.png: links to .*gone\.png, which does not exist"):
        images_in(tmp_path / "in")
    (tmp_path / "in" / "two.png").rename(tmp_path / "in" / "two.txt")  # no image: not asked for
    assert {path.name for path in files_below(tmp_path / "in", broken_links=True)} == {"one.png", "two.txt"}


def test_outputs_among_inputs_are_refused(tmp_path):
    put(tmp_path / "in" / "one.png")
    put(tmp_path / "elsewhere" / "two.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    for output in (tmp_path / "in" / "out", tmp_path / "elsewhere" / "out"):
        with pytest.raises(UserError, match="--output .* lies in --input"):
            find_jobs([tmp_path / "in"], output, by_stem)
    with pytest.raises(UserError, match="--outdir .* lies in --input-pic"):
        find_jobs([tmp_path / "in"], tmp_path / "in", by_stem, "--input-pic", "--outdir")


def test_wrong_inputs_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--input .*gone: there is no such file or folder"):
        find_jobs([tmp_path / "gone"], tmp_path / "out", by_stem)
    with pytest.raises(UserError, match=r"--input .*empty: no images in it \(\.png"):
        find_jobs([tmp_path / "empty"], tmp_path / "out", by_stem)
    both = [put(tmp_path / "a" / "one.png"), put(tmp_path / "b" / "one.png")]
    with pytest.raises(UserError, match=r"a/one\.png and .*b/one\.png would both be written to .*out/one\*"):
        find_jobs(both, tmp_path / "out", by_stem)


def test_three_files_of_a_result(tmp_path):
    ids = np.array([[0, 1], [1, 2]], np.uint8).repeat(32, 0).repeat(32, 1)
    image = np.full((64, 64, 3), (10, 20, 31), np.uint8)
    palette = ((0, 0, 0), (200, 100, 0), (0, 0, 255))
    write_ids(Job(Path("one.png"), tmp_path / "one"), image, ids, palette)
    np.testing.assert_array_equal(read_label(tmp_path / "one_ids.png"), ids)
    np.testing.assert_array_equal(read_label(tmp_path / "one_color.png"), ids)  # a palette's indices
    np.testing.assert_array_equal(read_image(tmp_path / "one_color.png"), np.array(palette, np.uint8)[ids])
    overlay = read_image(tmp_path / "one_overlay.jpg").astype(int)
    for (row, column), half_of_both in {(5, 5): (5, 10, 16), (5, 58): (105, 60, 16), (58, 58): (5, 10, 143)}.items():
        assert np.abs(overlay[row, column] - half_of_both).max() <= 3  # as JPEG keeps it


class Known:
    """A predictor that finds class 13 in the first column of its images, else class 0."""

    def __init__(self, smallest):
        self.info, self.smallest = SimpleNamespace(palette=label_set("cityscapes").palette), smallest

    def require_size(self, path, size):
        if min(size) < self.smallest:
            raise UserError(f"{path}: too small")

    def ids(self, image):
        ids = np.zeros(image.shape[:2], np.uint8)
        ids[:, 0] = 13
        return ids


def test_label_files_have_the_data_sets_own_values_and_names(tmp_path):
    jobs = [Job(put(tmp_path / "a.png", (1, 3)), tmp_path / "out" / "a")]
    predict(Known(1), jobs, label_set("cityscapes"), CITYSCAPES_ENDING)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "a_pred_labelIds.png"), [[26, 7, 7]])  # car, road
    predict(Known(1), jobs, label_set("ade20k"))
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "a.png"), [[14, 1, 1]])
    predict(Known(1), jobs)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "a_ids.png"), [[13, 0, 0]])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("a.png", "a_pred_labelIds.png", "a_ids.png", "a_color.png", "a_overlay.jpg")
    }


def test_what_is_too_small_or_no_image_is_named_before_the_work(tmp_path):
    jobs = [Job(put(tmp_path / f"{side}.png", (side, 8)), tmp_path / "out" / str(side)) for side in (6, 4)]
    with pytest.raises(UserError, match=r"4\.png: too small"):
        predict(Known(5), jobs)
    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"4\.png"):
        predict(Known(1), jobs)
    assert not (tmp_path / "out").exists()


def test_formats_need_the_classes_of_their_sets():
    names = label_set("ade20k").class_names
    assert labels_of_format("ade", ("ade20k", "ade20k_151"), names).name == "ade20k"
    assert labels_of_format("ade", ("ade20k", "ade20k_151"), ("background", *names)).name == "ade20k_151"
    with pytest.raises(UserError, match=r"--format cityscapes needs weights with the 19 classes .* have 2 \(a, b\)"):
        labels_of_format("cityscapes", ("cityscapes",), ("a", "b"))


def test_names_and_sizes_of_cityscapes(tmp_path):
    assert cityscapes_name(Path("x/berlin_000000_000019_leftImg8bit.png")) == "berlin_000000_000019"
    assert cityscapes_name(Path("berlin_000000_000019.png")) == "berlin_000000_000019"
    with pytest.raises(UserError, match=r"street\.png: --format dataset needs names such as"):
        cityscapes_name(Path("street.png"), "--format dataset")
    require_cityscapes_size([Job(put(tmp_path / "a.png", (1024, 2048)), tmp_path)])
    with pytest.raises(UserError, match=r"b\.png: is 6x8, --format cityscapes needs 1024x2048"):
        require_cityscapes_size([Job(put(tmp_path / "b.png"), tmp_path)])


def test_csv_files(tmp_path):
    write_csv(tmp_path / "new" / "a.csv", [{"x": 1, "y": "a, b"}, {"x": 2.5, "y": ""}])
    assert (tmp_path / "new" / "a.csv").read_bytes() == b'x,y\n1,"a, b"\n2.5,\n'
    with pytest.raises(ValueError):
        write_csv(tmp_path / "new" / "a.csv", [{"x": 1}, {"z": 2}])
    assert (tmp_path / "new" / "a.csv").read_bytes().startswith(b"x,y")  # as it was
