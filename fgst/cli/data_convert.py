"""Convert a data set in one of the field's formats to an Arrow data set.

Examples:
  python -m data_prep.convert NTU60_CS.npz datasets/ntu-60            CTR-GCN
  python -m data_prep.convert ntu60_3danno.pkl datasets/ntu-60        pyskl, mmaction2
  python -m data_prep.convert NTU-RGB-D/xsub datasets/ntu-60          ST-GCN: train_data.npy, train_label.pkl, val_…
  python -m data_prep.convert openpose/ datasets/mine --labels labels.csv --benchmark x-sub:subject=1,2,3

The format is recognized by the content of SOURCE, or named by --format:
{formats}

Clips are read one by one: a source of any size needs less than 1 GB of memory. Padding is removed: frames and persons
without any seen joint, and repetitions of a clip that fill a window. The report says what SOURCE was taken for and what
was done; the same is done with clips that are classified later.

A bad clip ends the command with exit code 2, and nothing is written; with --skip-bad such clips are left out and
listed. For other formats: docs/data.md shows a reader in 40 lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

from fgst.cli.command import CommandParser
from fgst.cli.data_options import add_conversion_options, convert
from fgst.data.clip_source import SourceFormat, SourceOptions
from fgst.data.formats import SOURCE_FORMATS
from fgst.data.formats.custom import read_skeleton
from fgst.errors import InputError
from fgst.parsing import printable


def build_parser() -> CommandParser:
    """Return the command's parser."""
    width = max((len(f.name) for f in SOURCE_FORMATS), default=0)
    formats = "\n".join(f"  {f.name:{width}}  {f.description}" for f in SOURCE_FORMATS)
    parser = CommandParser("python -m data_prep.convert", (__doc__ or "").replace("{formats}", formats))
    parser.add_argument("source", metavar="SOURCE", type=Path, help="file or folder as downloaded")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/ntu-60")
    parser.add_argument(
        "--format", choices=[f.name for f in SOURCE_FORMATS], help="what SOURCE is (default: recognized by its content)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="table of labels, for formats without labels")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one per line, by label")
    parser.add_argument("--skeleton", metavar="NAME", help="known skeleton or description, where the format has none")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME:COLUMN=VALUES",
        help="with --labels: which clips train",
    )
    parser.add_argument(
        "--columns",
        default="",
        metavar="ROLE=COLUMN,…",
        help="which columns of joint-csv are frame, person, joint, x, y, z and score, if they are not recognized: "
        "joint=bone,x=px,y=py,z=pz, or x={joint}_px,y={joint}_py",
    )
    add_conversion_options(parser)
    return parser


def recognize(source: Path) -> SourceFormat:
    """Return the format of a source.

    Raises:
        InputError: if there is no such file or folder, or it is of no known format.
    """
    if not source.exists():
        raise InputError(f"{printable(str(source))}: no such file or folder")
    for source_format in SOURCE_FORMATS:
        if source_format.recognizes(source):
            return source_format
    if source.is_dir() and not any(source.iterdir()):
        raise InputError(f"{printable(str(source))}: is an empty folder")
    if source.suffix.lower() in (".npz", ".zip") and source.is_file() and not is_zipfile(source):
        raise InputError(f"{printable(str(source))}: is not a zip, or is incomplete; copy or download it again")
    names = "; ".join(f"{f.name}: {f.description}" for f in SOURCE_FORMATS)
    raise InputError(
        f"{printable(str(source))}: is not recognized as one of the known formats ({names}); name it with --format, or "
        "use data_prep.custom for your own clips"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    named = [f for f in SOURCE_FORMATS if f.name == args.format]
    source_format = named[0] if named else recognize(args.source)
    options = SourceOptions(
        labels=args.labels,
        classes=args.classes,
        skeleton=read_skeleton(args.skeleton) if args.skeleton else None,
        benchmarks=tuple(args.benchmark),
        columns=args.columns,
    )
    convert(args.source, args, lambda: source_format.open(args.source, options))
