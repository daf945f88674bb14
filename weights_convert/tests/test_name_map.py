import csv
import re
from pathlib import Path

from common.cli import UserError
from weights_convert.archs import all_archs, find_arch
from weights_convert.name_map import pair_tensors, read_name_map
from weights_convert.networks import PaddleNetwork, TorchNetwork

import numpy as np
import paddle
import pytest
import torch
from convert_tiny import MAP, TinyPaddle, TinyTorch

OFFICIAL = Path(__file__).parents[2] / "projects" / "stdc_seg" / "tests" / "official"
ONE_PER_TABLE = (
    "resnet18",
    "hrnet_w18",
    "xception65",
    "efficientnet_b0",
    "stdcnet813",
    "stdc1_seg",
    "stdc1_seg_paddleseg",
)


def all_sources():
    for arch in all_archs():
        for source in arch.sources:
            mark = () if arch.name in ONE_PER_TABLE else pytest.mark.slow
            yield pytest.param(arch, source, id=f"{arch.name}-{source.name}", marks=mark)


@pytest.mark.parametrize(("arch", "source"), all_sources())
def test_every_tensor_is_used_once_and_only_linears_are_transposed(arch, source):
    ours, theirs = arch.build(7), source.build(7)
    pairing = pair_tensors(read_name_map(source.name_map), theirs, ours)
    targets = [pair.target for pair in pairing.pairs]
    assert sorted(targets) == sorted(ours.shapes()) and len(set(targets)) == len(targets)
    used = [pair.source for pair in pairing.pairs] + list(pairing.left_out) + list(pairing.copies)
    assert sorted(used) == sorted(theirs.shapes())
    allowed = r".*num_batches_tracked|(cp\.backbone\.)?(bn|conv_last|fc|linear)\..*|conv_out_sp(2|4|16)\..*"
    assert all(re.fullmatch(allowed, name) for name in pairing.left_out)
    if not arch.name.startswith("stdc"):
        assert all(name.endswith("num_batches_tracked") for name in pairing.left_out) and not pairing.copies
    for pair in pairing.pairs:
        layer, _, tensor = pair.source.rpartition(".")
        types = theirs.layer_types(layer)
        expected = "transpose" if "Linear" in types and tensor == "weight" else "keep"
        if "InPlaceABN" in types and tensor == "weight":
            expected = "absolute_plus_1e-5"
        assert pair.transform == expected, pair


@pytest.mark.parametrize("name", ["stdcnet813", "stdcnet1446", "stdc1_seg", "stdc2_seg"])
def test_our_torch_networks_have_the_official_names_and_shapes(name):
    variant = "STDCNet813" if name in ("stdcnet813", "stdc1_seg") else "STDCNet1446"
    kind = "stdc_seg" if name.endswith("seg") else "stdcnet_classifier"
    with open(OFFICIAL / f"{kind}_official_{variant}.csv") as stream:
        official = {row["key"]: row["shape"] for row in csv.DictReader(stream)}
    arch = find_arch(name)
    found = arch.sources[0].build(arch.num_classes).shapes()
    assert {key: "x".join(map(str, shape)) or "scalar" for key, shape in found.items()} == official


def test_no_row_of_a_table_is_dead():
    for table in {source.name_map for arch in all_archs() for source in arch.sources}:
        name_map = read_name_map(table)
        arch, source = next((a, s) for a in all_archs() for s in a.sources if s.name_map == table)
        theirs = source.build(7)
        layers, tensors = set(theirs.layers()), set(theirs.shapes())
        for row in name_map.layers:
            before = layers
            layers = {re.sub(row.pattern, row.replacement, name) for name in layers}
            assert layers != before, f"{table}: {row.pattern}"
        for row in name_map.same_as:
            assert any(re.search(row.pattern, name) for name in tensors), f"{table}: {row.pattern}"
        for row in name_map.unused:
            assert any(re.fullmatch(row.pattern, name) for name in tensors), f"{table}: {row.pattern}"
        for pattern in name_map.stages:
            assert any(re.fullmatch(pattern, name) for name in theirs.layers()), f"{table}: {pattern}"
        assert name_map.classifier in theirs.layers()


