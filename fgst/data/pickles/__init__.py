"""Pickles: a reader that runs no code from them, and a writer."""

from fgst.data.pickles.reader import open_pickle, parse_pickle
from fgst.data.pickles.stored import PickleError, StoredArray
from fgst.data.pickles.writer import write_pickle

__all__ = ["PickleError", "StoredArray", "open_pickle", "parse_pickle", "write_pickle"]
