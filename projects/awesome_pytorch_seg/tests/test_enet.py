import csv

from awesome_pytorch_seg.checkpoint import load_network, read_state
from awesome_pytorch_seg.config import read_config
from awesome_pytorch_seg.losses import ENetLoss, build_loss
from awesome_pytorch_seg.models import build_model, enet_davidtvs
from awesome_pytorch_seg.models.enet import ChannelPReLU, DownsamplingBottleneck
from awesome_pytorch_seg.models.enet_davidtvs import SharedPReLU
from awesome_pytorch_seg.train import Trainer
from awesome_pytorch_seg.train import main as train_main
from common.cli import UserError

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from awesome_runs import STAGES, train
from testkit import numbers, run_folder, run_here, write_data
from torch import nn

# The authors' table 1 and Lua files (e-lab/ENet-training at f762144), at 512x512: what each block gives, and its
# convolutions as (in, out, height x width of the kernel, stride, dilation, bias), T for transposed.
INITIAL = ("initial", (16, 256), ["3 13 3x3 2 1 b"])
DOWN1 = ("down1", (64, 128), ["16 16 2x2 2 1", "16 16 3x3 1 1 b", "16 64 1x1 1 1"])
STAGE1 = ("stage1", (64, 128), ["64 16 1x1 1 1", "16 16 3x3 1 1 b", "16 64 1x1 1 1"] * 4)
DOWN2 = ("down2", (128, 64), ["64 32 2x2 2 1", "32 32 3x3 1 1 b", "32 128 1x1 1 1"])
FIRST, LAST = "128 32 1x1 1 1", "32 128 1x1 1 1"
ASYMMETRIC = [FIRST, "32 32 1x5 1 1", "32 32 5x1 1 1 b", LAST]


def of_distance(dilation):
    return [FIRST, f"32 32 3x3 1 {dilation} b", LAST]


HALF = [*of_distance(1), *of_distance(2), *ASYMMETRIC, *of_distance(4)]
OTHER_HALF = [*of_distance(1), *of_distance(8), *ASYMMETRIC, *of_distance(16)]
STAGES_2_3 = [(name, (128, 64), HALF + OTHER_HALF) for name in ("stage2", "stage3")]
UP4 = ("up4", (64, 128), ["128 64 1x1 1 1", "128 16 1x1 1 1", "T 16 16 3x3 2 1 b", "16 64 1x1 1 1"])
STAGE4 = ("stage4", (64, 128), STAGE1[2][:6])
UP5 = ("up5", (16, 256), ["64 16 1x1 1 1", "64 4 1x1 1 1", "T 4 4 3x3 2 1 b", "4 16 1x1 1 1"])
STAGE5 = ("stage5", (16, 256), ["16 4 1x1 1 1", "4 4 3x3 1 1 b", "4 16 1x1 1 1"])
CLASSIFIER = ("classifier", (20, 512), ["T 16 20 2x2 2 1 b"])
TABLE = [INITIAL, DOWN1, STAGE1, DOWN2, *STAGES_2_3, UP4, STAGE4, UP5, STAGE5, CLASSIFIER]


def described(layer):
    transposed = "T " if isinstance(layer, nn.ConvTranspose2d) else ""
    kernel, bias = "x".join(map(str, layer.kernel_size)), " b" if layer.bias is not None else ""
    numbers = f"{layer.in_channels} {layer.out_channels} {kernel} {layer.stride[0]} {layer.dilation[0]}"
    return transposed + numbers + bias


def features(output):
    """Of what a block gives: without the places of its pooling."""
    return output[0] if isinstance(output, tuple) else output


def test_layers_and_sizes_are_those_of_the_authors_table():
    model = build_model("enet", num_classes=20).eval()
    shapes, layers = {}, {name: [] for name, _, _ in TABLE}
    for name, layer in model.named_modules():
        block = name.partition(".")[0]
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and block in layers:
            layer.register_forward_hook(lambda layer, _, out, block=block: layers[block].append(described(layer)))
        if name in layers:
            layer.register_forward_hook(lambda _l, _i, out, name=name: shapes.update({name: features(out).shape}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 512, 512))
    assert {name: tuple(shape[1:3]) for name, shape in shapes.items()} == {name: size for name, size, _ in TABLE}
    assert layers == {name: convolutions for name, _, convolutions in TABLE}


