"""CPU settings that a framework reads once, when it is imported: call `configure_cpu` before that."""

from __future__ import annotations

import os
from pathlib import Path


def configure_cpu() -> None:
    """Sets thread count and matrix-library dispatch for this process, leaving alone what the user has set.

    - `OMP_NUM_THREADS`: all physical cores that this process may use, shared among the processes of a distributed run.
      Paddle uses one thread without it; two threads made a STDC2-Seg training step 1.4 times as fast.
    - `MKL_DEBUG_CPU_TYPE=5` on AMD processors with AVX2: the MKL that Paddle ships looks for "GenuineIntel" and
      otherwise runs code from before AVX2. With it a STDC2-Seg step is 2.0 times as fast
      (projects/stdc_seg/benchmark.py). MKL versions since 2020.1 ignore the variable; Intel processors need none.
    """
    processes = int(os.environ.get("PADDLE_TRAINERS_NUM") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, physical_cores() // processes)))
    cpu = _cpu_info()
    if "AuthenticAMD" in cpu and " avx2 " in cpu:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def physical_cores() -> int:
    """Returns how many physical cores this process may use: its affinity without hyper-threads, and its quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add(cpu)
    return max(1, min(len(cores), _cgroup_quota()))


def _cgroup_quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return 10**6 if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 10**6


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
