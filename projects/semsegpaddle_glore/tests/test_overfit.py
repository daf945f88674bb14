"""Each decode head with the small backbone learns one image of the embedded data by heart."""

from common.dataset_list import make_lists
from common.labels import label_set
from common.metrics import ConfusionMatrix
from common.samples.list_dataset import ListDataset
from common.toy_dataset import write_toy_dataset
from semsegpaddle_glore.checkpoint import build_network
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.losses import SegmentationLoss
from semsegpaddle_glore.lr_schedule import learning_rate
from semsegpaddle_glore.optimizer import build_optimizer
from semsegpaddle_glore.protocol import class_scores
from semsegpaddle_glore.updates import Updater

import numpy as np
import paddle
import pytest

STEPS = 150


@pytest.fixture(scope="module")
def random_image(tmp_path_factory):
    """128x128 pixels out of an image of the embedded data, with eight classes of 743 pixels and more."""
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy_dataset("cityscapes", root, 1, 1, (256, 512))
    make_lists("cityscapes", root)
    sample = ListDataset(label_set("cityscapes"), root, "train.txt").load(0)
    cut = np.s_[32:160, 32:160]
    assert len(np.unique(sample.label[cut])) == 8
    return sample.image[cut], sample.label[cut]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["pspnet", "deeplabv3", "glore", "ginet"])
def test_one_image_is_learnt(source, head):
    config = read_config("quickstart", [f"model.name={head}", "model.backbone=resnet18", "model.output_stride=8"])
    paddle.seed(0)
    model = build_network(config, label_set("cityscapes").class_names)
    updater = Updater(model, SegmentationLoss(config.loss), build_optimizer(model, config.optimizer), seed=0)
    image, label = normalize(source[0], config.data.mean, config.data.std), source[1]
    # Beside its mirror image, so that what is pooled to one value is more than one per batch normalisation.
    images = np.stack([image, image[:, :, ::-1]])
    labels = np.stack([label, label[:, ::-1]]).astype(np.int64)
    scores = []
    for step in range(STEPS):
        model.train()
        updater.gradients(images, labels, step)
        updater.apply(learning_rate(step, STEPS, config.optimizer))
        if step % 25 == 24:
            model.eval()
            (probs,) = class_scores(model, image[None], label.shape, config.eval)
            matrix = ConfusionMatrix(19)
            matrix.update(label, probs.argmax(axis=0))
            scores.append(matrix.mean_iou())
            if scores[-1] >= 0.95:
                return
    pytest.fail(f"mIoU after each 25 steps: {scores}")
