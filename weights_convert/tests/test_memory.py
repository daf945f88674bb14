"""Memory of whole conversions, file to file. Their times are measured: results/speed.md."""

import json
import subprocess
import sys

import pytest

MEASURED = """
import json, re, sys
from pathlib import Path
import timm, torchvision
from weights_convert.archs import find_arch
from weights_convert.torch2paddle import Options, convert

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

imports = status("VmRSS")
conversion, written = convert(find_arch(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Options())
print(json.dumps([status("VmHWM") - imports, conversion.proof.largest]))
"""
SAVED = """
import sys, torch
from weights_convert.archs import find_arch
torch.save(find_arch(sys.argv[1]).sources[0].build(1000).module.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet101", "hrnet_w48"])
def test_the_largest_conversions_stay_within_memory(arch, tmp_path):
    checkpoint = tmp_path / "w.pth"
    subprocess.run([sys.executable, "-c", SAVED, arch, str(checkpoint)], check=True)
    command = [sys.executable, "-c", MEASURED, arch, str(checkpoint), str(tmp_path / "w.pdparams")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    memory, largest = json.loads(result.stdout.splitlines()[-1])
    size = checkpoint.stat().st_size
    networks = 2 * size  # the source's and the Paddle network's tensors
    print(f"{arch}: {memory / size:.2f} x the checkpoint, {largest:.1e}")
    assert memory <= 3 * size + networks
    assert largest <= 1e-5