def table_parameters():
    """Weights and biases of the table's convolutions."""
    total = 0
    for text in (text for _, _, convolutions in TABLE for text in convolutions):
        words = text.removeprefix("T ").split()
        height, width = map(int, words[2].split("x"))
        total += int(words[0]) * int(words[1]) * height * width + (int(words[1]) if words[-1] == "b" else 0)
    return total


def test_parameters_are_those_of_the_table_and_the_papers_rounded():
    """The paper says 0.37 M. That is what is learnt and the running statistics, or what is learnt in both stages."""
    model = build_model("enet", num_classes=20)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.eps for layer in norms} == {1e-3}
    slopes = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.PReLU))
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    normalised = sum(layer.num_features for layer in norms)
    assert slopes == 16 + (16 + 16 + 64) * 5 + (32 + 32 + 128) * 17
    assert learnt == table_parameters() + 2 * normalised + slopes == 364_376
    assert round((learnt + 2 * normalised) / 1e6, 2) == 0.37
    assert round((learnt + 128 * 20 + 20) / 1e6, 2) == 0.37


@pytest.mark.parametrize(
    ("variant", "num_classes", "size", "expected"),
    [("authors", 20, (360, 640), 1_727_251_200), ("davidtvs", 12, (256, 512), 976_322_560)],
)
def test_multiplications(variant, num_classes, size, expected):
    """At 360x640 2 x 1.73 G = 3.45 GFLOP are convolutions; the paper's 3.83 says not what it counts besides."""
    macs = 0

    def count(layer, inputs, output):
        nonlocal macs
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs += layer.weight.numel() * pixels[0, 0].numel()

    model = build_model("enet", num_classes=num_classes, variant=variant).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, *size))
    assert macs == expected


def plain_bottleneck(x, w, dilation, activations):
    """encoder.lua and decoder.lua by functions: w has the convolutions, and the factors and shifts of the norms."""
    norm = lambda y, i: F.batch_norm(y, None, None, *w[f"norm{i}"], training=True, eps=1e-3)  # noqa: E731
    y = activations[0](norm(F.conv2d(x, w["first"]), 0))
    for kernel, bias, padding in w["middle"]:
        y = F.conv2d(y, kernel, bias, padding=padding, dilation=dilation)
    y = norm(F.conv2d(activations[1](norm(y, 1)), w["last"]), 2)
    return activations[2](x + y)


@pytest.mark.parametrize(("block", "dilation"), [("stage2.1", 2), ("stage2.2", 1), ("stage4.0", 1)])
def test_a_bottleneck_is_the_authors(block, dilation):
    """Activations after the first and the middle normalisation and after the sum, nowhere else."""
    torch.manual_seed(0)
    layer = build_model("enet", num_classes=5).get_submodule(block).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    convs = [part for part in layer.branch if isinstance(part, nn.Conv2d)]
    norms = [part for part in layer.branch if isinstance(part, nn.BatchNorm2d)]
    slopes = [part.weight for part in layer.modules() if isinstance(part, nn.PReLU)]
    activations = [lambda y, s=s: F.prelu(y, s) for s in slopes] or [F.relu] * 3
    weights = {f"norm{i}": (part.weight, part.bias) for i, part in enumerate(norms)}
    weights |= {"first": convs[0].weight, "last": convs[-1].weight}
    weights["middle"] = [(part.weight, part.bias, part.padding) for part in convs[1:-1]]
    x = torch.randn(2, convs[0].in_channels, 12, 10, dtype=torch.float64)
    for part in layer.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    torch.testing.assert_close(layer(x), plain_bottleneck(x, weights, dilation, activations))


def test_upsampling_is_the_authors():
    torch.manual_seed(0)
    layer = build_model("enet", num_classes=5).up5.double().eval()
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 64, 5, 4, dtype=torch.float64)
    _, places = F.max_pool2d(torch.randn(2, 16, 10, 8), 2, return_indices=True)
    norm = lambda y, n: F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, eps=1e-3)  # noqa: E731
    y = F.relu(norm(F.conv2d(x, layer.reduce[0].weight), layer.reduce[1]))
    y = F.conv_transpose2d(y, layer.enlarge.weight, layer.enlarge.bias, stride=2, padding=1, output_padding=1)
    y = norm(F.conv2d(F.relu(norm(y, layer.expand[0])), layer.expand[2].weight), layer.expand[3])
    pooled = norm(F.conv2d(x, layer.main[0].weight), layer.main[1])
    unpooled = torch.zeros(2, 16, 80, dtype=torch.float64).scatter(2, places.flatten(2), pooled.flatten(2))
    torch.testing.assert_close(layer(x, places), F.relu(unpooled.reshape(2, 16, 10, 8) + y))


