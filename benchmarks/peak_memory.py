"""Run a command and report its duration and the peak memory of its process and all child processes.

  python -m benchmarks.peak_memory python -m data_prep.ntu corpus.zip out --edition 60 --workers 4

Memory is the sum of proportional set sizes (a page shared by n processes counts 1/n for each), sampled ten times per
second.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil


def memory_by_process_type(process: psutil.Process) -> dict[str, float]:
    """Return the current memory in MiB of Ray's daemons and workers by name, and of all other processes together."""
    sizes: dict[str, float] = {}
    for member in [process, *process.children(recursive=True)]:
        try:
            is_ray = member.name() in ("raylet", "gcs_server") or "ray::" in " ".join(member.cmdline())
            name = member.name() if is_ray else "python"
            sizes[name] = sizes.get(name, 0) + member.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
    return sizes


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    peak: dict[str, float] = {}
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            try:
                current = memory_by_process_type(psutil.Process(process.pid))
            except psutil.Error:
                return
            peak = max(peak, current, key=lambda sizes: sum(sizes.values()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    ended.set()
    sampler.join()
    parts = ", ".join(f"{name} {size:,.0f}" for name, size in sorted(peak.items()))
    print(f"{time.perf_counter() - start:.1f} s, peak {sum(peak.values()):,.0f} MiB ({parts})", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
