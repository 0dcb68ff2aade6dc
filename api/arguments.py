"""What several commands take: a shape, a policy, the database."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from api.console import UsageError
from api.keys import parse_shape
from strategies.key import Policy
from strategies.shape import DTYPES, ConvShape


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, raised instead of printed with the usage above."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def add_database(parser: argparse.ArgumentParser) -> None:
    """`--db`."""
    parser.add_argument(
        "--db", metavar="PATH_OR_URL", help="the database (default: AUTOTUNE_DB, else one in your data directory)"
    )


def add_json(
    parser: argparse.ArgumentParser,
    help: str = "print one JSON document on stdout and nothing else there",  # noqa: A002
) -> None:
    """`--json`; `help` where it means something else than everywhere."""
    parser.add_argument("--json", action="store_true", help=help)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """INPUT, WEIGHT and their options, as tinygrad prints and takes them."""
    parser.add_argument("input", metavar="INPUT", help="batch x channels x sizes: 1x64x56x56")
    parser.add_argument("weight", metavar="WEIGHT", help="outputs x channels/groups x taps: 64x64x3x3")
    parser.add_argument(
        "--padding", default="0", metavar="N[,N...]", help="1, per dimension 1,1 or per side as tinygrad"
    )
    parser.add_argument("--stride", default="1", metavar="N[,N]", help="default 1")
    parser.add_argument("--dilation", default="1", metavar="N[,N]", help="default 1")
    parser.add_argument("--groups", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="default float32")
    add_device(parser)
    add_policy(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", metavar="NAME", help="CPU, CUDA, METAL, ... (default: tinygrad's own choice)")


def add_policy(parser: argparse.ArgumentParser) -> None:
    """What `policy_of` reads."""
    policy = parser.add_argument_group("what you allow and promise")
    policy.add_argument("--max-error", type=float, metavar="E", help="a tighter bound on max|y - y64| / max|y64|")
    policy.add_argument("--allow-tf32", action="store_true", help="TF32 may be used")
    policy.add_argument("--frozen-weights", action="store_true", help="the weights never change")
    policy.add_argument("--max-workspace", type=int, metavar="BYTES", help="the most memory for intermediates")


def shape_of(args: argparse.Namespace) -> ConvShape:
    """Raises ShapeError."""
    return parse_shape(
        args.input, args.weight, padding=args.padding, stride=args.stride, dilation=args.dilation,
        groups=args.groups, dtype=args.dtype,
    )  # fmt: skip


def policy_of(args: argparse.Namespace) -> Policy:
    """Raises KeyFormatError."""
    return Policy.from_json(
        {
            "max_error": args.max_error, "allow_tf32": args.allow_tf32, "frozen_weights": args.frozen_weights,
            "max_workspace_bytes": args.max_workspace,
        }
    )  # fmt: skip
