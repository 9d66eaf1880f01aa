"""SHA-256 digests inside JSON documents, which show that a document was not changed since it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgst.errors import InputError

DIGEST_KEY = "sha256"
MODIFIED = "was modified after it was written (SHA-256 mismatch)"


class DamagedFileError(InputError):
    """A file is missing, damaged, or does not contain what it must contain."""


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of all its other entries under the key ``sha256``."""
    return {**content, DIGEST_KEY: json_digest(content)}


def check_digest(content: Any) -> None:
    """Check the digest that :func:`with_digest` added to a document; documents of earlier versions have none.

    Raises:
        ValueError: if the digest is not that of the other entries.
    """
    if not isinstance(content, dict) or DIGEST_KEY not in content:
        return
    if content[DIGEST_KEY] != json_digest({key: value for key, value in content.items() if key != DIGEST_KEY}):
        raise ValueError(f"it {MODIFIED}")


def json_digest(content: Any) -> str:
    """Return the SHA-256 of JSON values; it depends neither on the order of keys nor on white space."""
    values = json.loads(json.dumps(content))  # keys become strings, and tuples lists, as in the file
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def named_in_errors(folder: Path, name: str) -> Iterator[None]:
    """Replace the path of a temporary copy of a run's artifacts in messages of InputErrors.

    Args:
        folder: the copy.
        name: what was copied, for the user.
    """
    try:
        yield
    except InputError as error:
        remedy = "; restore the run's artifacts from a backup, or train again"
        message = str(error).replace(str(folder), name)
        raise type(error)(message + remedy if isinstance(error, DamagedFileError) else message) from None
