"""`kill -9` at random moments: no name holds half a file, and the next call of the same command comes to the same end.

Counts are small in the default suite; the slow tests kill a hundred times in all.
"""

import http.server
import json
import shutil
import threading
import zipfile
from functools import partial
from pathlib import Path

from common.files import atomic_write
from common.images.read import read_label
from common.lists.list_file import read_list
from common.toy_dataset import draw_toy, write_toy_dataset
from weights_convert.weight_files import read_weights

import numpy as np
import pytest
import yaml
from killing import Killer, killed_until_done
from targets import RESUMABLE, TARGETS, Command, below, checkpoint, finished_run_in, write_data
from testkit import numbers, run_folder

ZOO = TARGETS[-1]
FEW, MANY = 2, 12
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


def kill_all(killer, kills, trial, seed):
    """Kills a command `kills` times; `trial()` gives a fresh place: (words, look after each kill, check at the end)."""
    words, _, check = trial()
    whole = killer.run(words)
    assert whole.status == 0, whole.text[-3000:]
    check()
    moments, done = killer.moments(whole, seed), 0
    while done < kills:
        words, look, check = trial()
        done += killed_until_done(killer, words, moments, kills - done, look)
        check()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", RESUMABLE, ids=lambda target: target.name)
def test_a_training_killed_anywhere_ends_with_the_same_digits_and_keeps_its_best(target, tmp_path, tried):
    tried("train.py killed and resumed: the same bits at the end", target.name, MANY + 1)
    data, runs = write_data(tmp_path / "data"), tmp_path / "runs"
    every = (*target.key("train.eval_every", 5), *target.key("train.checkpoint_every", 3))
    names = iter(range(1000))

    def trial():
        output = runs / str(next(names))
        command = target.train(data, output, 10, *every, "--resume", "latest")
        best = []  # what best.safetensors was after the last kill that left one
        return command.words, partial(look_at_checkpoints, output, best), partial(same_as_the_first, runs, output)

    killer = Killer(target.train(data, runs, 10), runs)
    kill_all(killer, MANY + 1, trial, seed=1)
    killer.close()


def look_at_checkpoints(output, best):
    for path in output.glob("*/[!.]*.safetensors"):
        checkpoint(path)  # reads it whole
    found = list(output.glob("*/best.safetensors"))
    assert len(found) >= len(best), "best.safetensors was there and is gone"
    best[:] = found
    for path in output.glob("*/env.json"):
        json.loads(path.read_text())
    for path in output.glob("*/config.yaml"):
        assert yaml.safe_load(path.read_text())["train"]["iters"] == 10


def same_as_the_first(runs, output):
    folder, first = run_folder(output), run_folder(runs / "0")
    assert numbers(folder) == numbers(first)
    for name in ("best.safetensors", "last.safetensors"):
        assert checkpoint(folder / name) == checkpoint(first / name), f"{name} differs"
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")], "a killed run left its litter"


@pytest.mark.slow
def test_a_training_of_the_zoo_killed_anywhere_ends_with_the_same_digits(tmp_path, tried):
    tried("train.py killed and resumed: the same bits at the end", ZOO.name, MANY)
    data, runs = write_data(tmp_path / "data"), tmp_path / "runs"
    every = ("--do_eval", "--save_interval", "2")
    names = iter(range(1000))

    def trial():
        output = runs / str(next(names))
        best = []

        def look():
            for path in output.glob("*/[!.]*.safetensors"):
                checkpoint(path)  # reads it whole
            found = list(output.glob("*/best.safetensors"))
            assert len(found) >= len(best), "best.safetensors was there and is gone"
            best[:] = found

        words = ZOO.train(data, output, 5, *every, "--resume", "latest").words
        return words, look, partial(same_as_the_first, runs, output)

    killer = Killer(ZOO.train(data, runs, 5), runs)
    kill_all(killer, MANY, trial, seed=7)
    killer.close()


# Stands for measure.py, which takes seconds to load: a cell's numbers, always the same.
CELL = """
import json, os, sys
out = sys.argv[1]
result = {"step_ms": [100.0], "load_ms": [1.0], "losses": [3.0, 2.0], "loss_scales": [None] * 2, "skipped_steps": 0}
result |= {"parameters": 7, "evaluation_ms": 1.0, "evaluation_miou_percent": 2.0, "memory_at_start_gib": 0.5}
result |= {"peak_memory_gib": 1.0, "memory_kind": "rss"}
with open(out + ".tmp", "w") as stream:
    json.dump(result, stream)
os.rename(out + ".tmp", out)
"""


