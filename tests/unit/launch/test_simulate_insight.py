"""weft simulate forecast and anomalies: series from files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.launch.placement.simulate import main


def write_series(path: Path, series: dict[str, list[float]], step: float = 300.0) -> Path:
    lines = [f"{name},{at * step:g},{value}" for name, values in series.items() for at, value in enumerate(values)]
    path.write_text("\n".join(["series,time,value", *lines]) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main([*map(str, argv), "-o", "json"]) == 0
    shown = capsys.readouterr()
    assert "1 samples" not in shown.err.splitlines()
    answer: dict[str, Any] = json.loads(shown.out)
    return answer


def test_a_series_that_switches_at_each_sample_is_forecast_better_than_by_its_last_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_series(tmp_path / "a.csv", {"even": [float(at % 2) for at in range(200)], "flat": [4.0] * 200})
    answer = run(capsys, "forecast", "--trace", trace, "--horizon", "5m")
    assert answer["series"] == 2
    assert answer["forecasts"] == 2 * (199 - 11)
    assert answer["baseline_last_value"] == 0.5  # the mean of 1 and 0
    assert answer["mean_absolute_error"] < 0.3
    assert 0.7 < answer["coverage_80"] <= 1


def test_rows_may_come_in_any_order_compressed_and_with_gaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(1).standard_normal(200).tolist()
    plain = write_series(tmp_path / "a.csv", {"a": noise, "b": noise[:150]})
    head, *lines = plain.read_text().splitlines()
    del lines[60:70]
    mixed = tmp_path / "b.csv.gz"
    mixed.write_bytes(gzip.compress("\n".join([head, *sorted(lines, key=hash)]).encode()))
    whole, gaps = (run(capsys, "forecast", "--trace", path) for path in (plain, mixed))
    assert gaps["series"] == 2
    assert whole["forecasts"] - 25 < gaps["forecasts"] < whole["forecasts"]


def test_times_are_seconds_of_any_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_series(tmp_path / "a.csv", {"a": [1.0, 2.0] * 100}, step=60.0)
    assert run(capsys, "forecast", "--trace", trace, "--horizon", "1m")["forecasts"] == 199 - 11


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        ("", [], "the file is empty"),
        ("series,time,value\n", [], "no samples"),
        ("name,time,value\na,0,1\n", [], "missing column series"),
        ("series,time,value\na,0,x\n", [], ":2: column value: 'x' is not a number"),
        ("series,time,value\na,inf,1\n", [], "column time"),
        ("series,time,value\na,0,1e308\n", [], ":2: column value: '1e308' is beyond 1e+15"),
        ("series,time,value\na,0,1\na,0,2\n", [], "no series has two samples at different times"),
        ("series,time,value\na,0,1\na,0.001,2\n", [], "0.001 s apart"),
        ("series,time,value\na,0,1\na,1,1\na,1e14,1\na,1.00000000000001e14,1\n", [], "too many samples"),
        ("series,time,value\na,0,1\na,300,1\n", [], "the longest series has 2 samples"),
        ("series,time,value\na,0,1\na,300,1\n", ["--horizon", "7m"], "not a whole number of steps of 5m"),
        ("series,time,value\na,0,1\na,300,1\n", ["--horizon", "soon"], "--horizon"),
        ("series,time,value\na,0,1\na,300,1\n", ["--horizon", "0"], "is not ahead"),
        ("series,time,value\n" + "".join(f"a,{at * 300},\n" for at in range(60)), [], "no sample of the file"),
    ],
)
def test_what_can_t_be_forecast_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, argv: list[str], said: str
) -> None:
    trace = tmp_path / "a.csv"
    trace.write_text(text)
    assert main(["forecast", "--trace", str(trace), *argv]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["anomalies", "--trace", str(tmp_path / "nope.csv")]) != 0
    assert "nope.csv: no such file" in capsys.readouterr().err


def test_each_row_has_a_score_and_a_spike_is_over_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = (30 + np.random.default_rng(2).standard_normal(600)).tolist()
    values[500] = 90.0
    trace = tmp_path / "a.csv"
    trace.write_text("timestamp,value\n" + "".join(f"day 1 no {at},{value}\n" for at, value in enumerate(values)))
    answer = run(capsys, "anomalies", "--trace", trace)
    assert [when for when, _ in answer["scores"]] == [f"day 1 no {at}" for at in range(600)]
    over = [when for when, score in answer["scores"] if score >= answer["threshold"]]
    assert over == ["day 1 no 500"]
    assert main(["anomalies", "--trace", str(trace)]) == 0
    assert "1 of 600 samples are unusual" in capsys.readouterr().out


def test_an_empty_cell_is_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "a.csv"
    trace.write_text("timestamp,value\n1,5\n2,\n3,nan\n4,5\n")
    assert run(capsys, "anomalies", "--trace", trace)["scores"] == [["1", 0.0], ["2", 0.0], ["3", 0.0], ["4", 0.0]]


def test_a_timestamp_of_any_text_doesn_t_reach_the_terminal_as_an_escape_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = (30 + np.random.default_rng(2).standard_normal(400)).tolist()
    values[350] = 90.0
    trace = tmp_path / "a.csv"
    trace.write_text("timestamp,value\n" + "".join(f"\x1b[31m{at},{value}\n" for at, value in enumerate(values)))
    assert main(["anomalies", "--trace", str(trace)]) == 0
    shown = capsys.readouterr().out
    assert "\N{REPLACEMENT CHARACTER}[31m350" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("number", "judged"), [(288, False), (289, True)])
def test_a_file_that_only_teaches_is_not_reported_as_usual(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, judged: bool
) -> None:
    trace = tmp_path / "a.csv"
    trace.write_text("timestamp,value\n" + "".join(f"{at},{at % 7}\n" for at in range(number)))
    assert main(["anomalies", "--trace", str(trace)]) == 0
    assert ("No sample was judged" in capsys.readouterr().out) is not judged
