"""Which of weft's lines the tests run, from what `make coverage` wrote down: the figures of each room, for docs/measured.md."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import coverage

from benchmarks.measurement import ROOT, Figure, Measurement, write_section

SOURCE = ROOT / "src" / "weft"
SUMMARY = (
    "Lines that {tests} run, the processes they start included; what only guests and clusters reach (tests/host, tests/cluster: "
    "most of the drivers and of `launch`) counts as not run here."
)


def count(data: coverage.Coverage) -> tuple[Counter[str], Counter[str], dict[str, list[int]]]:
    """Lines and lines run, by room; and the lines that weren't, by file."""
    lines: Counter[str] = Counter()
    run: Counter[str] = Counter()
    missing: dict[str, list[int]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        _, statements, _, missed, _ = data.analysis2(str(path))
        inside = path.relative_to(SOURCE).parts
        room = "/".join(inside[:2]) if inside[0] == "drivers" and len(inside) > 2 else inside[0]
        lines[room] += len(statements)
        run[room] += len(statements) - len(missed)
        if missed:
            missing[str(path.relative_to(ROOT))] = missed
    return lines, run, missing


def main(argv: list[str]) -> int:
    data = coverage.Coverage(data_file=str(ROOT / ".coverage"), config_file=str(ROOT / "pyproject.toml"))
    data.load()
    lines, run, missing = count(data)
    folders = Counter(
        "/".join(test.split("/")[:2])
        for test in {name.split("|")[0] for name in data.get_data().measured_contexts()}
        if test
    )
    tests = ", ".join(f"{number} tests of {folder}" for folder, number in sorted(folders.items()))
    figures = [Figure("all", f"{run.total() / lines.total():.1%} of {lines.total()} lines")]
    figures += [
        Figure(room, f"{run[room] / lines[room]:.1%} of {lines[room]}") for room in sorted(lines) if lines[room]
    ]
    print(write_section(Measurement("coverage", SUMMARY.format(tests=tests), figures)))
    table = Path(argv[0]) if argv else ROOT / ".coverage.missing"
    table.write_text("".join(f"{file}: {' '.join(map(str, missed))}\n" for file, missed in missing.items()))
    print(f"lines that no test ran: {table}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
