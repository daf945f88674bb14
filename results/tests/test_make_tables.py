"""The generated files: same inputs, same bytes; every edit and every stale file is found and named."""

import shutil

from common.cli import UserError
from results.curve_drawing import draw_all
from results.experiments import read_superseded
from results.make_tables import BEGIN, END, ROOT, build, main
from results.sealed_png import is_sealed, seal
from results.speed_questions import ratios_of
from results.speed_table import speed_page

import cv2
import numpy as np
import pytest
from results_tree import MARKED, PROJECTS, add_test_score, make_tree, write_run

DIGEST = "ab" * 32


@pytest.fixture
def made(tree):
    """A tree with two runs whose files are all made."""
    for seed in (0, 1):
        write_run(tree / "results/runs/stdc_seg", seed=seed, scores=(40.0, 60.0 + seed), scope="reduced")
    assert main([], tree) == 0
    return tree


def check(tree, capsys):
    capsys.readouterr()
    status = main(["--check"], tree)
    return status, capsys.readouterr().out


def test_what_was_just_made_is_up_to_date(made, capsys):
    assert check(made, capsys) == (0, "results: all files are as made\n")


def test_the_same_runs_give_the_same_bytes(made, tmp_path_factory):
    again = make_tree(tmp_path_factory.mktemp("again"))
    shutil.copytree(made / "results/runs", again / "results/runs", dirs_exist_ok=True)
    main([], again)
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) > 15
    for file in files:
        assert (made / file).read_bytes() == (again / file).read_bytes(), file


EDITED = ("results/README.md", "results/tables/stdc_seg.md", "results/speed.md", "results/site/index.html")


@pytest.mark.parametrize("name", EDITED)
def test_a_text_edited_by_hand_is_named(made, capsys, name):
    text = (made / name).read_text()
    (made / name).write_text(text.replace("mIoU", "miou", 1) if "mIoU" in text else text + "x")
    status, output = check(made, capsys)
    assert status == 1
    assert output == f"{name}: stale, or edited by hand\nrun python results/make_tables.py\n"
    main([], made)
    assert (made / name).read_text() == text


@pytest.mark.parametrize("name", ["README.md", "projects/stdc_seg/README.md"])
def test_a_number_edited_in_a_readme_is_named_and_the_rest_is_free(made, capsys, name):
    text = (made / name).read_text()
    assert "60.50 ± 0.71" in text
    (made / name).write_text(text.replace("60.50", "61.50"))
    assert check(made, capsys)[1].startswith(f"{name}: stale, or edited by hand\n")
    (made / name).write_text(text.replace("after", "something else"))
    assert check(made, capsys)[0] == 0


def test_an_image_edited_by_hand_is_named(made, capsys):
    (path,) = (made / "results/curves").glob("*/*.png")
    good = path.read_bytes()
    name = path.relative_to(made)
    for bad in (
        good[:3000] + bytes([good[3000] ^ 1]) + good[3001:],
        cv2.imencode(".png", np.zeros((9, 9)))[1].tobytes(),
    ):
        path.write_bytes(bad)
        assert check(made, capsys) == (1, f"{name}: stale, or edited by hand\nrun python results/make_tables.py\n")
    main([], made)
    assert path.read_bytes() == good


def test_files_without_run_are_named_and_removed(made, capsys):
    for name in ("results/curves/stdc_seg/gone.png", "results/tables/gone.md"):
        (made / name).write_text("x")
    status, output = check(made, capsys)
    assert status == 1
    assert "results/curves/stdc_seg/gone.png: belongs to no run" in output
    assert "results/tables/gone.md: belongs to no run" in output
    main([], made)
    assert check(made, capsys)[0] == 0
    assert not (made / "results/tables/gone.md").exists()


def test_a_new_run_makes_its_files_stale_and_only_them(made, capsys):
    (old,) = (made / "results/curves").glob("*/*.png")
    before = old.stat().st_mtime_ns
    write_run(made / "results/runs/encnet_single_gpu", "encnet_single_gpu")
    status, output = check(made, capsys)
    assert status == 1
    stale = {line.partition(":")[0] for line in output.splitlines()[:-1]}
    assert "results/tables/encnet_single_gpu.md" in stale
    assert "results/tables/stdc_seg.md" not in stale
    main([], made)
    assert len(list((made / "results/curves").glob("*/*.png"))) == 2
    assert old.stat().st_mtime_ns == before


