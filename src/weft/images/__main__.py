"""``python -m weft.images NAME [--cache DIR] [--fresh]``: build an image, or what machines around containers boot; each step is a
line on standard error, the path of what was built the one on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weft.images.microvm.build import ensure_microvm
from weft.images.recipes import ensure_bundle
from weft.objects.errors import WeftError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weft.images", description="Build an image bundle.")
    parser.add_argument("name", help="busybox, debian-12, python3-11, tiny or microvm")
    parser.add_argument("--cache", type=Path, default=Path(".weft/cache"), help="folder for built images")
    parser.add_argument("--fresh", action="store_true", help="build it even if it is cached")
    args = parser.parse_args()
    try:
        cache = args.cache.absolute()
        if args.name == "microvm":
            print(ensure_microvm(cache, _report, fresh=args.fresh))
        else:
            print(ensure_bundle(args.name, cache, _report, fresh=args.fresh))
    except WeftError as error:
        print(f"error: {error.message}", *([error.hint] if error.hint else []), sep="\n", file=sys.stderr)
        return 1
    return 0


def _report(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
