import math

from awesome_pytorch_seg.config import LossConfig
from awesome_pytorch_seg.losses import EncNetLoss, ICNetLoss, PixelLoss, build_loss, classes_present, shrink_label

import pytest
import torch
import torch.nn.functional as F


def config(**changes):
    values = {"class_weights": None, "ohem_threshold": None, "ohem_min_kept_fraction": 0.5, "dice_weight": 0.0}
    return LossConfig(**{**values, "aux_weight": 0.4, **changes})


def test_classes_present_leave_out_ignored_pixels():
    label = torch.tensor([[[0, 255], [2, 2]], [[255, 255], [255, 255]]])
    assert classes_present(label, 3).tolist() == [[True, False, True], [False, False, False]]


def test_encnet_loss_by_hand():
    torch.manual_seed(0)
    label = torch.tensor([[[0, 255], [2, 2]], [[1, 1], [1, 255]]])
    logits, aux = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    presence = torch.tensor([[0.0, math.log(3), 0.0], [0.0, math.log(3), -math.log(3)]])
    total, parts = EncNetLoss(PixelLoss(config()))({"logits": logits, "aux": (aux,), "presence": presence}, label)
    cross_entropy = [float(F.cross_entropy(output, label, ignore_index=255)) for output in (logits, aux)]
    # probabilities 1/2, 3/4, 1/2 of classes 0 and 2; 1/2, 3/4, 1/4 of class 1
    by_hand = (2 * math.log(2) + math.log(4) + math.log(2) + 2 * math.log(4 / 3)) / 6
    assert float(parts["presence"]) == pytest.approx(by_hand)
    assert float(total) == pytest.approx(cross_entropy[0] + 0.4 * cross_entropy[1] + 0.2 * by_hand)


def test_images_without_a_label_say_nothing_of_presence():
    label = torch.full((2, 2, 2), 255)
    label[0, 0, 0] = 1
    presence = torch.zeros(2, 3, requires_grad=True)
    outputs = {"logits": torch.zeros(2, 3, 2, 2), "aux": (torch.zeros(2, 3, 2, 2),), "presence": presence}
    total, parts = EncNetLoss(PixelLoss(config()))(outputs, label)
    assert float(parts["presence"].detach()) == pytest.approx(math.log(2))
    total.backward()
    assert presence.grad[0].any() and not presence.grad[1].any()


def test_shrunk_labels_are_picked_not_mixed():
    label = torch.arange(45).reshape(1, 5, 9)
    assert shrink_label(label, (3, 5))[0].tolist() == [[0, 2, 4, 6, 8], [18, 20, 22, 24, 26], [36, 38, 40, 42, 44]]
    assert torch.equal(shrink_label(label, (5, 9)), label)
    assert shrink_label(torch.full((1, 65, 97), 255), (9, 13)).unique().tolist() == [255]


def test_icnet_loss_guides_each_branch_at_its_size():
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 17, 33))
    outputs = tuple(torch.randn(2, 3, *size) for size in [(5, 9), (3, 5), (2, 3)])
    total, parts = ICNetLoss(PixelLoss(config()))({"logits": outputs[0], "aux": outputs[1:]}, label)
    steps = (4, 8, 16)
    losses = [float(F.cross_entropy(o, label[:, ::s, ::s])) for o, s in zip(outputs, steps, strict=True)]
    assert [float(part) for part in parts.values()] == pytest.approx(losses)
    assert float(total) == pytest.approx(losses[0] + 0.4 * losses[1] + 0.16 * losses[2])


@pytest.mark.parametrize(("name", "weight"), [("pspnet", 0.4), ("ocnet_asp", 0.4), ("bisenet", 1.0), ("danet", 1.0)])
def test_weight_of_auxiliary_outputs(name, weight):
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    outputs = {"logits": torch.zeros(1, 2, 2, 2), "aux": (torch.zeros(1, 2, 2, 2),) * 2}
    total, parts = build_loss(name, config(), 2)(outputs, label)
    assert float(parts["aux"]) == pytest.approx(2 * math.log(2))
    assert float(total) == pytest.approx(math.log(2) * (1 + 2 * weight))


@pytest.mark.parametrize("name", ["encnet", "icnet"])
def test_nothing_to_learn_is_zero_with_zero_gradient(name):
    logits, *aux = (torch.randn(1, 3, *size, requires_grad=True) for size in [(5, 5), (3, 3), (2, 2)])
    outputs, every = {"logits": logits, "aux": aux}, [logits, *aux]
    if name == "encnet":
        presence = torch.randn(1, 3, requires_grad=True)
        outputs, every = {"logits": logits, "aux": (logits,), "presence": presence}, [logits, presence]
    total, _ = build_loss(name, config(), 3)(outputs, torch.full((1, 17, 17), 255))
    total.backward()
    assert float(total.detach()) == 0
    assert not any(output.grad.any() for output in every)
