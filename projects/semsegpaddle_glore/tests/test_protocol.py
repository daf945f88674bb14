import math
import subprocess
import sys

from semsegpaddle_glore.protocol import EvalProtocol, class_scores, smallest_scale, window_starts

import numpy as np
import paddle
import pytest
import torch
import torch.nn.functional as F

WHOLE = {"long_side": None, "scales": (1.0,), "flip": False, "window": None, "stride_fraction": 0.5}


def protocol(**changes):
    return EvalProtocol(**{**WHOLE, **changes})


def pointwise(images):
    """Logits that depend on their own pixel alone: the channels as they are."""
    return images * 3.0


def softmax(logits):
    exponent = np.exp(logits - logits.max(0, keepdims=True))
    return exponent / exponent.sum(0, keepdims=True)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)


def probabilities(model, image, size, protocol):
    """Of an image (3, H, W) -> (num_classes, *size)."""
    (probs,) = class_scores(model, image[None], size, protocol)
    return probs


def two_classes(share):
    """Logits (1, 2, h, w) whose probability of class 0 is `share` (h, w)."""
    share = np.clip(np.asarray(share, np.float32), 1e-6, 1 - 1e-6)
    return paddle.to_tensor(np.log(np.stack([share, 1 - share])[None]))


def test_window_starts_by_hand():
    assert window_starts(1024, 769, 256) == [0, 255]
    assert window_starts(2048, 769, 256) == [0, 256, 512, 768, 1024, 1279]
    assert window_starts(769, 769, 256) == [0]
    assert window_starts(1025, 769, 256) == [0, 256]  # no window twice at the end


def test_the_smallest_scale_by_hand():
    assert smallest_scale((24, 600), protocol()) == 1.0
    assert smallest_scale((24, 600), protocol(scales=(1.5, 0.5))) == 0.5
    assert smallest_scale((24, 600), protocol(long_side=1200, scales=(0.75, 1.0))) == 1.5
    assert smallest_scale((24, 600), protocol(window=(65, 65))) == math.inf  # windows are filled up


def test_windows_cover_every_pixel():
    for length in range(65, 300, 7):
        for window in (65, 97, 128):
            for stride in (21, 43, 65):
                seen = np.zeros(max(length, window), int)
                for start in window_starts(len(seen), window, stride):
                    assert 0 <= start <= len(seen) - window
                    seen[start : start + window] += 1
                assert seen.min() >= 1


