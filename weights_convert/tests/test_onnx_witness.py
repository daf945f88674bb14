from common.cli import UserError
from weights_convert import onnx_witness
from weights_convert.archs import find_arch
from weights_convert.conversion import Options, fill_source, start
from weights_convert.onnx_witness import onnx_difference

import numpy as np
import pytest
from convert_tiny import tiny_arch


def prepared(name):
    conversion = start(find_arch(name), None, paddle_side=False, options=Options())
    fill_source(conversion, None, "")
    conversion.target_network.load(conversion.pairing.to_paddle(conversion.source_network.tensors()))
    return conversion


def witness(conversion):
    networks = conversion.source_network, conversion.target_network
    images = conversion.inputs[-1].images
    return onnx_difference(conversion.arch.name, conversion.source.name, conversion.num_classes, *networks, images)


def test_onnx_runtime_agrees_and_is_believed_against_a_wrong_network(tmp_path):
    conversion = prepared("stdcnet813")
    assert 0 < witness(conversion) <= 1e-5
    weight = conversion.target_network.tensors()["linear.weight"]
    conversion.target_network.load({"linear.weight": np.ascontiguousarray(weight[:, ::-1])})
    with pytest.raises(UserError, match="stdcnet813: ONNX Runtime departs from the Paddle network by"):
        witness(conversion)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "stdc1_seg", "stdc1_seg_paddleseg"])
def test_onnx_runtime_agrees(name):
    assert 0 < witness(prepared(name)) <= 1e-5


def test_an_export_that_fails_is_one_line(tmp_path):
    arch = tiny_arch(tmp_path)
    source, target = arch.sources[0].build(5), arch.build(5)
    with pytest.raises(UserError, match="tiny: ONNX export ended with status 1: error: unknown --arch 'tiny'"):
        onnx_difference("tiny", "here", 5, source, target, np.zeros((1, 3, 97, 129), np.float32))


def test_the_limit_is_the_proof_s():
    assert onnx_witness.LIMIT == 1e-5
