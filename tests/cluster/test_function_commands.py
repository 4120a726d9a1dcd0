"""Functions on a real cluster as people use them: the examples' four commands as written, code that changes, versions, errors."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.cluster.functions import CODE, let_go

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
WRITTEN = {
    "image-ai": "--config image-ai.nix --memory 2048M --timeout 60s --placement-strategy best-fit,data-locality "
    '--prefer "gpu=available" --max-concurrent 50',
    "ml-inference": '--config inference.nix --memory 4096M --constraint "gpu.memory>=8GB" --placement-strategy network-proximity',
    "etl-processor": "--config etl.nix --memory 8192M --placement-strategy data-locality "
    '--data-hint "ceph-pool:raw-data"',
    "iot-handler": "--config iot.nix --memory 64M --timeout 5s --placement-strategy network-proximity "
    '--prefer "location=edge"',
}


@pytest.fixture(scope="module")
def functions(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    for name in cluster.ok("function", "list", "-o", "name").split():
        cluster.run("delete", name, "--yes")


def write(cluster: Cluster, name: str, code: str) -> str:
    folder = cluster.folder / "code" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(code)
    return str(folder)


def create(cluster: Cluster, name: str, code: str, *more: str) -> str:
    wish = ["--code", write(cluster, name, code), "--handler", "app.handler", "--isolation", "process", *more]
    return cluster.ok("function", "create", name, *wish, timeout=600)


def invoke(cluster: Cluster, name: str, data: str = "{}", *more: str) -> Any:
    return json.loads(cluster.ok("function", "invoke", name, "--data", data, *more))


def in_examples(cluster: Cluster, words: str) -> subprocess.CompletedProcess[str]:
    argv = [WEFT, *shlex.split(words)]
    return subprocess.run(
        argv, cwd=cluster.folder / "examples", capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


def test_the_four_commands_work_as_written(functions: Cluster) -> None:
    codes = {name: in_examples(functions, f"function create {name} {wish}") for name, wish in WRITTEN.items()}
    for name in ("image-ai", "etl-processor", "iot-handler"):
        assert codes[name].returncode == 0, codes[name].stderr
        assert f"function/{name}  Ready" in codes[name].stdout
    refused = codes["ml-inference"]  # no node here has a GPU
    assert refused.returncode == 6 and "constraint" in refused.stderr
    assert functions.json("function", "get", "ml-inference")["status"]["phase"] == "Pending"
    spec = functions.json("function", "get", "image-ai")["spec"]
    assert (spec["memory"], spec["timeout"], spec["max_concurrent"]) == (2048 * 2**20, 60.0, 50)
    assert (spec["strategy"], spec["prefer"]) == ("best_fit,data_locality", ["gpu=available"])
    assert invoke(functions, "iot-handler", '{"sensor": "b", "celsius": 91.5}') == {
        "sensor": "b",
        "alarm": True,
        "over": 6.5,
    }
    assert invoke(functions, "image-ai", '{"width": 2, "height": 2, "gray": "AECA/w=="}')["histogram"] == [1, 1, 1, 1]
    rows = {"by": "city", "sum": "amount", "csv": "city,amount\nBonn,2\nUlm,3\nBonn,4\n"}
    assert invoke(functions, "etl-processor", json.dumps(rows))["totals"] == {"Bonn": 6.0, "Ulm": 3.0}
    error = functions.fails(1, "function", "invoke", "ml-inference")
    assert "functionNotReady" in error


def test_data_comes_from_anywhere_and_only_the_answer_is_printed(functions: Cluster) -> None:
    create(functions, "echo", "def handler(event, context):\n    print('seen')\n    return event\n")
    (functions.folder / "in.json").write_text('{"from": "a file"}')
    assert functions.ok("function", "invoke", "echo", "--data", '{"n":1}') == '{"n": 1}\n'
    assert invoke(functions, "echo", "@in.json") == {"from": "a file"}
    done = functions.run("function", "invoke", "echo", "--data", "-", "--tail-logs", stdin=b'["piped"]')
    assert (done.returncode, done.stdout) == (0, b'["piped"]\n') and b"seen" in done.stderr
    assert "seen" in functions.ok("function", "logs", "echo")
    told = functions.json("function", "metrics", "echo")
    assert told["invocations"] == 3 and not told["errors"]
    assert "is not JSON" in functions.fails(2, "function", "invoke", "echo", "--data", "{n:1}")
    functions.fails(3, "function", "invoke", "nowhere")


def test_an_error_of_its_own_has_its_type_and_trace_on_standard_error(functions: Cluster) -> None:
    create(functions, "err", "def handler(event, context):\n    raise LookupError('no such shop')\n")
    done = functions.run("function", "invoke", "err")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "error: function/err: LookupError: no such shop" in done.stderr.decode()
    assert 'File "/var/task/app.py", line 2, in handler' in done.stderr.decode()


def test_code_that_does_not_come_up_is_said_and_never_replaces_what_serves(functions: Cluster) -> None:
    bad = write(functions, "bad", "import no_such_module\n")
    wish = ["--code", bad, "--handler", "app.handler", "--isolation", "process"]
    error = functions.fails(1, "function", "create", "bad", *wish, timeout=120)
    assert "Runtime.ImportModuleError" in error and "no_such_module" in error
    create(functions, "shop", "def handler(event, context):\n    return 1\n")
    error = functions.fails(1, "function", "set", "shop", "--code", bad, timeout=120)
    assert "still serves its previous code" in error and "Runtime.ImportModuleError" in error
    assert invoke(functions, "shop") == 1
    assert "illegalTransition" in functions.fails(5, "function", "publish", "shop")
    functions.ok(
        "function", "set", "shop", "--code", write(functions, "shop", "def handler(event, context):\n    return 2\n")
    )
    assert invoke(functions, "shop") == 2


def test_a_project_s_quota_limits_what_runs_at_once_of_all_its_functions(functions: Cluster) -> None:
    for name in ("left", "right"):
        create(functions, name, CODE, "--timeout", "120s")
    functions.ok("quota", "set", "--function-concurrency", "1")
    try:
        argv = [WEFT, "function", "invoke", "left", "--data", '{"seconds": 90}']
        with subprocess.Popen(argv, cwd=functions.folder, stdout=subprocess.PIPE) as slow:
            until(lambda: functions.json("function", "metrics", "left")["concurrent"] == 1)
            error = functions.fails(1, "function", "invoke", "right")
            assert "project default: function_concurrency: 1 of 1 used, 1 more requested (quotaExceeded)" in error
            let_go()
            assert slow.wait(60) == 0
        assert invoke(functions, "right", '{"n": 1}') == 1
        assert "function_concurrency" in functions.ok("quota", "show")
    finally:
        functions.ok("quota", "delete", "project", "--yes")


def test_versions_stay_and_aliases_share_between_them(functions: Cluster) -> None:
    create(functions, "ver", "def handler(event, context):\n    return 1\n")
    assert functions.ok("function", "publish", "ver") == "function/ver  published as ver:1\n"
    functions.ok(
        "function", "set", "ver", "--code", write(functions, "ver", "def handler(event, context):\n    return 2\n")
    )
    functions.ok("function", "publish", "ver")
    assert [invoke(functions, f"ver:{which}") for which in ("1", "2")] == [1, 2]
    functions.ok("function", "alias", "ver", "prod", "1")
    assert invoke(functions, "ver", "{}", "--alias", "prod") == 1
    functions.ok("function", "alias", "ver", "prod", "1=0.5", "2=0.5")
    assert {invoke(functions, "ver:prod") for _ in range(16)} == {1, 2}
    functions.fails(3, "function", "alias", "ver", "prod", "9")
    functions.fails(5, "functionversion", "delete", "ver-1", "--yes")
    functions.ok("function", "alias", "ver", "prod", "--remove")
    functions.fails(3, "function", "invoke", "ver:prod")
    functions.ok("function", "delete", "ver", "--yes")
    functions.ok("wait", "functionversion/ver-1", "--for=delete", "--timeout", "60s")


def test_a_manifest_names_its_code_beside_it(functions: Cluster) -> None:
    write(functions, "applied", "def handler(event, context):\n    return event['n'] + 1\n")
    spec = {"code": "./applied", "handler": "app.handler", "isolation": "process"}
    manifest = functions.folder / "code" / "applied.json"
    manifest.write_text(json.dumps({"kind": "Function", "name": "applied", "spec": spec}))
    functions.ok("apply", "-f", str(manifest), timeout=120)
    assert invoke(functions, "applied", '{"n": 41}') == 42
    assert "unchanged" in functions.ok("apply", "-f", str(manifest))
    (Path(manifest).parent / "applied" / "more.py").write_text("")
    assert "updated: spec.code" in functions.ok("apply", "-f", str(manifest), timeout=120)
