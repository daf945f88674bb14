"""Each network learns one image of the embedded data in ADE20K's format by heart."""

from common.dataset_list import make_lists
from common.labels import label_set
from common.metrics import ConfusionMatrix
from common.samples.list_dataset import ListDataset
from common.toy_dataset import write_toy_dataset
from encnet_single_gpu.config import read_config
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.losses import SegmentationLoss
from encnet_single_gpu.models import backbone_names, build_model, model_names
from encnet_single_gpu.optimizer import build_optimizer

import numpy as np
import pytest
import torch

STEPS = 200


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """48x48 pixels of an image, twice enlarged, and their mirror image.

    Enlarged, as at 1/8 of the resolution thin things cannot be told apart; two, as what is pooled to one value has to
    be more than one in batch normalisation.
    """
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_dataset("ade20k", root, 1, 1, (128, 160))
    make_lists("ade20k", root)
    sample = ListDataset(label_set("ade20k"), root, "train.txt").load(0)
    image, label = (x[56:104, 40:88].repeat(2, 0).repeat(2, 1) for x in (sample.image, sample.label))
    assert len(np.unique(label[label != 255])) == 5
    data = read_config("quickstart").data
    pair = [normalize(np.ascontiguousarray(x), data.mean, data.std) for x in (image, image[:, ::-1])]
    labels = np.stack([label, label[:, ::-1]]).astype(np.int64)
    return torch.from_numpy(np.stack(pair)), torch.from_numpy(labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_one_image_is_learnt(batch, name):
    images, labels = batch
    rate = 0.0005 if name == "refinenet" else 0.002  # its decoder has no normalisation and bears no high rate
    config = read_config("quickstart", [f"optimizer.learning_rate={rate}"])
    torch.manual_seed(0)
    model = build_model(name, "resnet18" if "resnet18" in backbone_names(name) else None)
    loss, optimizer = SegmentationLoss(config.loss), build_optimizer(model, config.optimizer)
    scores = {}
    for step in range(1, STEPS + 1):
        loss(model.train()(images), labels)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            with torch.no_grad():
                pred = model.eval()(images).argmax(1)
            matrix = ConfusionMatrix(150)
            matrix.update(labels.numpy(), pred.numpy())
            scores[step] = f"{matrix.pixel_accuracy():.3f}, mIoU {matrix.mean_iou():.3f}"
            if matrix.pixel_accuracy() > 0.95:
                print(f"{name}: {scores}")  # shown by -rP
                return
    pytest.fail(f"pixel accuracy by step: {scores}")
