"""The reader of Arrow files: data sets and scores are read from IPC files of one uncompressed record batch.

Arrow trusts the files that it maps: an offset beyond the end of a buffer makes it read other memory, or crashes the
process. Therefore a batch is validated in full before its first value is used. This takes time only for the offsets
of lists and texts; the numbers themselves are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pyarrow as pa
from pyarrow import ipc

_MAGIC = b"ARROW1"
_PREFIX = 8  # bytes: the magic, padded; a stream of messages follows
_COMPRESSION = 3  # number of the field in Arrow's RecordBatch.fbs


def write_batch(path: str, batch: pa.RecordBatch) -> None:
    """Write an Arrow file of one record batch."""
    with ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)


def read_batch(content: pa.Buffer, expected: Callable[[pa.Schema], pa.Schema]) -> pa.RecordBatch:
    """Read the record batch of an Arrow file, without copying it.

    Args:
        content: the whole file, read or mapped.
        expected: returns the schema that a file with the given schema must have.

    Raises:
        ValueError: if the file is not such an Arrow file, is inconsistent, or contains nulls. Damage that does not
            change any value may go unnoticed.
    """
    try:
        if content.size < 2 * _PREFIX or any(part.to_pybytes() != _MAGIC for part in (content[:6], content[-6:])):
            raise ValueError("it does not begin and end like one")
        messages = ipc.MessageReader.open_stream(content.slice(_PREFIX))
        schema = ipc.read_schema(messages.read_next_message())
        if not schema.equals(expected(schema)):
            raise ValueError("its columns are others")
        batches = [message for message in messages if message.type == "record batch"]
        if len(batches) != 1:
            raise ValueError(f"it has {len(batches)} record batches instead of 1")
        if _is_compressed(batches[0].metadata.to_pybytes()):
            raise ValueError("it is compressed")  # by this size, a small file could take all memory
        batch = ipc.read_record_batch(batches[0], schema)
        batch.validate(full=True)
    except (pa.ArrowException, EOFError, StopIteration, OSError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(ascii(first_line)[1:-1][:200]) from None
    for name, column in zip(schema.names, batch.columns, strict=True):
        if _has_nulls(column):
            raise ValueError(f"column {name} contains nulls")
    return batch


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the header of a record batch, a FlatBuffer that Arrow has verified, names a compression."""

    def field(table: int, number: int) -> int:
        """Return the position of a table's field, 0 if the table lacks it."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", metadata, vtable + entry)[0]
        return table + offset if offset else 0

    def follow(position: int) -> int:
        return int(position + struct.unpack_from("<I", metadata, position)[0])

    header = 2  # of Message.fbs
    return field(follow(field(follow(0), header)), _COMPRESSION) != 0


def _has_nulls(array: pa.Array) -> bool:
    if array.null_count:
        return True
    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    return nested and _has_nulls(array.values)