def test_a_readme_without_marks_is_named(made, capsys):
    (made / "README.md").write_text("no marks")
    assert check(made, capsys)[1].startswith("README.md: without the marks for its table\n")
    with pytest.raises(UserError, match=r"README.md: no marks for the table"):
        main([], made)


def test_a_damaged_run_stops_everything_and_is_named(made):
    (run,) = (made / "results/runs/stdc_seg").glob("*_s0_*")
    (run / "eval.csv").write_text((run / "eval.csv").read_text().replace("60.0000", "70.0000"))
    with pytest.raises(UserError, match=r"quickstart_s0_.*mIoU 70.0 is not the mean"):
        main(["--check"], made)


def test_images_of_a_run_that_is_not_recorded_are_refused(made):
    (made / "results/panels/stdc_seg/gone_s0_20261121_0000000").mkdir(parents=True)
    with pytest.raises(UserError, match="images of a run that is not recorded"):
        build(made)


def test_what_a_run_writes_stays_text_in_the_tables(tree):
    write_run(tree / "results/runs/stdc_seg", config="a", command="train.py | x `y` <b>", protocol="<i>ss</i> | all")
    main([], tree)
    page = (tree / "results/tables/stdc_seg.md").read_text()
    assert "&lt;i&gt;ss&lt;/i&gt; \\| all" in page
    assert "`train.py \\| x 'y' <b>`" in page
    assert "<i>" not in page


def lines_of(tree, name="results/README.md"):
    return (tree / name).read_text().splitlines()


def test_numbers_stand_where_they_belong(tree):
    names = []
    for seed in (0, 1):
        run = write_run(
            tree / "results/runs/stdc_seg", config="x", seed=seed, scores=(40.0, 60.0 + seed), scope="reduced"
        )
        add_test_score(run, 200, 55.0 + seed)
        names.append(run.name)
    write_run(tree / "results/runs/stdc_seg", seed=0)
    main([], tree)
    text = "\n".join(lines_of(tree))
    assert "### toy, val and test; ss, whole image\n" in text
    row = next(line for line in text.splitlines() if "60.50" in line)
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 7
    assert cells[:6] == [
        "net `x`",
        "stdc_seg",
        "val 60.50 ± 0.71 (60.50 ± 0.71)<br>test 55.50 ± 0.71",
        "&nbsp;<br>&nbsp;",
        "–<br>–",
        "200; 2 seeds",
    ]
    assert f"[0123456](runs/stdc_seg/{names[1]}), [repeat](tables/stdc_seg.md#{names[1]})" in cells[6]
    assert f"### {names[1]}\n" in (tree / "results/tables/stdc_seg.md").read_text()
    toy = text.partition("<details><summary>Toy data")[2]
    assert "60.00 (50.00)" in toy.partition("</details>")[0]
    assert all(line.count(" | ") <= 6 for line in text.splitlines() if line.startswith("|"))


def test_where_nothing_was_measured_the_tables_say_so(tree):
    main([], tree)
    for name in ("README.md", "results/README.md", "projects/stdc_seg/README.md"):
        assert "Nothing was measured on photographs yet." in (tree / name).read_text(), name


def test_what_was_not_run_has_its_hours_and_its_command(made):
    pspnet = next(line for line in lines_of(made) if "`pspnet_res101_cityscapes`" in line)
    assert "78.10 (original, val)" in pspnet
    assert "38 GPU h" in pspnet
    assert "train.py --cfg pspnet_res101_cityscapes model.backbone_weights=FILE" in pspnet
    assert any(line.startswith("### Cityscapes, about ") for line in lines_of(made))


def test_a_number_that_is_not_comparable_has_a_note(tree):
    write_run(tree / "results/runs/encnet_single_gpu", "encnet_single_gpu", config="linknet_camvid", scope="reduced")
    main([], tree)
    lines = lines_of(tree)
    row = next(line for line in lines if "`linknet_camvid`" in line)
    assert "val 60.00 (50.00)<br>test not measured | &nbsp;<br>69.10 (paper)<sup>1</sup> | –<br>–" in row
    note = next(line for line in lines if line.startswith("<sup>1</sup>") and "576x768" in line)
    assert note.startswith("<sup>1</sup> not comparable: test split there, where ours was not measured; 576x768")
    hero = next(line for line in lines_of(tree, "README.md") if "LinkNet" in line)
    assert hero.count(" | ") == 4


