"""``python -m weft.images.tiny OUT.tar [--cache DIR]``: build the tiny image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weft.images.tiny.build import build_tiny
from weft.objects.errors import WeftError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weft.images.tiny", description="Build the tiny image bundle.")
    parser.add_argument("out", type=Path, help="the bundle to write, e.g. tiny.tar")
    parser.add_argument(
        "--cache", type=Path, default=Path(".weft/cache"), help="keeps the kernel package between builds"
    )
    args = parser.parse_args()
    try:
        build_tiny(args.out, args.cache)
    except WeftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
