"""Data sets of paddleseg as they are opened here: lists, class names, what does not pair, loader processes."""

import shutil

from common.cli import UserError
from common.labels import label_set
from common.samples import roots
from common.samples.survey import survey_for_training
from paddleseg_benchmark import doctor
from paddleseg_benchmark.data import batches as loading
from paddleseg_benchmark.data import dataset as data
from paddleseg_benchmark.zoo import zoo

import cv2
import numpy as np
import pytest
from pdseg_runs import write_data

CLASSES = "name: mine\nclasses: [road, kerb, person]\n"
IDS = "ids: {10: 0, 20: 1, 30: 2, 0: 255}\n"


@pytest.fixture
def toy(tmp_path):
    return write_data(tmp_path / "cityscapes")


def write_own(root, values=(0, 1, 2), separator=",", classes=CLASSES):
    """Four images with labels of blocks of `values`, a list and a config of one's own data. Returns the config."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        label = rng.choice(values, (8, 8)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
        for kind, pixels in (("image", rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)), ("label", label)):
            root.mkdir(exist_ok=True)
            cv2.imwrite(str(root / f"{kind}{i}.png"), pixels)
        lines.append(f"image{i}.png{separator}label{i}.png\n")
    (root / "list.txt").write_text("".join(lines))
    if classes:
        (root / "classes.yaml").write_text(classes)
    own = f"type: Dataset, dataset_root: '{root}', num_classes: 3"
    sections = [f"{split}_dataset: {{{own}, {split}_path: '{root / 'list.txt'}'}}" for split in ("train", "val")]
    path = root / "mine.yml"
    path.write_text("\n".join([f"_base_: {zoo.CONFIG_DIR / 'fastscnn.yml'}", *sections, "model: {num_classes: 3}\n"]))
    return path


@pytest.mark.parametrize("separator", [",", " ", "\t"])
def test_a_list_is_read_whatever_parts_it(tmp_path, separator):
    dataset = data.open_dataset(zoo.read_config(write_own(tmp_path / "mine", separator=separator)), "val")
    assert dataset.file_list[3] == [str(tmp_path / "mine" / f"{kind}3.png") for kind in ("image", "label")]
    label = cv2.imread(dataset.file_list[3][1], cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(dataset[3]["label"][0], label)


def test_class_names_are_those_of_classes_yaml(tmp_path):
    names = [
        data.open_dataset(zoo.read_config(write_own(tmp_path / f"{i}", classes=classes)), "val").class_names
        for i, classes in enumerate((CLASSES, None))
    ]
    assert names == [("road", "kerb", "person"), ("0", "1", "2")]


def test_the_ids_of_classes_yaml_become_train_ids(tmp_path):
    path = write_own(tmp_path / "mine", values=(0, 10, 20, 30), classes=CLASSES + IDS)
    dataset = data.open_dataset(zoo.read_config(path), "val")
    raw = cv2.imread(dataset.file_list[0][1], cv2.IMREAD_UNCHANGED)
    expected = np.select([raw == 10, raw == 20, raw == 30], [0, 1, 2], 255)
    np.testing.assert_array_equal(dataset[0]["label"][0], expected)


def test_another_number_of_classes_than_that_of_classes_yaml_is_refused(tmp_path):
    path = write_own(tmp_path / "mine", classes="name: mine\nclasses: [road, kerb]\n")
    with pytest.raises(UserError, match=r"classes.yaml: has 2 classes, the config's num_classes is 3: correct one"):
        data.open_dataset(zoo.read_config(path), "train")


def test_cityscapes_has_its_names_and_nineteen_other_classes_have_not(toy, tmp_path):
    names = data.open_dataset(data.with_data(zoo.read_config("fastscnn"), str(toy)), "val").class_names
    assert names == label_set("cityscapes").class_names
    path = write_own(tmp_path / "mine", classes=None)
    path.write_text(path.read_text().replace("num_classes: 3", "num_classes: 19"))
    assert data.open_dataset(zoo.read_config(path), "val").class_names == tuple(map(str, range(19)))


def test_a_folder_without_cityscapes_in_it_says_what_is_missing(tmp_path):
    config = data.with_data(zoo.read_config("fastscnn"), str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}: no folders leftImg8bit and gtFine in it") as caught:
        data.open_dataset(config, "train")
    assert "create_dataset_list.py" in str(caught.value) and "nonconf" not in str(caught.value)


def test_an_image_without_label_is_named_before_it_shifts_the_others(toy):
    gone = sorted(toy.glob("gtFine/train/*/*_labelTrainIds.png"))[2]
    gone.unlink()
    image = str(gone).replace("gtFine/", "leftImg8bit/").replace("gtFine_labelTrainIds", "leftImg8bit")
    config = data.with_data(zoo.read_config("fastscnn"), str(toy))
    with pytest.raises(UserError, match=f"{image} has no .*_labelTrainIds.png .train.: write these files with"):
        data.open_dataset(config, "train")


def test_ones_own_data_that_are_not_there_are_not_replaced_by_the_embedded_ones(tmp_path):
    path = write_own(tmp_path / "mine")
    config = zoo.read_config(path)
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(UserError, match=f"'train_dataset.dataset_root': no folder '{tmp_path / 'mine'}'"):
        data.with_data(config, None)


def test_data_to_evaluate_on_stay_where_the_config_says(tmp_path):
    config = zoo.read_config(write_own(tmp_path / "mine"))
    config.dic["val_dataset"]["dataset_root"] = "elsewhere"
    assert data.with_data(config, None).val_dataset_cfg["dataset_root"] == "elsewhere"


def test_two_loader_processes_draw_other_crops_of_the_same_image(tmp_path):
    path = write_own(tmp_path / "mine")
    lines = (tmp_path / "mine" / "list.txt").read_text().splitlines()
    (tmp_path / "mine" / "list.txt").write_text(f"{lines[0]}\n" * 2)  # both processes get the same image
    config = zoo.read_config(path)
    crop = [{"type": "RandomPaddingCrop", "crop_size": [32, 32]}, {"type": "Normalize"}]  # nothing else is random
    config.dic["train_dataset"]["transforms"] = crop
    dataset = data.open_dataset(config, "train")
    stream = loading.batches(dataset, 1, 2)
    first, second = (next(stream)[0].numpy() for _ in range(2))
    stream.close()
    assert first.shape == second.shape == (1, 3, 32, 32)
    assert (first != second).any()


@pytest.mark.parametrize(
    ("gib", "wanted", "processes"), [(2.0, 3, 3), (1.0, 3, 3), (0.06, 3, 0), (None, 3, 0), (None, 0, 0)]
)
def test_without_shared_memory_images_are_loaded_without_processes(gib, wanted, processes, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "shared_memory_gib", lambda: gib)
    assert loading.loader_processes(wanted) == processes
    said = capsys.readouterr().err
    assert said.count("warning: loader processes need 1 GiB of shared memory") == (wanted > 0 and processes == 0)


def test_outside_linux_there_is_no_shared_memory_to_use(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert doctor.shared_memory_gib() is None


def test_labels_of_one_class_alone_are_refused_and_absent_classes_are_named(tmp_path):
    for number, (values, message) in enumerate((((1,), "nothing but 'kerb'"), ((0, 2), None))):
        path = write_own(tmp_path / f"{number}", values=values)
        pairs = data.LabelledPairs(data.open_dataset(zoo.read_config(path), "train"))
        if message:
            with pytest.raises(UserError, match=message):
                survey_for_training(pairs, pairs)
        else:
            train, _ = survey_for_training(pairs, pairs).splitlines()
            assert train == "train: 4 images of 96x96; in none of 4 labels looked at: kerb"


def test_data_and_lists_are_found_in_the_repositorys_root_too(tmp_path, monkeypatch):
    """dataset_root and train_path relative to the repository, as when train.py runs in the project's folder."""
    write_own(tmp_path / "data_here")
    text = (tmp_path / "data_here" / "mine.yml").read_text().replace(f"{tmp_path}/", "")
    (tmp_path / "mine.yml").write_text(text)
    config = zoo.read_config(tmp_path / "mine.yml")
    with pytest.raises(UserError, match="no folder 'data_here'"):
        data.with_data(config, None)
    for module in (roots, data):
        monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    dataset = data.open_dataset(data.with_data(config, None), "train")
    assert dataset.file_list[0][0] == str(tmp_path / "data_here" / "image0.png")
