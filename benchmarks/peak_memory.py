"""Run a command and say how long it took and what it held in memory, with all the processes that it started.

  python -m benchmarks.peak_memory python -m data_prep.ntu corpus.zip out --edition 60 --workers 4

Proportional set sizes are added up (a page that n processes share counts 1/n for each), sampled ten times a second.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil


def measured(process: psutil.Process) -> dict[str, float]:
    """MiB by kind of process, now."""
    sizes: dict[str, float] = {}
    for one in [process, *process.children(recursive=True)]:
        try:
            kind = one.name() if one.name() in ("raylet", "gcs_server") or "ray::" in " ".join(one.cmdline()) else ""
            sizes[kind or "python"] = sizes.get(kind or "python", 0) + one.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
    return sizes


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    peak: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            try:
                now = measured(psutil.Process(process.pid))
            except psutil.Error:
                return
            peak = max(peak, now, key=lambda sizes: sum(sizes.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    parts = ", ".join(f"{kind} {size:,.0f}" for kind, size in sorted(peak.items()))
    print(f"{time.perf_counter() - began:.1f} s, peak {sum(peak.values()):,.0f} MiB ({parts})", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