def test_initial_block_is_the_authors():
    torch.manual_seed(0)
    block = build_model("enet", num_classes=5).initial
    images = torch.randn(2, 3, 8, 6)
    pooled = images.reshape(2, 3, 4, 2, 3, 2).amax((3, 5))  # 2x2, nothing overlaps
    joined = torch.cat([F.conv2d(images, block.conv.weight, block.conv.bias, stride=2, padding=1), pooled], 1)
    normed = F.batch_norm(joined, None, None, block.norm.weight, block.norm.bias, training=True, eps=1e-3)
    torch.testing.assert_close(block(images), F.prelu(normed, block.activation.weight))


def test_the_start_is_torch_7s():
    """Factors uniform in [0, 1]; transposed convolutions by their input channels."""
    torch.manual_seed(0)
    model = build_model("enet", num_classes=200)
    factors = torch.cat([layer.weight for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)])
    factors = factors.detach()
    assert 0.48 < float(factors.mean()) < 0.52
    assert 0.0 < float(factors.min()) < 0.01
    assert 0.99 < float(factors.max()) < 1.0
    bound = 1 / (16 * 4) ** 0.5
    assert 0.99 * bound < float(model.classifier.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(("num_classes", "parameters"), [(12, 350_652), (19, 351_660), (11, 350_652 - 16 * 9)])
def test_parameters_of_davidtvs_port(num_classes, parameters):
    model = build_model("enet", num_classes=num_classes, variant="davidtvs")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_davidtvs_upsampling_rectifies_only_the_sum():
    """ext_conv2 of davidtvs' UpsamplingBottleneck is a convolution and a normalisation."""
    torch.manual_seed(0)
    block = enet_davidtvs.UpsamplingBottleneck(8, 4, dropout=0.0).double().eval()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    _, places = F.max_pool2d(torch.randn(2, 4, 6, 6), 2, return_indices=True)
    main = F.max_unpool2d(block.main(x), places, 2)
    inner = block.enlarge(block.reduce(x), output_size=(6, 6))
    conv, norm = block.expand[2], block.expand[3]
    branch = norm(conv(F.relu(block.expand[0](inner))))
    assert float(branch.detach().min()) < 0
    torch.testing.assert_close(block(x, places, (6, 6)), F.relu(main + branch))


@pytest.mark.parametrize("variant", ["authors", "davidtvs"])
@pytest.mark.parametrize("size", [(64, 96), (45, 61), (17, 30)])
def test_logits_have_the_size_of_the_image(size, variant):
    torch.manual_seed(0)
    model = build_model("enet", num_classes=5, variant=variant)
    images = torch.randn(2, 3, *size)
    logits = model(images)["logits"]
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    learnt = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learnt)
    assert all(p.grad.abs().sum() > 0 for p in learnt if p.ndim > 1)
    assert model.eval()(images).shape == (2, 5, *size)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("ours", "theirs"), [(SharedPReLU, nn.PReLU), (lambda: ChannelPReLU(3), lambda: nn.PReLU(3))])
def test_prelus_are_pytorchs_with_their_gradients(ours, theirs, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64).to(memory_format=layout)
    results = []
    for layer in (ours().double(), theirs().double()):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
        results.append((y.detach(), leaf.grad, layer.weight.grad.double()))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def test_pooling_places_and_zero_channels():
    block = DownsamplingBottleneck(4, 8, dropout=0.0).eval()
    for p in block.branch.parameters():
        nn.init.zeros_(p)  # what is left is the pooled image
    x = torch.arange(4 * 16.0).reshape(1, 4, 4, 4)
    y, places = block(x)
    assert torch.equal(y[:, :4], F.max_pool2d(x, 2))
    assert y[:, 4:].abs().sum() == 0
    assert places[0, 0].tolist() == [[5, 7], [13, 15]]


def test_the_encoder_alone_learns_without_the_decoder():
    torch.manual_seed(0)
    model = build_model("enet", num_classes=3)
    images = torch.randn(2, 3, 45, 64)
    model.train_encoder_alone(True)
    logits = model(images)["logits"]
    assert logits.shape == (2, 3, 6, 8)
    loss = build_loss("enet", read_config("enet_camvid_paper", ["loss.class_weights=null"]).loss, 3)
    label = torch.randint(0, 3, (2, 45, 64))
    total, _ = loss({"logits": logits}, label)
    torch.testing.assert_close(total, F.cross_entropy(logits, label[:, ::8, ::8]))
    total.backward()
    without = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"up4", "stage4", "up5", "stage5", "classifier"}
    assert model.eval()(images).shape == (2, 3, 45, 64)
    model.train_encoder_alone(False)
    assert not model.encoder_classifier.weight.requires_grad
    assert model.classifier.weight.requires_grad
    assert isinstance(loss, ENetLoss)