def pair_tiny(tmp_path, table, module=None, layer=None):
    (tmp_path / "tiny.yaml").write_text(table)
    source, target = TorchNetwork(module or TinyTorch(5)), PaddleNetwork(layer or TinyPaddle(5, 1e-5))
    return pair_tensors(read_name_map(tmp_path / "tiny.yaml"), source, target)


def test_a_square_linear_is_transposed_and_a_codeword_matrix_is_not(tmp_path):
    pairing = pair_tiny(tmp_path, MAP)
    transforms = {pair.source: pair.transform for pair in pairing.pairs}
    assert transforms["hidden.weight"] == "transpose"  # a subclass of Linear
    assert transforms["encoding.codewords"] == "keep"
    square = {name: np.arange(64, dtype=np.float32).reshape(8, 8) for name in ("hidden.weight", "encoding.codewords")}
    tensors = TorchNetwork(TinyTorch(5)).tensors() | square
    converted = pairing.to_paddle(tensors)
    np.testing.assert_array_equal(converted["hidden.weight"], square["hidden.weight"].T)
    np.testing.assert_array_equal(converted["encoding.codewords"], square["encoding.codewords"])
    restored = pairing.to_source(converted, pairing.remainder(tensors))
    assert {name: value.tobytes() for name, value in restored.items()} == {n: v.tobytes() for n, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("replacement: stack", "replacement: stak"), "'blocks.0.0.weight' would fill 'stak.0.0.weight', which"),
        (("{layer: Encoding, ", "{layer: Encodin, "), "'encoding.codewords' belongs to a Encoding, a type of layer"),
        (("tensor: codewords", "tensor: codeword"), "Encoding has no tensor 'codewords' in the table"),
        (
            ("'^blocks', replacement: stack", r"'^blocks\.\d', replacement: stack.0"),
            "would both fill 'stack.0.0.weight'",
        ),
        (("'^blocks', replacement: stack", r"'^blocks(\.\d)\.0', replacement: 'stack\1.1'"), "of a Conv2d would fill"),
    ],
)
def test_a_table_that_does_not_fit_is_named(change, message, tmp_path):
    with pytest.raises(UserError, match="the name map does not fit the two networks") as error:
        pair_tiny(tmp_path, MAP.replace(*change))
    assert message in str(error.value)


def test_networks_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"'fc.weight' \(8, 6\) would fill 'fc.weight', which is \(8, 5\)"):
        pair_tiny(tmp_path, MAP, module=TinyTorch(6))
    larger = TinyPaddle(5, 1e-5)
    larger.extra = paddle.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"nothing fills 'extra.weight' \(and 1 more\)"):
        pair_tiny(tmp_path, MAP, layer=larger)
    wrong = TinyTorch(5)
    wrong.fc = torch.nn.Conv2d(8, 5, 1)
    with pytest.raises(UserError, match=r"'fc.weight' of a Conv2d would fill 'fc.weight' of a Linear, not of a Conv2D"):
        pair_tiny(tmp_path, MAP, module=wrong)


def test_second_names_and_unused_tensors(tmp_path):
    class Doubled(TinyTorch):
        def __init__(self):
            super().__init__(5)
            self.again = self.blocks
            self.idle = torch.nn.Linear(2, 2)

    rows = (
        MAP
        + "same_as:\n  - {pattern: '^again', replacement: blocks}\nunused:\n  - {pattern: 'idle\\..*', reason: idle}\n"
    )
    pairing = pair_tiny(tmp_path, rows, module=Doubled())
    assert pairing.copies["again.1.1.bias"] == "blocks.1.1.bias" and len(pairing.copies) == 14
    assert pairing.left_out["idle.bias"] == "idle"
    with pytest.raises(UserError, match="'again.0.0.weight' is called a second name of 'nowhere.0.0.weight'"):
        pair_tiny(tmp_path, rows.replace("'^again', replacement: blocks", "'^again', replacement: nowhere"), Doubled())