@pytest.mark.slow
def test_a_matrix_killed_anywhere_is_completed_by_the_same_line(tmp_path, tried):
    tried("run_matrix.py killed: the same line completes the matrix", ZOO.name, MANY)
    script = tmp_path / "cell.py"
    script.write_text(CELL)
    folders, names = tmp_path / "matrices", iter(range(1000))
    prepare = (
        "import sys\nfrom paddleseg_benchmark import run_matrix\n"
        f"run_matrix.cell_command = lambda cell, out, *_: [sys.executable, '-S', {str(script)!r}, str(out)]"
    )

    def trial():
        folder = folders / str(next(names))
        words = ("--preset", "zoo", "--models", "fastscnn", "deeplabv3p_resnet50", "--rounds", "2")

        def look():
            for path in folder.rglob("[!.]*.json"):
                json.loads(path.read_text())
            if (folder / "matrix.csv").exists():
                assert len((folder / "matrix.csv").read_text().splitlines()) == 1 + 4

        def check():
            text = (folder / "matrix.csv").read_text()
            assert text == (folders / "0" / "matrix.csv").read_text()
            assert text.count(",ok,2,101.00,") == 4  # cells of two rounds
            assert len(list((folder / "rounds").glob("*.json"))) == 4 * 2

        return (*words, "--output", str(folder)), look, check

    killer = Killer(Command("projects/paddleseg_benchmark/run_matrix.py", ()), folders, prepare)
    kill_all(killer, MANY, trial, seed=8)
    killer.close()


# --- lists, drawn data, records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", COUNTS)
def test_list_writing(kills, tmp_path, tried):
    """With --convert: labels are written as well as lists."""
    tried("lists and labels written: whole or not there", "common/create_dataset_list.py", kills)
    source = write_toy_dataset("cityscapes", tmp_path / "source", 8, 4, (64, 128))
    for path in source.rglob("*_labelTrainIds.png"):
        path.unlink()
    names = iter(range(1000))

    def trial():
        root = tmp_path / str(next(names))
        shutil.copytree(source, root)

        def look():
            for path in root.rglob("[!.]*_labelTrainIds.png"):
                assert read_label(path).shape == (64, 128)
            for path in root.glob("[!.]*.txt"):
                assert path.read_text() == (tmp_path / "0" / path.name).read_text()

        def check():
            look()
            assert [len(read_list(root / f"{name}.txt")) for name in ("train", "val")] == [8, 4]

        return ("cityscapes", str(root), "--convert"), look, check

    killer = Killer(Command("common/create_dataset_list.py", ()), tmp_path)
    kill_all(killer, kills, trial, seed=2)
    killer.close()


DRAW = """
import sys
from common.files import atomic_write
from common.toy_dataset import draw_toy
def main():
    draw_toy("cityscapes", sys.argv[1], 3, 2, (64, 128))
"""


@pytest.mark.parametrize("kills", COUNTS)
def test_drawing_the_toy_data(kills, tmp_path, tried):
    """As every train.py does where there is no data: the next call completes what a killed one began."""
    tried("toy data drawn: the next call completes it", "common/samples/list_dataset.py", kills)
    names = iter(range(1000))

    def trial():
        root = tmp_path / str(next(names))

        def look():
            for path in root.rglob("[!.]*.png"):
                assert read_label(path).shape[:2] == (64, 128)

        def check():
            assert below(root) == below(tmp_path / "0")  # killed copies leave hidden .tmp files, which nobody reads

        return (str(root),), look, check

    killer = Killer(Command("common/toy_dataset.py", ()), tmp_path, DRAW)
    kill_all(killer, kills, trial, seed=3)
    killer.close()


