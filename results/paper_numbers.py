"""The published numbers that stand beside ours: `paper_numbers.csv`, and how it was chosen.

    python results/paper_numbers.py REFERENCE.csv     # writes paper_numbers.csv from a larger collection

A row is taken over as it is, its source and the mark "from memory, unverified" with it, if its network is one that this
repository builds, by whatever code the number was reached. `CORRECTIONS` are what a look into the source showed since.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write

FILE = Path(__file__).with_name("paper_numbers.csv")
COLUMNS = (
    *("model", "paper_title", "arxiv", "year", "dataset", "split", "backbone", "pretrained", "input_or_crop"),
    *("metric", "value", "protocol", "params_m", "source"),
)
NETWORKS = (
    *("STDC1-Seg", "STDC2-Seg", "STDC1-Seg50", "STDC1-Seg75", "STDC2-Seg50", "STDC2-Seg75"),
    *("PSPNet", "DeepLabv3", "GloRe", "GINet"),
    *("FCN", "FCN-32s", "FCN-16s", "FCN-8s", "ENet", "ICNet", "DenseASPP", "EncNet", "BiSeNet", "DANet", "OCNet"),
    *("DUpsampling", "FastFCN", "DeepLabv3+", "RefineNet", "SemanticFPN", "LinkNet", "SegNet", "SegNet-Basic"),
    *("U-Net", "U-Net++", "HRNet"),
)
"""Names in the column `model`, without what follows in brackets: whose code it was, or a variant."""

CORRECTIONS = {
    ("OCNet", "ADE20K", "val", "45.08"): {
        "value": "45.45",
        "source": "openseg-group/OCNet.pytorch README at 679a45b",
    },
    ("OCNet", "Cityscapes", "test", "81.2"): {
        "source": "openseg-group/OCNet.pytorch README at 679a45b: in its text; its table of results has 81.7",
    },
}
"""By model, data set, split and value in the larger collection."""

Row = dict[str, str]


def is_ours(row: Row) -> bool:
    """Whether a row's network is one that this repository builds."""
    return row["model"].partition(" (")[0] in NETWORKS


def corrected(row: Row) -> Row:
    """The row with what its source really has."""
    return row | CORRECTIONS.get((row["model"], row["dataset"], row["split"], row["value"]), {})


@lru_cache
def read_numbers(path: Path = FILE) -> tuple[Row, ...]:
    """Reads a collection of published numbers.

    Raises:
        UserError: The columns are not `COLUMNS`, a value is not a number, or a row has no source.
    """
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = tuple(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path}: the columns must be {','.join(COLUMNS)}")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row["source"].strip():
            raise UserError(f"{path}, row {line}: a cell or the source is missing")
        try:
            float(row["value"])
        except ValueError:
            raise UserError(f"{path}, row {line}: '{row['value']}' is not a number") from None
    return rows


def is_from_memory(row: Row) -> bool:
    """Whether the number was not looked up."""
    return "from memory" in row["source"]


def main() -> None:
    """Runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("reference", type=Path, metavar="REFERENCE.csv", help="the larger collection")
    args = parser.parse_args()
    rows = [corrected(row) for row in read_numbers(args.reference) if is_ours(row)]
    with atomic_write(FILE) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {FILE}, {len(rows)} rows")


if __name__ == "__main__":
    run_command(main)
