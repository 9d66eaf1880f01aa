"""What the differences between the rows of a table mean, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgst.sweep.noise import Difference
from fgst.sweep.race import RaceState
from fgst.sweep.report.tables import row_heading
from fgst.sweep.results import Row
from fgst.sweep.selection import WinnerEstimate
from fgst.sweep.spec import SweepSpec

MAX_NAMES = 12  # rows listed by name; a search has hundreds


def conclusions(
    spec: SweepSpec,
    rows: Sequence[Row],
    baseline: str | None,
    estimate: WinnerEstimate | None,
    race: RaceState | None = None,
) -> list[str]:
    """Sentences for below the table: which rows differ, with other seeds and on other clips, and the winner's worth.

    Args:
        baseline: label of the row that differences refer to.
        estimate: of the best row.
        race: state of a race.
    """
    compared = [row for row in rows if row.finished and row.label != baseline]
    reference = next((row for row in rows if row.label == baseline and row.finished), None)
    sentences = []
    if compared and reference is not None:
        sentences = _differences(spec, compared, reference.label)
    if race is not None:
        sentences += _race(spec, rows, race)
    if estimate is not None:
        sentences.append(
            f"The best row reached {estimate.reached:.1f} % on validation; choosing it among {estimate.candidates} "
            f"flatters it by about {max(0.0, estimate.bias):.1f} points: on other clips, expect "
            f"{estimate.honest:.1f} ± {estimate.half_width:.1f} %."
        )
    return sentences


def _differences(spec: SweepSpec, rows: Sequence[Row], baseline: str) -> list[str]:
    def of_seeds(row: Row) -> Difference | None:
        return row.test_difference if spec.compared_split == "test" else row.val_difference

    has_seeds, num_clips = any(of_seeds(row) for row in rows), sum(row.clip_difference is not None for row in rows)
    if spec.varies_folds and has_seeds:  # one interval covers both
        return [_sentence(spec, rows, of_seeds, baseline, "With other seeds and on other clips")]
    sentences = []
    if has_seeds:
        sentences.append(_sentence(spec, rows, of_seeds, baseline, "With other seeds, on these clips"))
    else:
        sentences.append(
            f"With fewer than two {spec.repetitions} in common with {baseline}, it is unknown which differences other "
            f"{spec.repetitions} would repeat (--seeds 3)."
        )
    if num_clips:
        where = "Also on other clips" if has_seeds else "On other clips, with these networks"
        sentences.append(_sentence(spec, rows, lambda row: row.clip_difference, baseline, where))
    if num_clips < len(rows) and not spec.varies_folds:
        which = "some rows" if num_clips else "the rows"
        sentences.append(
            f"The noise of clips is unknown for {which}: their scores are not stored, or are not of the same clips."
        )
    return sentences


def _race(spec: SweepSpec, rows: Sequence[Row], race: RaceState) -> list[str]:
    trained, left = sum(row.finished for row in rows), [row for row in rows if row.finished and not row.dropped]
    dropped = [f"{row_heading(spec, row)} (after {row.dropped.after})" for row in rows if row.dropped is not None]
    outcome = f"dropped: {_names(dropped)}" if dropped else "none was dropped"
    names = _names([row_heading(spec, row) for row in left])
    if race.due:
        return [
            f"The race is not complete: {race.rounds} of at most {spec.seeds} rounds; still in it: {names}; {outcome}."
        ]
    saved = spec.total - trained
    return [
        f"The race trained {trained} of at most {spec.total} trials ({saved} saved, {100 * saved / spec.total:.0f} %); "
        f"left: {names}; {outcome}. It keeps the best value with a probability of 95 % or more (with other seeds, on "
        "these clips); the intervals do not account for numbers of seeds that depend on the results."
    ]


def _sentence(
    spec: SweepSpec, rows: Sequence[Row], difference_of: Callable[[Row], Difference | None], baseline: str, where: str
) -> str:
    """Sort the rows that have this difference by what it means."""
    better: list[str] = []
    worse: list[str] = []
    similar: list[str] = []
    for row in rows:
        if (difference := difference_of(row)) is not None:
            group = similar if not difference.beyond_noise else better if difference.mean > 0 else worse
            group.append(row_heading(spec, row))
    parts = [f"{verdict}: {_names(names)}" for verdict, names in (
        (f"better than {baseline}", better), (f"worse than {baseline}", worse),
        (f"cannot be distinguished from {baseline}", similar),
    ) if names]  # fmt: skip
    number = len(better) + len(worse) + len(similar)
    corrected = f" (95 %, Holm's correction for {number} comparisons)" if number > 1 else " (95 %)"
    return f"{where}{corrected}: {'; '.join(parts)}."


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
