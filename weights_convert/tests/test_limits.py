"""Time and memory of whole conversions, file to file."""

import json
import subprocess
import sys

import pytest

MEASURED = """
import json, re, sys, time
start = time.perf_counter()
from pathlib import Path
import timm, torchvision
from weights_convert.archs import find_arch
from weights_convert.torch2paddle import Options, convert

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

imports = status("VmRSS")
conversion, written = convert(find_arch(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Options())
seconds, cpu = time.perf_counter() - start, time.process_time()
print(json.dumps([seconds, cpu, status("VmHWM") - imports, conversion.proof.largest]))
"""
SAVED = """
import sys, torch
from weights_convert.archs import find_arch
torch.save(find_arch(sys.argv[1]).sources[0].build(1000).module.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "limit_s"), [("resnet101", 30), ("hrnet_w48", 60)])
def test_the_largest_conversions_stay_within_time_and_memory(arch, limit_s, tmp_path):
    checkpoint = tmp_path / "w.pth"
    subprocess.run([sys.executable, "-c", SAVED, arch, str(checkpoint)], check=True)
    command = [sys.executable, "-c", MEASURED, arch, str(checkpoint), str(tmp_path / "w.pdparams")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, cpu, memory, largest = json.loads(result.stdout.splitlines()[-1])
    size = checkpoint.stat().st_size
    networks = 2 * size  # the source's and the Paddle network's tensors
    print(f"{arch}: {seconds:.1f} s, {cpu:.1f} CPU s, {memory / size:.2f} x the checkpoint, {largest:.1e}")
    assert memory <= 3 * size + networks
    # Processor time, which another load on the machine does not change; alone on two cores the clock shows less.
    assert cpu < limit_s
    assert largest <= 1e-5
