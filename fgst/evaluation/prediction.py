"""Prediction for raw files: single files, folders, zip archives, and standard input."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgst.data.formats import find_format
from fgst.data.progress import tracked
from fgst.data.sources import MAX_FILE_BYTES, ClipError, open_source, read_path
from fgst.errors import InputError
from fgst.evaluation.inference import Predictor
from fgst.evaluation.scoring import NOT_FINITE
from fgst.parsing import printable

BATCH_SIZE = 64
STDIN = "-"
Read = Callable[[], bytes]


def predict_files(
    predictor: Predictor, files: Sequence[str], top_k: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Predict the classes of raw files, in order.

    Args:
        predictor: the networks.
        files: files, folders and zip archives, or ``-`` for standard input. If the networks' format has a file per
            frame, a folder of frames is a clip.
        top_k: number of classes per file.
        device: where to run the networks.

    Yields:
        ``{"file": …, "top": [{"class": …, "label": …, "probability": …}, …]}``, most likely class first, or
        ``{"file": …, "fault": …}`` if the file does not exist or is not a valid clip.

    Raises:
        InputError: if the networks' weights are not finite.
    """
    with ExitStack() as stack:
        sources = _list_files(files, predictor.card.preparation, stack)
        batch: list[tuple[str, np.ndarray | str]] = []
        for name, read in tracked(sources, len(sources), "reading clips"):
            try:
                batch.append((name, predictor.read(read())))
            except (ClipError, InputError, OSError) as error:
                batch.append((name, str(error)))
            if len(batch) == BATCH_SIZE:
                yield from _predict_batch(predictor, batch, top_k, device)
                batch = []
        yield from _predict_batch(predictor, batch, top_k, device)


def _predict_batch(
    predictor: Predictor, batch: Sequence[tuple[str, np.ndarray | str]], top_k: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Predict the clips among ``batch``; strings in place of clips are reasons why files are invalid."""
    clips = [clip for _, clip in batch if not isinstance(clip, str)]
    rankings = iter(predictor.top(clips, top_k, device) if clips else [])
    for name, clip in batch:
        if isinstance(clip, str):
            yield {"file": name, "fault": clip}
        elif ranking := next(rankings):
            yield {"file": name, "top": ranking}
        else:
            yield {"file": name, "fault": NOT_FINITE}


def _list_files(files: Sequence[str], preparation: str, stack: ExitStack) -> list[tuple[str, Read]]:
    """List names and readers of all files; zip archives stay open until ``stack`` is closed.

    A file, folder or archive that cannot be used is listed with a reader that raises the reason, so that it does not
    keep the others from being classified.
    """
    raw_format = find_format(preparation)
    suffix = raw_format.suffix
    sources: list[tuple[str, Read]] = []
    for name in files:
        path = Path(name)
        if name == STDIN:
            sources.append(("stdin", lambda: sys.stdin.buffer.read(MAX_FILE_BYTES + 1)))
        elif os.path.isdir(name) or path.suffix.lower() == ".zip":
            hint = f"this network reads {suffix} files"
            try:
                source = stack.enter_context(open_source(path, suffix=suffix, max_bytes=MAX_FILE_BYTES, hint=hint))
            except InputError as error:
                sources.append((printable(name), functools.partial(_fail, str(error))))
                continue
            clips = raw_format.clips_of(source.files) if raw_format.clips_of else source.files
            if not clips:
                sources.append((printable(name), functools.partial(_fail, f"contains no clip; {hint}")))
            for file in sorted(clips, key=lambda file: file.path):
                sources.append((f"{printable(name.rstrip('/'))}/{file.path}", file.read))
        else:
            sources.append((printable(name), functools.partial(read_path, path, MAX_FILE_BYTES)))
    return sources


def _fail(fault: str) -> bytes:
    raise ClipError(fault)
