from common.cli import UserError
from weights_convert.archs import find_arch
from weights_convert.conversion import Options, fill_source, start
from weights_convert.onnx_witness import onnx_outputs, require_same

import numpy as np
import pytest
from convert_tiny import tiny_arch


def prepared(name):
    """Both networks with the same random weights, not yet compared."""
    conversion = start(find_arch(name), None, paddle_side=False, options=Options())
    fill_source(conversion, None, None)
    conversion.target_network.load(conversion.pairing.to_paddle(conversion.source_network.tensors()))
    return conversion


def witness(conversion):
    names = conversion.arch.name, conversion.source.name
    return onnx_outputs(*names, conversion.num_classes, conversion.source_network, conversion.inputs[-1].images)


def test_onnx_runtime_agrees_and_is_believed_against_a_wrong_network():
    conversion = prepared("stdcnet813")
    outputs, network, images = witness(conversion), conversion.target_network, conversion.inputs[-1].images
    assert 0 < require_same("stdcnet813", outputs, network, images) <= 1e-5
    weight = network.tensors()["linear.weight"]
    network.load({"linear.weight": np.ascontiguousarray(weight[:, ::-1])})
    with pytest.raises(UserError, match="stdcnet813: ONNX Runtime departs from the Paddle network by"):
        require_same("stdcnet813", outputs, network, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "stdc1_seg", "stdc1_seg_paddleseg"])
def test_onnx_runtime_agrees(name):
    conversion = prepared(name)
    images = conversion.inputs[-1].images
    assert 0 < require_same(name, witness(conversion), conversion.target_network, images) <= 1e-5


def test_an_export_that_fails_is_one_line(tmp_path):
    source = tiny_arch(tmp_path).sources[0].build(5)
    with pytest.raises(UserError, match="tiny: ONNX export ended with status 1: error: unknown --arch 'tiny'"):
        onnx_outputs("tiny", "here", 5, source, np.zeros((1, 3, 97, 129), np.float32))