def test_weights_of_a_superseded_run_are_refused(made):
    run = next(iter(read_superseded()))
    path = made / "results/weights" / f"{run}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with pytest.raises(UserError, match=f"{path.name}: weights of a superseded run"):
        build(made)


def test_readmes_keep_what_is_around_the_marks(made):
    for name in PROJECTS:
        text = (made / "projects" / name / "README.md").read_text()
        assert text.startswith(MARKED.partition(BEGIN)[0] + BEGIN)
        assert text.endswith(END + "\n\nafter\n")


def test_speed_answers_questions_with_the_ratio_first(tree, capsys):
    folder = tree / "results/benchmarks/stdc_seg"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "results/benchmarks/stdc_seg/20261121_3c5f26a", folder / "20261121_3c5f26a")
    main([], tree)
    text = (tree / "results/speed.md").read_text()
    question = text.partition("## A training step of STDC2-Seg (4 x 128x256) beside paddleseg's\n")[2].partition("##")[
        0
    ]
    table, _, others = question.partition("<details>")
    assert "| **1.65** (1.60 to 1.72) | paddleseg's STDCSeg | the same threads and CPU settings, 2 thread(s) |" in table
    assert "| 448 ms | 739 ms |" in table
    assert table.count("**") == 2
    assert "**3.60**" in others
    behind = text.partition("<details><summary>Settings and numbers</summary>")[2]
    assert "`benchmark.py --repeats 5 --output bench_out`" in behind
    assert "AMD EPYC, Linux x86_64, 2 threads" in behind
    assert "[speedups.csv](benchmarks/stdc_seg/20261121_3c5f26a/speedups.csv)" in behind
    assert cv2.imread(str(tree / "results/speed.png")).shape[1] == 900
    (tree / "results/speed.png").unlink()
    assert check(tree, capsys)[1].startswith("results/speed.png: stale")
    main([], tree)
    shutil.rmtree(folder)
    assert "results/speed.png: belongs to no run" in check(tree, capsys)[1]


def test_every_recorded_benchmark_has_a_question(tmp_path):
    page = speed_page(ROOT / "results/benchmarks")
    assert {ratio.fair for ratio in page.ratios} == {True}
    for path in (ROOT / "results/benchmarks").glob("*/*/speedups.csv"):
        for ratio in ratios_of(path.parts[-3], path):
            assert ratio.low <= ratio.ratio <= ratio.high
            assert f"## {ratio.question}" in page.text


def test_columns_of_older_and_newer_benchmarks_are_read_alike(tmp_path):
    for folder, name in (("20261121_6729af5", "speedups.csv"), ("20261121_6729af5_loader", "loader.csv")):
        old = ROOT / "results/benchmarks/awesome_pytorch_seg" / folder / name
        new = tmp_path / name
        new.write_text(old.read_text().replace("picture", "image"))
        assert ratios_of("awesome_pytorch_seg", new) == ratios_of("awesome_pytorch_seg", old) != []


def test_seals():
    png = cv2.imencode(".png", np.arange(300, dtype=np.uint8).reshape(10, 10, 3))[1].tobytes()
    sealed = seal(png, DIGEST)
    assert is_sealed(sealed, DIGEST)
    assert not is_sealed(sealed, "cd" * 32)
    assert not is_sealed(png, DIGEST)
    assert not is_sealed(b"", DIGEST)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(sealed, np.uint8), 1), cv2.imdecode(np.frombuffer(png, np.uint8), 1)
    )
    for position in range(len(sealed)):
        assert not is_sealed(sealed[:position] + bytes([sealed[position] ^ 4]) + sealed[position + 1 :], DIGEST)


def test_a_curve_does_not_depend_on_those_drawn_before_it():
    def spec(top, label):
        lines = [{"label": label, "steps": [1, 2, 3], "miou_percent": [1.0, 2.0, top]}]
        references = [{"label": "paper", "value": 70.0, "comparable": True}] if top > 50 else []
        return {"title": f"$x_{top}$", "lines": lines, "references": references}

    first, second = spec(90.0, "a"), spec(3.0, "b")
    assert draw_all([first, second]) == draw_all([first]) + draw_all([second])


def test_the_committed_files_are_as_made(capsys):
    status = main(["--check"])
    assert status == 0, capsys.readouterr().out
