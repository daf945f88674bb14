"""Each network learns one picture of the embedded data in ADE20K's format by heart."""

from common.dataset_list import make_lists
from common.labels import label_set
from common.list_dataset import ListDataset
from common.toy_dataset import write_toy_dataset
from encnet_single_gpu.config import read_config
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.losses import SegmentationLoss
from encnet_single_gpu.models import build_model, model_names
from encnet_single_gpu.optimizer import build_optimizer

import numpy as np
import pytest
import torch

STEPS = 200
OF_ONE_PIECE = ("segnet", "segnet_basic", "unet", "unetplusplus")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """48x48 pixels of a picture, twice enlarged, and their mirror image.

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
def test_one_picture_is_learnt(batch, name):
    images, labels = batch
    config = read_config("quickstart", ["optimizer.learning_rate=0.0005"])  # RefineNet has no normalisation
    torch.manual_seed(0)
    model = build_model(name, None if name in OF_ONE_PIECE else "resnet18")
    loss, optimizer = SegmentationLoss(config.loss), build_optimizer(model, config.optimizer)
    accuracies = []
    for step in range(STEPS):
        loss(model.train()(images), labels)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            with torch.no_grad():
                pred = model.eval()(images).argmax(1)
            accuracies.append(float((pred == labels)[labels != 255].float().mean()))
            if accuracies[-1] > 0.95:
                return
    pytest.fail(f"pixel accuracy after each 20 steps: {accuracies}")