def test_the_papers_class_weights():
    """p counts pixels without a label too, as e-lab's histogram does. Pixels by class in the 367 training labels."""
    counts = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967]
    shares = torch.tensor(counts, dtype=torch.float64) / (367 * 360 * 480)
    weights = torch.tensor(read_config("enet_camvid_paper").loss.class_weights, dtype=torch.float64)
    torch.testing.assert_close(weights, 1 / torch.log(1.02 + shares), rtol=0, atol=0.006)


ALONE = ("--config", "enet_camvid_paper", "train.iters=4", "train.encoder_iters=2", "train.num_workers=0")
ALONE += ("data.dataset=custom", STAGES, "loss.class_weights=null", "train.batch_size=2", "train.log_every=1")
ALONE += ("train.amp=null", "train.eval_every=1", "train.checkpoint_every=1")


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Data, the folder of an uninterrupted run of 2 + 2 updates, and what it printed."""
    folder = tmp_path_factory.mktemp("staged")
    data = write_data(folder / "data")
    printed = run_here(train_main, *ALONE, "--data", data, "--output", folder / "out")
    return data, run_folder(folder / "out"), printed


def test_two_stages_in_one_run(staged):
    _, folder, printed = staged
    assert "from step 0: the encoder alone\n" in printed
    assert "from step 2: encoder and decoder\n" in printed
    tables = numbers(folder)
    assert [row["step"] for row in tables["train.csv"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in tables["eval.csv"]] == ["3", "4"]  # scores of the network, not of the encoder
    assert read_state(folder / "best.safetensors").best_step > 2
    with open(folder / "train.csv") as stream:
        assert {float(row["learning_rate"]) for row in csv.DictReader(stream)} == {0.0005}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_in_either_stage_it_ends_with_the_same_digits(staged, tmp_path, stop, monkeypatch):
    data, reference, _ = staged
    update = Trainer._update

    def stopping(self, *batch):
        if self.step == stop:
            raise KeyboardInterrupt
        return update(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", stopping)
        run_here(train_main, *ALONE, "--data", data, "--output", tmp_path)
    run = run_folder(tmp_path)
    run_here(train_main, "--resume", run, "--data", data)
    assert numbers(run) == numbers(reference)
    assert read_state(run / "last.safetensors") == read_state(reference / "last.safetensors")
    mine, whole = (safetensors.torch.load_file(folder / "last.safetensors") for folder in (run, reference))
    assert mine.keys() == whole.keys()
    assert all(mine[key].equal(whole[key]) for key in mine)


def test_weights_of_the_network_before_variants_are_refused(tmp_path):
    """Its tensors are those of davidtvs' port, its function is not: two activations more."""
    data = write_data(tmp_path / "data")
    train(data, tmp_path / "out", 1, "model.variant=davidtvs", "schedule.warmup_iters=0", "train.eval_every=1")
    file = run_folder(tmp_path / "out") / "best.safetensors"
    assert load_network(file) is not None
    old = tmp_path / "old.safetensors"
    old.write_bytes(file.read_bytes().replace(b"variant: davidtvs", b"variant: null    ", 1))
    with pytest.raises(UserError, match=r"old.safetensors: fits another network: \d+ tensors are missing"):
        load_network(old)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("enett", {}, "unknown network 'enett': did you mean 'enet'"),
        ("enet", {"backbone": "resnet50"}, "no separate backbone"),
        ("enet", {"variant": "author"}, "network 'enet' has no variant 'author': did you mean 'authors'"),
        ("bisenet", {"variant": "authors"}, "network 'bisenet' has no variant 'authors': leave it out"),
    ],
)
def test_mistakes(name, words, message):
    with pytest.raises(UserError, match=message):
        build_model(name, **words)


def test_networks_without_an_encoder_of_their_own_are_refused(tmp_path):
    data = write_data(tmp_path / "data")
    with pytest.raises(UserError, match="train.encoder_iters: network 'enet', variant davidtvs, has no encoder"):
        train(data, tmp_path / "out", 4, "model.variant=davidtvs", "train.encoder_iters=2")
