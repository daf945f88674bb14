"""Makes the page's images of a run: a few validation images of the toy data, with label and prediction.

    python results/make_panels.py projects/stdc_seg/output/quickstart_s0_20261121_3c5f26a

The folder is the one that training left, with best.safetensors in it; the run must be recorded (record.py). The
project's own predict.py or demo.py predicts. The images go to results/panels/<project>/<run>/. Only the toy data
is shown: images of other data sets are not ours to publish.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.images.encode import jpeg_bytes, palette_png_bytes
from common.images.read import read_label
from common.labels import LabelSet, label_set
from common.samples.list_dataset import ListDataset, Sample
from common.samples.roots import TOY_ALIASES, find_root
from results.recorded_runs import RecordedRun, read_recorded

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
COUNT = 3  # images, evenly over the validation list
LONGEST_SIDE = 320  # pixels in the page


def main() -> None:
    """Runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run folder with best.safetensors")
    args = parser.parse_args()
    written = make_panels(args.run, ROOT)
    print(f"written: {len(written)} images in {written[0].parent}; now: python results/make_tables.py")


def make_panels(folder: Path, root: Path) -> list[Path]:
    """Predicts and writes the images of the run in `folder`; returns their paths.

    Raises:
        UserError: The run is not recorded, not of toy data, or its weights are missing.
    """
    run = read_recorded(folder)
    weights = folder / "best.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing: give the folder that training left")
    if run.env["scope"] != "smoke":
        raise UserError(f"{folder}: scope {run.env['scope']}: only runs of toy data are shown")
    if not (root / "results" / "runs" / run.project / run.name).is_dir():
        raise UserError(f"{run.name} is not in results/runs/{run.project}: record it first (results/record.py)")
    labels = labels_of(run.env["dataset"])
    samples = _samples(run, labels)
    target = root / "results" / "panels" / run.project / run.name
    with tempfile.TemporaryDirectory() as scratch:
        predictions = _predict(run.project, weights, [path for path, _ in samples], Path(scratch), root)
        written = []
        for (path, sample), prediction in zip(samples, predictions, strict=True):
            written += _write(target / path.stem, sample, prediction, labels)
    return written


def labels_of(dataset: str) -> LabelSet:
    """The classes of the toy data as env.json names it: "toy" (Cityscapes' form) or "toy_<label set>"."""
    return label_set("cityscapes" if dataset == "toy" else dataset.removeprefix("toy_"))


def _samples(run: RecordedRun, labels: LabelSet) -> list[tuple[Path, Sample]]:
    data = run.config["data"]
    name = Path(data["root"]).name
    data_root = find_root(f"data/{TOY_ALIASES[name]}" if name in TOY_ALIASES else data["root"])
    if data_root is None:
        raise UserError(f"{data['root']} is missing: the project's quickstart draws it")
    dataset = ListDataset(labels, data_root, data["val_list"])
    chosen = [number * len(dataset) // COUNT for number in range(COUNT)]
    return [(Path(dataset.pairs[index].image), dataset.load(index)) for index in chosen]


def _predict(project: str, weights: Path, images: list[Path], output: Path, root: Path) -> list[np.ndarray]:
    """Train ids of every image, by the project's own command."""
    is_demo = (root / "projects" / project / "demo.py").is_file()
    words = ("demo.py", "--input-pic", "--outdir") if is_demo else ("predict.py", "--input", "--output")
    command = [sys.executable, words[0], "--weights", str(weights.resolve()), words[1]]
    command += [str(path.resolve()) for path in images] + [words[2], str(output)]
    done = subprocess.run(command, cwd=root / "projects" / project, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"projects/{project}/{words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    found = [sorted(output.rglob(f"{path.stem}_ids.png")) for path in images]
    if any(len(paths) != 1 for paths in found):
        raise UserError(f"projects/{project}/{words[0]} left no <image>_ids.png for every image")
    return [read_label(paths[0]) for paths in found]


def _write(stem: Path, sample: Sample, prediction: np.ndarray, labels: LabelSet) -> list[Path]:
    """Writes <stem>_image.jpg, _label.png and _prediction.png, all of one small size."""
    height, width = sample.label.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (round(width * scale), round(height * scale))  # OpenCV: (width, height)
    palette = np.zeros((256, 3), np.uint8)
    palette[: labels.num_classes] = labels.palette
    files = {
        "image.jpg": jpeg_bytes(cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)),
        "label.png": palette_png_bytes(cv2.resize(sample.label, size, interpolation=cv2.INTER_NEAREST), palette),
        "prediction.png": palette_png_bytes(cv2.resize(prediction, size, interpolation=cv2.INTER_NEAREST), palette),
    }
    paths = []
    for name, data in files.items():
        paths.append(stem.with_name(f"{stem.name}_{name}"))
        with atomic_write(paths[-1], "wb") as stream:
            stream.write(data)
    return paths


if __name__ == "__main__":
    run_command(main)
