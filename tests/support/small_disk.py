"""A sweep that runs out of disk space and is resumed; `test_faults.py` runs this module on a small file system."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support import small
from tests.support.workspace import TIMEOUT, TINY, Workspace

GRID = ["--dataset", "data", "--preset", "tiny", "--values", "2,4,6", "--epochs", "14", *TINY]


def main() -> None:
    folder = Path(sys.argv[1])
    small.write_small(folder / "data")
    workspace = Workspace(folder)
    try:
        process = workspace.start(*GRID, "--max-concurrent", "2")
        sweep = workspace.wait_for_epoch(process, 2)
        filler = folder / "filler"
        try:  # fill the disk
            with filler.open("wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass
        except OSError as error:
            print(error.strerror)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130, err
        assert "Traceback" not in err, err
        last = err.splitlines()[-1]
        assert "disk full: free some space, then resume with: python " in last, err
        assert last.endswith(f"focal_k.py --resume {sweep} --max-concurrent 2"), err
        interrupted = {child.info.run_id for child in workspace.store.children(sweep)}
        filler.unlink()
        resumed = workspace.sweep("--resume", sweep, "--max-concurrent", "2")
        assert resumed.returncode == 0, resumed.stderr
        children = workspace.store.children(sweep)
        assert interrupted <= {child.info.run_id for child in children}
        assert [child.info.status for child in children] == ["FINISHED"] * 3
        assert [workspace.epochs(child) for child in children] == [14] * 3
    finally:
        workspace.kill_all()


if __name__ == "__main__":
    main()
