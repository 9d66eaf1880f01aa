"""On-disk layout of an Arrow data set, shared by the reader, the writer and the cache.

A data set is a directory with a description, ``dataset.json``, and one or more uncompressed Arrow IPC files of one
record batch each. One row is one clip.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa

from fgst.config import RecipeName
from fgst.data.normalization import read_normalization
from fgst.data.skeleton import Skeleton
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.integrity import check_digest
from fgst.parsing import Name, Number, Text, convert_json, decode_json, printable, shorten

FORMAT = 1
DESCRIPTION = "dataset.json"
INTEGER_COLUMNS = ("label", "subject", "camera", "setup", "replication", "num_persons", "num_frames")
# Further integer columns have this prefix and the name of a benchmark that is a list of clips. Their values:
SPLIT_PREFIX = "split_"
IN_NEITHER, IN_TRAIN, IN_TEST = 0, 1, 2


@dataclass(frozen=True)
class FileEntry:
    """One Arrow file as the description lists it.

    Raises:
        ValueError: if the name points outside the data set's directory.
    """

    name: Name
    bytes: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    sha256: Annotated[str, msgspec.Meta(max_length=64)]

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name in ("..", DESCRIPTION) or not self.name.isprintable():
            raise ValueError(f"file name {self.name!r} points outside the data set's directory")

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Describe an existing file."""
        return cls(path.name, path.stat().st_size, file_digest(path))


class Description(msgspec.Struct, forbid_unknown_fields=True):
    """The content of ``dataset.json``; see :class:`~fgst.data.dataset.ArrowDataset`.

    ``sha256`` is the digest of all other entries; data sets of earlier versions do not have it.
    """

    format: Any
    name: Name
    recipe: RecipeName
    num_clips: Number
    classes: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    benchmarks: Annotated[tuple[Benchmark, ...], msgspec.Meta(min_length=1)]
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(min_length=1)]
    source: dict[str, Any]
    skeleton: Skeleton
    sha256: str | None = None

    def __post_init__(self) -> None:
        read_normalization(self.source.get("normalization"))  # raises ValueError if it is not valid
        for benchmark in self.benchmarks:
            if not is_column(benchmark.column):
                raise ValueError(f"benchmark {benchmark.name} splits by {benchmark.column!r}, which is not a column")


def parse_description(content: bytes, location: object) -> Description:
    """Parse the content of the ``dataset.json`` of the data set at ``location``.

    Raises:
        InputError: if it is not a valid description of this version's format, or was modified; the message names the
            field.
    """
    file = printable(f"{location}/{DESCRIPTION}")
    try:
        fields = decode_json(content, dict[str, Any])
        version = fields.get("format")
        if type(version) is not int or version != FORMAT:
            raise InputError(
                f"{file}: has format {shorten(repr(version), 80)}, but this version reads format {FORMAT}; prepare the "
                "data set again"
            )
        description = convert_json(fields, Description)
        check_digest(fields)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: is not a data set description ({error})") from None
    return description


def is_column(name: str) -> bool:
    """Return whether a benchmark can split by a column of this name."""
    return name in INTEGER_COLUMNS or name.startswith(SPLIT_PREFIX)


def split_list(name: str) -> Benchmark:
    """Return the benchmark of a list of clips."""
    return Benchmark(name, SPLIT_PREFIX + name, train=(IN_TRAIN,), test=(IN_TEST,))


def is_split_list(benchmark: Benchmark) -> bool:
    """Return whether a benchmark is a list of clips."""
    return benchmark.column.startswith(SPLIT_PREFIX)


def split_columns(benchmarks: Sequence[Benchmark]) -> tuple[str, ...]:
    """Return the columns of the benchmarks that are lists of clips, sorted."""
    return tuple(sorted({benchmark.column for benchmark in benchmarks if is_split_list(benchmark)}))


def arrow_schema(skeleton: Skeleton, benchmarks: Sequence[Benchmark] = ()) -> pa.Schema:
    """Return the columns of a data set: the clip's name, the integer columns, and the joints.

    ``joints`` is a list of frames, person by person; each frame is a fixed-size list of N·3 float32 coordinates.
    """
    frame = pa.list_(pa.field("item", pa.float32(), nullable=False), skeleton.num_joints * 3)
    joints = pa.list_(pa.field("item", frame, False))
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), False),
            *(pa.field(column, pa.int32(), False) for column in (*INTEGER_COLUMNS, *split_columns(benchmarks))),
            pa.field("joints", joints, False),
        ]
    )


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(
    skeleton: Skeleton, classes: Sequence[str], benchmarks: Sequence[Benchmark], files: Sequence[str]
) -> str:
    """Return the SHA-256 of everything that training on a data set depends on, given the digests of its files."""
    rules = [asdict(benchmark) for benchmark in benchmarks]
    content = json.dumps([FORMAT, skeleton.to_dict(), list(classes), rules, list(files)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
