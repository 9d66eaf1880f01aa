"""Write the page about the reference results from their runs in MLflow: ``python -m benchmarks.reference``.

``make reference`` first trains them: the four modalities on NW-UCLA with preset ``best``, once with held-out clips, on
which the fusion weights are fitted, and with several seeds on all training clips. This command takes the options of
that sweep (``sweeps/modalities.py``), finds it by them in the tracking store, and writes its page,
``docs/reproduction/nw-ucla.md``, with pictures: accuracies with intervals, learning curves, what is confused, errors by
class, subject and view, and focal joints. Everything on the page is read or computed from the runs; test clips are only
scored.

  python -m benchmarks.reference --dataset datasets/nw-ucla --preset best --refit --refit-seeds 3
  python -m benchmarks.reference --run-id ENSEMBLE_RUN_ID --out page/nw-ucla.md
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reference_page import describe_machine, draw_pictures, page
from benchmarks.reference_runs import load
from fgst.cli.sweep_parser import build_parser
from fgst.cli.sweep_spec import new_spec
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.opening import find_sweep
from fgst.sweep.options import SweepOptions
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduction" / "nw-ucla.md"


def find_ensemble(store: TrackingStore, definition: SweepDefinition, options: SweepOptions) -> str:
    """Return the run id of the ensemble that the sweep over modalities with these options has built at its end.

    Raises:
        InputError: if there is no such sweep, or it is not complete.
    """
    spec, factory, _ = new_spec(definition, options)
    sweep = find_sweep(spec, factory.dataset, store)
    if sweep is None:
        raise InputError(f"{store.uri} has no sweep over modalities with these options: run it first (make reference)")
    refit = store.run(sweep).data.tags.get(Tags.REFIT)
    ensemble = store.run(refit).data.tags.get(Tags.ENSEMBLE) if refit else None
    if ensemble is None:
        raise InputError(f"sweep {sweep} is not complete: resume it first, with --refit (make reference)")
    return ensemble


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run-id", metavar="RUN_ID", help="an ensemble of sweeps/modalities.py --refit")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="the page (default: %(default)s)")
    own, rest = parser.parse_known_args(argv)
    definition = runpy.run_path(str(ROOT / "sweeps" / "modalities.py"))["definition"]
    options = SweepOptions.from_values(vars(build_parser(definition, __doc__).parse_args(rest)))
    try:
        store = TrackingStore.existing(options.tracking_uri)
        reference = load(
            store, store.full_run_id(own.run_id) if own.run_id else find_ensemble(store, definition, options)
        )
    except InputError as error:
        sys.exit(str(error))
    own.out.parent.mkdir(parents=True, exist_ok=True)
    draw_pictures(reference, store, own.out.parent.parent / "pictures")
    own.out.write_text(page(reference, describe_machine()), encoding="utf-8")
    print(f"wrote {own.out}")


if __name__ == "__main__":
    main()
