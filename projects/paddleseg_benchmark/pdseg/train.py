"""The command of PaddleSeg's static-graph code, `python pdseg/train.py --cfg ...`: the same as static_train.py."""

from common.cli import run_command
from paddleseg_benchmark.static_train import main

if __name__ == "__main__":
    run_command(main)
