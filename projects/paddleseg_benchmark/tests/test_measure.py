import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from common.cli import UserError
from paddleseg_benchmark.matrix import measure
from paddleseg_benchmark.matrix.measure import Cell, batches, make_batch, one_line, run_steps

import numpy as np
import pytest


class Stepper:
    """Answers with given losses, scales and skipped steps; notes the batches it saw."""

    def __init__(self, results):
        self.results = iter(results)
        self.seen = []

    def run(self, images, labels):
        self.seen.append((images, labels))
        loss, skipped, scale = next(self.results)
        return SimpleNamespace(loss=loss, skipped=skipped, scale=scale)

    def peak_gpu_memory_gib(self):
        return None


def test_warm_up_counts_in_losses_and_not_in_times(monkeypatch):
    clock = itertools.count()  # a second passes from each look to the next
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    results = [
        (4.0, False, 8.0),
        (float("nan"), True, 4.0),
        (3.0, False, 4.0),
        (float("inf"), True, 2.0),
        (2.0, False, 2.0),
    ]
    record = run_steps(Stepper(results), iter([("images", "labels")] * 5))
    assert record["losses"] == [4.0, None, 3.0, None, 2.0]
    assert record["loss_scales"] == [8.0, 4.0, 4.0, 2.0, 2.0]
    assert record["skipped_steps"] == 2
    assert record["step_ms"] == record["load_ms"] == [1000, 1000, 1000]


def test_every_synthetic_batch_is_the_same_and_as_a_network_expects_it():
    cell = Cell("paddleseg", "unet", batch=3, height=40, width=50)
    found = list(batches(cell, 4))
    assert len(found) == 4
    images, labels = found[0]
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (3, 3, 40, 50),
        np.float32,
        (3, 40, 50),
        np.int64,
    )
    assert set(np.unique(labels)) <= {*range(19), 255}
    assert len(np.unique(labels)) > 10
    for again in found[1:] + [make_batch(cell)]:
        assert np.array_equal(images, again[0]) and np.array_equal(labels, again[1])


def test_batches_from_files_are_crops_of_the_embedded_data_and_the_same_in_every_round(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "TOY_ROOT", tmp_path)
    cell = Cell("paddleseg", "unet", batch=2, height=32, width=64, loader="toy")
    first, second = list(batches(cell, 3)), list(batches(cell, 3))
    assert len(first) == 3
    for (images, labels), (same_images, same_labels) in zip(first, second, strict=True):
        assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
            (2, 3, 32, 64),
            np.float32,
            (2, 32, 64),
            np.int64,
        )
        assert np.array_equal(images, same_images) and np.array_equal(labels, same_labels)
        assert -1 <= images.min() < images.max() <= 1
        assert set(np.unique(labels)) <= {*range(19), 255}
    assert not np.array_equal(first[0][0], first[1][0])


def test_memory_is_that_of_this_process_and_grows_with_it():
    # In a process of its own: the peak of this one may already lie above anything that the test allocates.
    program = """
from types import SimpleNamespace
from paddleseg_benchmark.matrix.measure import memory
import numpy as np
on_cpu = SimpleNamespace(peak_gpu_memory_gib=lambda: None)
before = memory(on_cpu)
block = np.ones(2**26)
print(*before, *memory(on_cpu))
"""
    large_parent = np.ones(2**27)  # 1 GiB, which must not be counted as the child's
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, kind, after, same_kind = done.stdout.split()
    assert kind == same_kind == "rss"
    assert 0.45 < float(after) - float(before) < 0.55  # the block has half a GiB
    assert float(before) < 1 and large_parent[0] == 1


def test_of_a_long_error_of_paddle_the_summary_is_kept():
    rule = "----------------------"
    summary = "ResourceExhaustedError: Out of memory on GPU 0.\n  [Hint: smaller batch]\n"
    text = f"\n\nC++ Traceback\n0 paddle::something\n{rule}\nError Message Summary:\n{rule}\n{summary}"
    expected = "RuntimeError: ResourceExhaustedError: Out of memory on GPU 0. [Hint: smaller batch]"
    assert one_line(RuntimeError(text)) == expected
    assert one_line(MemoryError("no room")) == "MemoryError: no room"
    long = one_line(ValueError("begin " + "x" * 1000 + " end"))
    assert len(long) == 300 and long.startswith("ValueError: begin") and long.endswith(" end")


def run(*words):
    command = [sys.executable, str(Path(measure.__file__)), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_cell_is_measured_into_its_file(tmp_path):
    out = tmp_path / "cell.json"
    ended = run("--model", "fastscnn", "--size", "64", "96", "--steps", "2", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    result = json.loads(out.read_text())
    assert len(result["step_ms"]) == len(result["load_ms"]) == 2
    assert len(result["losses"]) == 4
    assert result["losses"][-1] < result["losses"][0]  # the same batch again and again
    assert result["parameters"] == 1_420_342  # paddleseg 2.8.0's FastSCNN with 19 classes
    assert 0 <= result["evaluation_miou_percent"] <= 100
    assert 0 < result["memory_at_start_gib"] < result["peak_memory_gib"]


def test_a_peer_is_measured_without_paddle(tmp_path):
    out = tmp_path / "cell.json"
    code = (
        "import runpy, sys; sys.modules['paddle'] = None\n"  # an import of it would fail
        f"sys.argv = ['measure.py', '--library', 'timm', '--model', 'fcn_hrnet_w18', '--precision', 'bf16', '--layout',"
        f" 'NHWC', '--size', '64', '64', '--steps', '1', '--out', {str(out)!r}]\n"
        f"runpy.run_path({measure.__file__!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(out.read_text())["parameters"] == 9_641_119  # as paddleseg's FCN with HRNet_W18


def test_what_cannot_be_measured_here_is_one_line(tmp_path):
    with pytest.raises(UserError, match="fastscnn: not supported here: "):
        measure.open_stepper(Cell("paddleseg", "fastscnn", precision="bf16"))
    with pytest.raises(UserError, match="did you mean 'fastscnn'"):
        measure.open_stepper(Cell("paddleseg", "fastscn"))
    ended = run("--library", "smp", "--model", "fastscnn", "--out", str(tmp_path / "x"))
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: smp has no network 'fastscnn': valid: deeplabv3p_resnet50, deeplabv3_resnet50, pspnet_resnet50\n"
    )
