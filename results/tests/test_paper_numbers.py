"""Published numbers: a true part of the larger collection, and each one that stands beside a run is said once."""

from common.cli import UserError
from results.experiments import read_experiments, references_of
from results.make_tables import ROOT
from results.paper_numbers import COLUMNS, corrected, is_from_memory, is_ours, read_numbers

import pytest
import yaml

REFERENCE = ROOT.parent / "shared" / "reference" / "paper_numbers.csv"


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the larger collection does not lie beside the repository")
def test_the_file_is_what_its_command_takes_from_the_larger_collection():
    assert read_numbers() == tuple(corrected(row) for row in read_numbers(REFERENCE) if is_ours(row))


def test_ocnets_numbers_are_those_of_its_readme():
    rows = {
        (row["dataset"], row["split"], row["value"]): row["source"] for row in read_numbers() if row["model"] == "OCNet"
    }
    assert ("ADE20K", "val", "45.45") in rows
    assert ("ADE20K", "val", "45.08") not in rows
    assert "its table of results has 81.7" in rows["Cityscapes", "test", "81.2"]


def test_numbers_that_nobody_looked_up_keep_their_mark():
    numbers = read_numbers()
    gi_net = [row for row in numbers if row["model"] == "GINet" and row["dataset"] == "ADE20K"]
    assert [(row["value"], is_from_memory(row)) for row in gi_net] == [("45.54", True)]
    assert sum(is_from_memory(row) for row in numbers) == 49
    assert not any(is_from_memory(row) for row in numbers if row["source"].startswith("MichaelFan01"))


def test_networks_of_others_are_left_out():
    row = dict.fromkeys(COLUMNS, "")
    assert is_ours(row | {"model": "GINet (PaddleSeg)"})
    assert not is_ours(row | {"model": "GSCNN (PaddleSeg)"})
    assert not is_ours(row | {"model": "PSANet"})


def test_a_row_without_source_is_refused(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text(",".join(COLUMNS) + "\nENet,t,1,2016,CamVid,val,ENet,none,x,mIoU,51.3,ss,0.4,\n")
    with pytest.raises(UserError, match="row 2: a cell or the source is missing"):
        read_numbers(path)


def test_the_seeds_numbers_stand_in_their_rows():
    experiments = read_experiments()

    def numbers(project, config):
        return {(ref.kind, ref.value) for ref in references_of(experiments[project, config])}

    assert numbers("stdc_seg", "stdc2_seg50_80k_bs36") == {("original", 74.37), ("paper", 74.24)}
    assert ("original", 78.1) in numbers("semsegpaddle_glore", "pspnet_res101_cityscapes")
    assert numbers("encnet_single_gpu", "pspnet") == {("original", 38.6), ("paper", 41.68)}
    assert ("original", 35.3) in numbers("encnet_single_gpu", "pspnet_background")
    assert numbers("encnet_single_gpu", "encnet") == {("original", 37.3), ("paper", 41.11)}
    voc = [47.5, 49.16, 48.87, 63.44, 60.15]
    configs = ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "pspnet_resnet50", "deeplabv3_resnet50")
    for config, value in zip(configs, voc, strict=True):
        assert numbers("awesome_pytorch_seg", f"{config}_pascal_voc") == {("original", value)}


def test_iterations_and_scope_are_those_of_the_configs():
    checked = 0
    for (project, config), experiment in read_experiments().items():
        name = config.removesuffix("_background")
        path = ROOT / "projects" / project / "configs" / f"{name}.yaml"
        if not path.is_file():  # made by flags, from the project's default
            assert project == "awesome_pytorch_seg"
            path = path.with_name("default.yaml")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert tree["scope"] == experiment.scope, config
        assert experiment.iters in (0, tree["train"]["iters"]), config
        checked += 1
    assert checked > 30


def test_every_number_is_found_and_comparable_or_says_why():
    for experiment in read_experiments().values():
        for reference in references_of(experiment):
            assert reference.measured_as or reference.why or reference.split != experiment.split
            assert reference.source


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: paper, find: {model: ENet, dataset: CamVid (11), split: val, value: 1.0}, why: x}", "0 rows"),
        ("{kind: paper, value: 1.0, why: x}", "either 'find' or all of"),
        ("{kind: original, value: 1.0, split: val, source: s}", "say 'measured_as', or 'why'"),
        ("{kind: rumour, value: 1.0, split: val, source: s}", "kind"),
    ],
)
def test_mistakes_in_a_reference_are_named(tmp_path, entry, message):
    path = tmp_path / "experiments.yaml"
    path.write_text(
        "experiments:\n  - project: p\n    config: c\n    model: m\n    data: d\n    protocol: ss\n    scope: reduced\n"
        f"    command: x\n    needs: y\n    references: [{entry}]\n"
    )
    with pytest.raises(UserError, match=message):
        references_of(read_experiments(path)["p", "c"])
