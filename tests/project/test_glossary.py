"""Words that the project replaced by the field's terms must not return, neither as names nor in prose.

``RETIRED_NAMES`` and ``RETIRED_WORDS`` are the glossary: on the left what was retired, on the right what to write.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.support.source import ROOT

# Identifiers in Python code, in full.
RETIRED_NAMES = {
    "Aside": "BackgroundWorker",
    "Asker": "…Searcher",
    "Course": "TrialScheduler",
    "Outcome": "TrialResult",
    "Patient": "RetryingClient",
    "Place": "Workspace",
    "Question": "SweepDefinition",
    "ServerAway": "StoreUnavailable",
    "Tracking": "TrackingStore",
    "Trials": "TrialFactory",
    "begun": "started, run_ids",
    "clip_store": "loader",
    "elsewhere": "has_capacity_excluding",
    "foretold": "predicted",
    "fuses": "builds_ensemble",
    "growth": "autoscaling",
    "halved": "used_micro_batches",
    "heard": "metric_history",
    "impatient": "raw_client",
    "leaving": "preemption",
    "leftovers": "gc",
    "on_request": "optional",
    "packing": "gpu_sharing",
    "propose": "promote_if_better",
    "run_here": "run_local",
    "take_in": "flush_spools",
    "told": "messages, updates",
    "undisturbed": "uninterrupted",
    "used_up": "space_exhausted",
    "where_to_look": "ui_url",
}

# Idioms and personification in comments, docstrings, messages and documents.
RETIRED_WORDS = {
    r"anew": "again, new",
    r"as if nothing had (been|happened)": "like an uninterrupted …",
    r"(?<!, )as it is(?! recorded| typed| at the time)": "unchanged",
    r"at last": "finally",
    r"beside(?!s)": "next to",
    r"comes? no further": "makes no progress",
    r"for itself|(?<!fails )by itself": "on its own, automatically",
    r"foretold|foretells?": "predicted",
    r"(goes|go|going|gone|went) on": "continues, resumes",
    r"hears? of|tells? of|told": "is notified, is reported",
    r"(is|was|are|were) away": "is unreachable",
    r"in the middle of (it|this)": "incomplete",
    r"lies at|lies beside": "is at, is next to",
    r"meanwhile": "in the meantime, during",
    r"nobody": "nothing, no process",
    r"once more": "again",
    r"whoever": "the user, the caller",
}

# The user account `nobody` of Unix systems.
ALLOWED = {("fgst/ops/postgres.py", "nobody"), ("mlflow/README.md", "nobody")}
TEXT_SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".css", ".ini", ".service", ".sh")


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: the tracked files are unknown")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


THIS_FILE = Path(__file__).relative_to(ROOT).as_posix()


def test_python_code_uses_no_retired_name() -> None:
    uses = [
        f"{name}:{token.start[0]}: {token.string} -> {RETIRED_NAMES[token.string]}"
        for name in tracked_files()
        if name.endswith(".py")
        for token in tokenize.generate_tokens(io.StringIO((ROOT / name).read_text(encoding="utf-8")).readline)
        if token.type == tokenize.NAME and token.string in RETIRED_NAMES
    ]
    assert not uses, "\n".join(uses)


def test_texts_use_no_retired_word() -> None:
    patterns = {re.compile(rf"\b({words})\b", re.IGNORECASE): better for words, better in RETIRED_WORDS.items()}
    uses = [
        f"{name}:{number}: {match[0]!r} -> {better}: {line.strip()}"
        for name in tracked_files()
        if (name.endswith(TEXT_SUFFIXES) or name == "Makefile") and name != THIS_FILE
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        for pattern, better in patterns.items()
        if (match := pattern.search(line)) and (name, match[0]) not in ALLOWED
    ]
    assert not uses, "\n".join(uses)


@pytest.mark.parametrize("line", ["a training goes on", "Nobody answers", "it was away", "told again"])
def test_retired_words_are_recognized(line: str) -> None:
    assert any(re.search(rf"\b({words})\b", line, re.IGNORECASE) for words in RETIRED_WORDS)
