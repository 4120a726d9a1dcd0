"""``python -m weft.images.node [--out FOLDER] [--architecture NAME …]``: build the agent's images; each step is a line on standard
error, the layout's path the one on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weft.images.node.build import ARCHITECTURES, build_node_images
from weft.objects.errors import WeftError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m weft.images.node", description="Build the agent's container images."
    )
    parser.add_argument("--out", type=Path, default=Path("images"), help="folder of the OCI layout (default images)")
    parser.add_argument(
        "--architecture",
        action="append",
        help="architecture to build for (repeatable; default all)",
    )
    args = parser.parse_args()
    if wrong := [name for name in args.architecture or () if name not in ARCHITECTURES]:
        print(
            f"error: no image is made for {wrong[0][:60]!r}; architectures: {', '.join(ARCHITECTURES)}", file=sys.stderr
        )
        return 2
    try:
        build_node_images(args.out.absolute(), _report, args.architecture or tuple(ARCHITECTURES))
    except WeftError as error:
        print(f"error: {error.message}", *([error.hint] if error.hint else []), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(args.out)
    return 0


def _report(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
