"""Run the commands of the documents on generated motion, and put their output and pictures into the documents.

A code block is replaced if the line before it is "<!-- sample: NAME -->". The runs stay in the working directory: a new
call resumes the step that was interrupted, and only rewrites the documents if all of them have finished. The picture of
the report needs Chromium; without it, the picture is kept.

Example:
  python tools/generate_samples.py            # make docs-samples: 10 to 20 minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/quickstart.md", "docs/champion.md")
MARKER = re.compile(r"(<!-- sample: (\S+) -->\n```\w*\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
RUN_ID = "[0-9a-f]{32}"
FOCAL_JOINTS = 6  # of the network that is explained: with all joints there is nothing to select

RESUME = ("--resume", "auto")  # the sweep that an earlier call began

Outputs = dict[str, str]


def best_of(output: str) -> str:
    """Return the run id in the last command of a sweep's output."""
    return re.findall(rf"--run-id ({RUN_ID})", output)[-1]


def sweep_of(output: str) -> str:
    """Return the sweep's own run id."""
    found = re.search(rf"^sweep ({RUN_ID}) in", output, re.MULTILINE)
    assert found, output
    return found[1]


def explained(done: Outputs) -> str:
    """Return the id of the sweep's best trial by validation that selects FOCAL_JOINTS."""
    runs = json.loads(done["trials"])["runs"]
    chosen = [run for run in runs if run["name"].startswith(f"K={FOCAL_JOINTS} ")]
    return str(max(chosen, key=lambda run: run["val_top1"])["run_id"])


# Each step's words after "python"; a step may use the outputs of the steps before it.
STEPS: dict[str, Callable[[Outputs], list[str]]] = {
    "sweep": lambda done: ["sweeps/focal_k.py", *RESUME],
    "trials": lambda done: ["-m", "fgst.runs", "list", "--sweep", sweep_of(done["sweep"]), "--json"],
    "evaluate": lambda done: ["-m", "fgst.evaluate", "--run-id", best_of(done["sweep"])],
    "ensemble": lambda done: [
        "sweeps/modalities.py",
        "--sweep",
        sweep_of(done["sweep"]),
        "--refit",
        "--resume",
        "auto",
    ],
    "explain": lambda done: ["-m", "fgst.explain", "--run-id", explained(done), "--out", "explained"],
}


def command(name: str, done: Outputs) -> str:
    """Return the line that a user types for a step."""
    return f"$ python {' '.join(STEPS[name](done))}\n"


def sweep_end(done: Outputs) -> str:
    """Return the last line of progress, and what follows."""
    output = done["sweep"]
    return output[output.rindex("[32/32]") :]


def ensemble_table(done: Outputs) -> str:
    """Return the rows of the single modalities and of all four, of the table on validation clips."""
    lines = done["ensemble"].splitlines()
    last = next(i for i, line in enumerate(lines) if "│ fitted " in line)
    first = max(i for i, line in enumerate(lines[:last]) if re.match(r"│ J +│ alone", line))
    rows = lines[first : last + 1]
    singles = [row for row in rows if "│ alone" in row]
    return "\n".join([*singles, "…", *(row for row in rows if "J + B + JM + BM" in row)]) + "\n"


SAMPLES: dict[str, Callable[[Outputs], str]] = {
    "sweep-end": sweep_end,
    "evaluate": lambda done: command("evaluate", done) + done["evaluate"],
    "ensemble": ensemble_table,
}


def run_steps(workdir: Path) -> Outputs:
    """Run the steps whose output the working directory does not have, and return the outputs of all."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "MLFLOW_TRACKING_URI": ""}
    done: Outputs = {}
    for name, words in STEPS.items():
        kept = workdir / f"{name}.txt"
        if not kept.exists():
            arguments = words(done)
            if arguments[0].startswith("sweeps/"):
                arguments[0] = str(ROOT / arguments[0])
            part = workdir / f"{name}.part"
            print(f"python {' '.join(arguments)} > {part}", flush=True)
            with part.open("w") as output:
                errors = None if "--json" in arguments else subprocess.STDOUT
                process = subprocess.Popen([sys.executable, "-u", *arguments], cwd=workdir, env=environment,
                                           stdout=output, stderr=errors)  # fmt: skip
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the command received the signal as well, and saves what it has
                process.wait()
                sys.exit("interrupted; the same command resumes")
            if code:
                lines = part.read_text().splitlines() or ["no output"]
                sys.exit(f"error: the command failed: {lines[-1]} (all of its output: {part})")
            part.rename(kept)
        # Titles and captions of tables are padded with spaces.
        text = re.sub(r" +$", "", kept.read_text(), flags=re.MULTILINE)
        done[name] = text.replace(f"{workdir}/", "…/fgst/")
    return done


def write_documents(done: Outputs) -> None:
    """Replace the samples in the documents."""
    for document in map(ROOT.joinpath, DOCUMENTS):
        text = document.read_text()
        new = MARKER.sub(lambda match: match[1] + SAMPLES[match[2]](done), text)
        if new != text:
            document.write_text(new)
            print(f"wrote {document.relative_to(ROOT)}")


def write_pictures(workdir: Path, done: Outputs) -> None:
    """Copy figures of the runs, and draw the sweep's report."""
    pictures = ROOT / "docs" / "pictures"
    shutil.copy(workdir / "explained" / "joints.png", pictures / "focal-map-demo.png")
    (kick,) = (workdir / "explained").glob("*-kick-with-the-left-foot.png")
    shutil.copy(kick, pictures / "focal-joints.png")
    (report,) = workdir.glob(f"mlruns/*/{sweep_of(done['sweep'])}/artifacts/report.html")
    # The ensemble of the refit sweep has no validation clips, so the picture is that of the sweep before.
    (ensemble,) = (
        picture
        for picture in workdir.glob("mlruns/*/*/artifacts/figures/subsets.png")
        if best_of(done["ensemble"]) not in picture.parts
    )
    shutil.copy(ensemble, pictures / "ensemble.png")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: docs/pictures/report.png is kept")
        return
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.25",
         "--window-size=1000,715", f"--screenshot={pictures / 'report.png'}", report.resolve().as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "samples", help="keeps the runs (default: samples)")
    workdir = parser.parse_args().workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    done = run_steps(workdir)
    write_documents(done)
    write_pictures(workdir, done)


if __name__ == "__main__":
    main()
