import argparse
import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

from common.cli import CommandParser, UserError, did_you_mean, few, not_negative, positive
from common.files import atomic_write, sha256_of
from common.machine.cpu import configure_cpu, physical_cores
from common.weights.pdparams import read_pdparams

import numpy as np
import pytest


def test_atomic_write_replaces_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as stream:
        stream.write("one\n")
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write("half of two")
        raise RuntimeError
    assert path.read_bytes() == b"one\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_atomic_write_names_the_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error, atomic_write(path, "wb") as stream:
        stream.write(b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_atomic_write_respects_the_umask(tmp_path):
    with atomic_write(tmp_path / "a") as stream:
        stream.write("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def run_main(body):
    script = f"import os\nfrom common.cli import UserError, run_command\ndef main():\n    {body}\nrun_command(main)\n"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("print('x')", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('a is\\n wrong: do b')", 1, "error: a is wrong: do b\n"),
        (
            "raise OSError(28, 'full', 'f.txt')",
            1,
            "error: no space left on the device while writing f.txt: free some, run again\n",
        ),
        (
            "raise OSError(13, 'denied', 'f.txt')",
            1,
            "error: no permission for f.txt: choose another place or change its rights\n",
        ),
        ("raise KeyboardInterrupt", 130, "error: stopped by the keyboard\n"),
    ],
)
def test_how_commands_end(body, status, stderr):
    result = run_main(body)
    assert (result.returncode, result.stderr) == (status, stderr)


def test_an_error_has_a_bound():
    begin, end = run_main("raise UserError('a' * 9000 + 'z' * 9000)").stderr.split(" ... ")
    assert (begin, end) == ("error: " + 2000 * "a", 2000 * "z" + "\n")


def test_our_own_defects_keep_their_traceback():
    result = run_main("1 / 0")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_did_you_mean():
    assert did_you_mean("itres", ["iters", "seed"]) == "did you mean 'iters'? valid: iters, seed"
    assert did_you_mean("zzz", ["iters"]) == "valid: iters"


def test_cpu_settings_leave_the_users_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    configure_cpu()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_DEBUG_CPU_TYPE"]) == ("7", "4")


@pytest.mark.parametrize(("processes", "share"), [("1", 1), ("2", 2), ("1000", 1000)])
def test_processes_share_the_cores(monkeypatch, processes, share):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", processes)
    configure_cpu()
    assert int(os.environ["OMP_NUM_THREADS"]) == max(1, physical_cores() // share)
    assert 1 <= physical_cores() <= os.cpu_count()


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [("vendor_id: AuthenticAMD\nflags: fma avx2 bmi\n", "5"), ("vendor_id: GenuineIntel\nflags: avx2 x\n", None)],
)
def test_mkl_is_told_of_avx2_on_amd_only(monkeypatch, cpu, expected):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr("common.machine.cpu._cpu_info", lambda: cpu)
    configure_cpu()
    assert os.environ.pop("MKL_DEBUG_CPU_TYPE", None) == expected


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_pdparams_gives_arrays_and_drops_the_rest(tmp_path):
    import paddle

    state = {"w": paddle.to_tensor(np.arange(6, dtype=np.float32).reshape(2, 3)), "b": paddle.ones([2])}
    paddle.save(state, str(tmp_path / "w.pdparams"))
    arrays = read_pdparams(tmp_path / "w.pdparams")
    assert set(arrays) == {"w", "b"}
    np.testing.assert_array_equal(arrays["w"], np.arange(6).reshape(2, 3))


def test_pdparams_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    for content in ({"w": Bomb(mark)}, Bomb(mark), {"w": np.array([Bomb(mark)], dtype=object)}):
        (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="refused, nothing in it was run"):
            read_pdparams(tmp_path / "w.pdparams")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2])])
def test_other_pdparams_are_refused(tmp_path, content):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pdparams"):
        read_pdparams(tmp_path / "w.pdparams")
    with pytest.raises(UserError, match="no weight file"):
        read_pdparams(tmp_path / "none.pdparams")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--weights x --formats onx", "argument --formats: 'onx': did you mean 'onnx'? valid: paddle, onnx"),
        ("--weights x --format=onnx --sise 3", "--sise is no option: did you mean --size? see export.py --help"),
        ("--wieghts=x", "--wieghts is no option: did you mean --weights? see export.py --help"),
        ("--weights x --zzz 1", "--zzz is no option: see export.py --help"),
        ("--formats onnx", "the following arguments are required: --weights"),
        ("--weights x stray", "unrecognized arguments: stray"),
        ("--weights x --size wide", "argument --size: invalid int value: 'wide'"),
    ],
)
def test_a_mistake_in_the_words_is_one_line_with_the_nearest_name(words, message, capsys):
    parser = CommandParser("Exports.", prog="export.py")
    parser.add_argument("--formats", choices=["paddle", "onnx"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words.split())
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out, captured.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian --config x", "argument {train,val}: 'trian': did you mean 'train'? valid: train, val"),
        ("train --conifg x", "--conifg is no option: did you mean --config? see compat.py train --help"),
        ("train --config x --what", "--what is no option: see compat.py train --help"),
        ("val --config x", "--config is no option: see compat.py val --help"),
    ],
)
def test_a_mistake_in_a_subcommand_is_its_own(words, message, capsys):
    parser = CommandParser("Two commands.", prog="compat.py")
    commands = parser.add_subparsers(required=True, metavar="{train,val}")
    commands.add_parser("train", description="Trains.").add_argument("--config", required=True)
    commands.add_parser("val", description="Evaluates.")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words.split())
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


@pytest.mark.parametrize("text", ["1", "7", "0"])
def test_numbers_of_words(text):
    assert not_negative(text) == int(text)
    if text != "0":
        assert positive(text) == int(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "two", "", "²", "1" * 5000])
def test_what_is_no_whole_number_is_refused(text):
    for kind in (positive, not_negative):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a number from"):
            kind(text)


def test_without_abbreviations_the_begin_of_a_name_is_none(capsys):
    parser = CommandParser("Trains.", prog="train.py", allow_abbrev=False)
    parser.add_argument("--model")
    with pytest.raises(SystemExit):
        parser.parse_args(["--mode", "x"])
    assert capsys.readouterr().err == "error: --mode is no option: did you mean --model? see train.py --help\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_terminal_cannot_encode_comes_as_an_escape(stream):
    script = f"import sys\nfrom common.cli import run_command\nrun_command(lambda: print('路 1', file=sys.{stream}))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True
    )
    assert (done.returncode, getattr(done, stream)) == (0, b"\\u8def 1\n")


def test_few_names_of_many():
    assert few([]) == "none"
    assert few(("a", "b", "c")) == "a, b, c"
    assert few([1, 2, 3, 4]) == "1, 2, 3, ..."
    assert few([Path("a"), Path("b")], 1) == "a, ..."