@pytest.mark.parametrize("size", [(65, 65), (90, 201), (130, 66), (40, 50), (40, 170)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_pointwise_model_is_not_changed_by_windows_and_flips(size, flip):
    image = random_image(*size)
    probs = probabilities(pointwise, image, size, protocol(window=(65, 70), stride_fraction=1 / 3, flip=flip))
    assert (probs.shape, probs.dtype) == ((3, *size), np.float32)
    np.testing.assert_allclose(probs, softmax(3 * image), atol=1e-6)


def test_overlapping_windows_are_averaged_by_hand():
    # Window number k says probability k/10; 65 + 32 + 32 + 1 columns: windows begin at 0, 32, 64, 65.
    calls = []

    def counting(images):
        calls.append(tuple(images.shape))
        return two_classes(np.full(images.shape[2:], len(calls) / 10))

    probs = probabilities(counting, random_image(65, 130), (65, 130), protocol(window=(65, 65), stride_fraction=0.49))
    assert calls == [(1, 3, 65, 65)] * 4
    row = probs[0, 30]
    expected = np.repeat([0.1, 0.15, 0.2, 0.3, 0.35, 0.4], [32, 32, 1, 32, 32, 1])
    expected[64] = (0.1 + 0.2 + 0.3) / 3
    expected[65:97] = (0.2 + 0.3 + 0.4) / 3
    expected[97:129] = (0.3 + 0.4) / 2
    np.testing.assert_allclose(row, expected, atol=1e-6)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)


def test_windows_equal_a_plain_loop():
    # The answer depends on the place in the window and on the image: an independent loop must agree.
    image, window, stride = random_image(110, 150), (65, 80), (round(65 * 0.4), round(80 * 0.4))
    ramp = np.linspace(-2, 2, 65 * 80, dtype=np.float32).reshape(65, 80)

    def by_place(images):
        return images + paddle.to_tensor(np.stack([ramp, -ramp, ramp**2]))

    total, count = np.zeros((3, 110, 150)), np.zeros((110, 150))
    tops, lefts = [0, 26, 45], [0, 32, 64, 70]
    assert stride == (26, 32)
    for top in tops:
        for left in lefts:
            cut = np.s_[..., top : top + 65, left : left + 80]
            total[cut] += softmax(image[cut] + np.stack([ramp, -ramp, ramp**2]))
            mirrored = softmax(image[cut][..., ::-1] + np.stack([ramp, -ramp, ramp**2]))
            total[cut] += mirrored[..., ::-1]
            count[cut] += 2
    probs = probabilities(by_place, image, (110, 150), protocol(window=window, stride_fraction=0.4, flip=True))
    np.testing.assert_allclose(probs, total / count, atol=1e-6)


def test_the_mirror_image_is_turned_back():
    share = np.tile(np.arange(70) / 69, (65, 1))

    def left_to_right(images):
        return two_classes(share)

    plain = probabilities(left_to_right, random_image(65, 70), (65, 70), protocol())
    np.testing.assert_allclose(plain[0], share, atol=1e-5)
    both = probabilities(left_to_right, random_image(65, 70), (65, 70), protocol(flip=True))
    np.testing.assert_allclose(both[0], 0.5, atol=1e-5)


def test_scales_equal_an_independent_implementation_in_torch():
    image, size = random_image(100, 130), (90, 120)
    probs = probabilities(pointwise, image, size, protocol(scales=(0.75, 1.0, 1.5)))
    expected = 0
    for scaled in ((75, 98), (100, 130), (150, 195)):  # 130 x 0.75 = 97.5 -> 98
        resized = F.interpolate(torch.from_numpy(image)[None], scaled, mode="bilinear", align_corners=False)
        share = F.softmax(3 * resized, dim=1)
        expected = expected + F.interpolate(share, size, mode="bilinear", align_corners=False)[0] / 3
    np.testing.assert_allclose(probs, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((375, 500), {"long_side": 520}, [(390, 520)]),
        ((500, 333), {"long_side": 520}, [(520, 346)]),  # 333 x 1.04 = 346.3
        ((375, 500), {"long_side": 520, "scales": (0.5, 1.25)}, [(195, 260), (488, 650)]),  # 487.5 -> 488
        ((375, 500), {"long_side": 520, "window": (520, 520)}, [(520, 520)]),  # 390 rows are padded
        ((128, 256), {"scales": (0.5, 1.5)}, [(64, 128), (192, 384)]),
        ((100, 300), {"window": (200, 200), "stride_fraction": 0.5}, [(200, 200)] * 2),
    ],
)
def test_what_the_network_is_given(size, changes, expected):
    seen = []

    def watching(images):
        seen.append(tuple(images.shape[2:]))
        return images

    probs = probabilities(watching, random_image(*size), size, protocol(**changes))
    assert seen == expected
    assert probs.shape == (3, *size)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)


def test_small_images_are_padded_with_the_mean_colour_below_and_right():
    seen = []

    def watching(images):
        seen.append(images.numpy())
        return images

    image = random_image(40, 50) + 1
    probabilities(watching, image, (40, 50), protocol(window=(65, 66)))
    expected = np.zeros((1, 3, 65, 66), np.float32)
    expected[0, :, :40, :50] = image
    np.testing.assert_array_equal(seen[0], expected)


def test_half_precision_logits_are_averaged_in_single():
    def half(images):
        return (images * 3).astype("float16")

    image = random_image(65, 100)
    probs = probabilities(half, image, (65, 100), protocol(window=(65, 65), stride_fraction=0.1))
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, softmax((image * 3).astype(np.float16).astype(np.float32)), atol=2e-6)


def test_no_graph_is_kept():
    network = paddle.nn.Conv2D(3, 4, 3, padding=1)
    outputs = []

    def watching(images):
        outputs.append(network(images))
        return outputs[-1]

    image = random_image(80, 70)
    probs = probabilities(watching, image, (80, 70), protocol())
    assert outputs[0].stop_gradient
    weight, bias = torch.from_numpy(network.weight.numpy()), torch.from_numpy(network.bias.numpy())
    expected = F.softmax(F.conv2d(torch.from_numpy(image)[None], weight, bias, padding=1), dim=1)[0]
    np.testing.assert_allclose(probs, expected.numpy(), atol=1e-6)


MEMORY_PROGRAM = """
import resource
from semsegpaddle_glore.protocol import EvalProtocol, class_scores
import numpy as np, paddle
head = paddle.nn.Conv2D(3, 19, 1)
protocol = EvalProtocol(long_side=None, scales=(1.0,), flip=False, window=(769, 769), stride_fraction=2 / 3)
class_scores(head, np.zeros((1, 3, 769, 769), np.float32), (769, 769), protocol)
peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
for _ in range(2):
    class_scores(head, np.zeros((1, 3, 1024, 2048), np.float32), (1024, 2048), protocol)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


def test_memory_of_a_cityscapes_image():
    result = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True)
    one_window, first, second = (int(word) / 1024 for word in result.stdout.split())  # MiB
    assert first - one_window < 250  # the probabilities are 152 MiB, of which one window's 43 were there before
    assert second - first < 20  # flat over the set