@pytest.mark.parametrize("written", range(6))
def test_drawing_goes_on_wherever_the_writing_of_lists_ended(written, tmp_path, monkeypatch):
    draw_toy("cityscapes", tmp_path / "whole", 3, 2, (64, 128))
    files = []

    def write(path):
        if len(files) == written:
            raise KeyboardInterrupt
        files.append(path)
        return atomic_write(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("common.lists.make.atomic_write", write)
        draw_toy("cityscapes", tmp_path / "cut", 3, 2, (64, 128))
    draw_toy("cityscapes", tmp_path / "cut", 3, 2, (64, 128))
    assert below(tmp_path / "cut") == below(tmp_path / "whole")


@pytest.mark.parametrize("kills", COUNTS)
def test_record(kills, tmp_path, tried):
    tried("a recorded run: whole or not there", "results/record.py", kills)
    finished_run, root = finished_run_in(tmp_path), tmp_path / "root"
    (root / "projects/stdc_seg").mkdir(parents=True)
    target = root / "results/runs/stdc_seg" / finished_run.name

    def trial():
        shutil.rmtree(root / "results", ignore_errors=True)

        def look():
            if target.exists():
                assert below(target) == below(finished_run)

        return (str(finished_run), "--unknown-code"), look, partial(same_folders, target, finished_run)

    prepare = f"import pathlib, results.record\nresults.record.ROOT = pathlib.Path({str(root)!r})"
    killer = Killer(Command("results/record.py", ()), root, prepare)
    kill_all(killer, kills, trial, seed=4)
    killer.close()


def same_folders(one, other):
    assert below(one) == below(other)


# --- downloads, conversions ------------------------------------------------------------------------------------------


class SlowFiles(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, a quarter of a megabyte every 10 ms, with ranges."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", '"1"')
        self.end_headers()
        try:
            for start in range(begin, len(content), 2**18):
                self.wfile.write(content[start : start + 2**18])
                threading.Event().wait(0.01)
        except OSError:
            pass  # the other side was killed

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """The address of a server that has one data set, its archive, and what is in that."""
    noise = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes()
    names = [f"SBUTrain4KRecoveredSmall/ShadowImages/{i}.jpg" for i in range(4)] + ["SBU-Test/ShadowMasks/b.png"]
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "SBU-shadow.zip", "w") as archive:
        for name in names:
            archive.writestr(f"SBU-shadow/{name}", noise)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(SlowFiles, directory=str(served)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield url, (served / "SBU-shadow.zip").read_bytes(), dict.fromkeys(names, noise)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kills", COUNTS)
def test_download(kills, mirror, tmp_path, tried):
    tried("a data set fetched and unpacked: whole folders or none", "awesome_pytorch_seg/data/download.py", kills)
    url, archive, content = mirror
    names = iter(range(1000))

    def trial():
        root = tmp_path / "roots" / str(next(names))

        def look():
            for folder in ("SBUTrain4KRecoveredSmall", "SBU-Test"):
                expected = {name for name in content if name.startswith(folder)}
                assert not (root / folder).exists() or {f"{folder}/{name}" for name in below(root / folder)} == expected

        def check():
            found = {name: data for name, data in below(root).items() if name.startswith("SBU")}
            assert found == content
            for path in (root / "archives").glob("*.zip"):  # killed before it could be removed
                assert path.read_bytes() == archive

        return ("sbu_shadow", "--root", str(root), "--mirror", url), look, check

    killer = Killer(Command("projects/awesome_pytorch_seg/data/download.py", ()), tmp_path / "roots")
    kill_all(killer, kills, trial, seed=5)
    killer.close()


@pytest.mark.slow
def test_weight_conversion(tmp_path, tried):
    tried("weights converted: every file whole", "weights_convert/torch2paddle.py", MANY)
    out = tmp_path / "out"
    names = iter(range(1000))

    def trial():
        folder = out / str(next(names))

        def look():
            for path in folder.glob("[!.]*"):
                if path.suffix in (".pdparams", ".safetensors"):
                    read_weights(path)
                if path.suffix == ".yaml":
                    assert yaml.safe_load(path.read_text())["files"]

        def check():
            look()
            first = {name: data for name, data in below(out / "0").items() if not name.endswith(".yaml")}
            assert {name: data for name, data in below(folder).items() if name in first} == first

        return ("--arch", "resnet18", "--weights", "random", "--out", str(folder / "w")), look, check

    killer = Killer(Command("weights_convert/torch2paddle.py", ()), out)
    kill_all(killer, MANY, trial, seed=6)
    killer.close()
