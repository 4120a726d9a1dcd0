"""Jobs on a real cluster: arrays of containers that end, fail, are killed with what runs them, and give way; from the shell."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.registry import push_busybox

pytestmark = pytest.mark.host
Job = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def image(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    push_busybox(tmp_path_factory.mktemp("image"), f"{registry}/tools/busybox:1", ["sh", "-c"], {})
    return f"{registry}/tools/busybox:1"


@pytest.fixture
def run(cluster: Cluster, image: str) -> Iterator[Job]:
    """``weft job run NAME … --arg SCRIPT``; the job is gone when the test is over."""
    names: list[str] = []

    def begin(name: str, script: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        names.append(name)
        size = ("--image", image, "--memory", "32M", "--cpu", "0.05", "--grace", "1s")
        return cluster.run("job", "run", name, *size, "--arg", script, *words)

    yield begin
    for name in names:
        cluster.run("job", "delete", name, "--yes")


def status(cluster: Cluster, name: str) -> dict[str, Any]:
    return dict(cluster.object("job", name)["status"])


def containers(cluster: Cluster, job: str) -> dict[str, dict[str, Any]]:
    listed = cluster.json("container", "list", "-l", f"job={job}")["items"]
    return {item["name"]: item for item in listed}


def test_an_array_with_an_index_that_fails_is_tried_again_and_ends_with_its_exit_code(
    cluster: Cluster, run: Job
) -> None:
    script = "echo task $WEFT_TASK_INDEX of $WEFT_TASK_COUNT try $WEFT_TRY; test $WEFT_TASK_INDEX != 7 || exit 3"
    done = run("thumbs", script, "--array", "0-9", "--parallelism", "5", "--retries", "2", "--backoff", "0.5s")
    assert done.returncode == 3, done.stderr
    assert b"job/thumbs is Failed, 1 of 10 tasks failed: task 7: exit code 3 (try 3 of 3)" in done.stderr
    told = status(cluster, "thumbs")
    assert (told["succeeded"], told["failed"], told["retried"], told["lost"]) == (9, 1, 2, 0)
    assert (told["exit_codes"], told["tries"]) == ({"3": "7"}, {"1": "0-6,8-9", "3": "7"})
    assert set(containers(cluster, "thumbs")) == {
        *(f"thumbs-{index}" for index in range(10)),
        "thumbs-7-r2",
        "thumbs-7-r3",
    }
    assert cluster.ok("job", "logs", "thumbs", "--task", "7") == "task 7 of 10 try 3\n"
    assert cluster.ok("job", "logs", "thumbs", "--task", "7", "--try", "1") == "task 7 of 10 try 1\n"
    assert len(cluster.ok("job", "logs", "thumbs").splitlines()) == 10
    assert "it can't be started again" in cluster.fails(5, "container", "start", "thumbs-7")

    cluster.ok("job", "retry", "thumbs")
    until(lambda: status(cluster, "thumbs")["tries"] == {"1": "0-6,8-9", "6": "7"})
    until(lambda: status(cluster, "thumbs")["phase"] == "Failed")
    assert "job/thumbs is Failed" in cluster.fails(1, "wait", "job/thumbs")


@pytest.mark.long
def test_agents_and_controllers_are_killed_and_each_task_has_run_once(cluster: Cluster, run: Job) -> None:
    run("steady", "echo begun; sleep 2; echo done", "--array", "0-14", "--parallelism", "5", "--detach")
    for number in range(5):
        until(lambda: status(cluster, "steady")["running"] >= 1 or status(cluster, "steady")["phase"] == "Succeeded")
        for words in (("weft server controllers",), (f"weft agent n{number % 3 + 1} ",)):
            until(partial(cluster.pids, *words))
            for pid in cluster.pids(*words):
                os.kill(pid, 9)
        time.sleep(1)
    cluster.ok("wait", "job/steady", "--timeout", "180s", timeout=200)
    told = status(cluster, "steady")
    assert (told["succeeded"], told["tries"], told["lost"]) == (15, {"1": "0-14"}, 0)
    for index in range(15):
        assert cluster.ok("job", "logs", "steady", "--task", str(index)) == "begun\ndone\n"


def test_a_task_whose_node_lost_its_power_is_run_again_at_no_cost(cluster: Cluster, run: Job) -> None:
    run("sturdy", "test $WEFT_TRY = 2 || sleep 300", "--detach")
    # Before it has begun, its node would begin the same try when it is back.
    until(lambda: containers(cluster, "sturdy").get("sturdy-0", {}).get("status", {}).get("phase") == "Running")
    node = containers(cluster, "sturdy")["sturdy-0"]["status"]["node"]
    init = cluster.pid(f"weft init {node}")
    os.kill(init, 9)
    until(lambda: not cluster.pids(f"weft init {node}"))
    cluster.up()
    cluster.ok("wait", "job/sturdy")
    told = status(cluster, "sturdy")
    assert (told["lost"], told["retried"], told["tries"]) == (1, 0, {"2": "0"})


@pytest.fixture(scope="module")
def ticking(cluster: Cluster, image: str) -> Iterator[bytes]:
    """A job with a run each minute, and what was said of it; the first minute passes during other tests, which kill nothing."""
    words = ("--schedule", "* * * * *", "--image", image, "--memory", "32M", "--cpu", "0.05", "--arg", "echo ticked")
    done = cluster.run("job", "run", "tick", *words)
    assert done.returncode == 0, done.stderr
    yield done.stdout
    cluster.run("job", "delete", "tick", "--yes")


@pytest.mark.usefixtures("ticking")
def test_a_job_that_does_what_it_should_ends_with_zero_and_frees_all_it_took(cluster: Cluster, run: Job) -> None:
    done = run("fine", "", "--command", "sh -c 'echo done by $WEFT_JOB'", "--label", "team=a")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, b"job/fine  Succeeded: 1 task in " in done.stderr) == (b"done by fine\n", True), done
    assert cluster.ok("job", "logs", "fine") == "done by fine\n"
    assert containers(cluster, "fine")["fine-0"]["labels"] == {"job": "fine", "task": "0", "team": "a"}
    cluster.ok("job", "delete", "fine", "--yes")
    assert containers(cluster, "fine") == {}


@pytest.mark.long
def test_at_its_deadline_nothing_of_it_runs_any_more(cluster: Cluster, run: Job) -> None:
    done = run(
        "late", "echo begun; sleep 300", "--array", "0-2", "--job-timeout", "9s"
    )  # all of them have begun by then
    assert done.returncode == 1
    assert b"job/late is TimedOut: the job was not finished 9s after its start (spec.job_timeout)" in done.stderr
    assert {item["status"]["phase"] for item in containers(cluster, "late").values()} == {"Stopped"}
    assert cluster.ok("job", "logs", "late", "--task", "1") == "begun\n"


@pytest.mark.long
def test_a_try_may_take_only_so_long(cluster: Cluster, run: Job) -> None:
    done = run("slow", "sleep 300", "--task-timeout", "2s", "--retries", "1", "--backoff", "1s")
    assert b"task 0: it was stopped, by somebody or after its task_timeout of 2s (try 2 of 2)" in done.stderr
    assert done.returncode in (143, 137)


def test_one_follows_another_and_fails_with_it(cluster: Cluster, run: Job) -> None:
    run("first", "until [ -e /tmp/go ]; do sleep 0.2; done", "--detach")
    run("second", "echo after", "--after", "first", "--detach")
    assert (status(cluster, "second")["phase"], status(cluster, "second")["reason"]) in (
        ("Pending", "waiting"),
        ("Pending", ""),
    )
    until(lambda: cluster.run("container", "exec", "first-0", "--", "touch", "/tmp/go").returncode == 0)
    cluster.ok("wait", "job/second")
    assert status(cluster, "first")["ended_at"] <= status(cluster, "second")["started_at"]
    run("broken", "exit 1", "--detach")
    done = run("third", "true", "--after", "broken")
    assert (done.returncode, b"job broken, which this job runs after, has ended as Failed" in done.stderr) == (1, True)
    assert run("fourth", "true", "--after", "broken:ended").returncode == 0
    assert b'job "nobody" not found' in run("fifth", "true", "--after", "nobody").stderr


def test_a_cancelled_job_ends_what_runs(cluster: Cluster, run: Job) -> None:
    run("wait-long", "sleep 300", "--array", "0-5", "--parallelism", "3", "--detach")
    until(lambda: status(cluster, "wait-long")["running"] == 3)
    cluster.ok("job", "cancel", "wait-long")
    told = status(cluster, "wait-long")
    assert (told["phase"], told["running"], told["tries"]) == ("Cancelled", 0, {"1": "0-2"})


def test_none_of_a_gang_runs_until_all_of_it_can(cluster: Cluster, run: Job) -> None:
    cluster.ok("node", "cordon", "n2")
    try:
        words = ("--array", "0-2", "--gang", "--parallelism", "3", "--anti-affinity-group", "solvers")
        run("solve", "echo solved", *words, "--detach")
        until(lambda: status(cluster, "solve")["reason"] == "tasksWait")
        assert {item["status"]["phase"] for item in containers(cluster, "solve").values()} == {"Pending"}
    finally:
        cluster.ok("node", "uncordon", "n2")
    cluster.ok("wait", "job/solve")
    assert {item["status"]["node"] for item in containers(cluster, "solve").values()} == {"n1", "n2", "n3"}


@pytest.mark.long
def test_preemptible_tasks_give_way_and_come_back(cluster: Cluster, run: Job, image: str) -> None:
    capacity = cluster.json("node", "get", "n3")["report"]["memory"]
    most = f"{capacity * 3 // 5 >> 20}M"
    place = ("--node", "n3", "--memory", most)
    run("filler", "sleep 300", *place, "--preemptible", "--detach")
    until(lambda: status(cluster, "filler")["running"] == 1)
    try:
        cluster.ok("container", "create", "urgent", "--image", image, "--arg", "sleep 300", *place, "--grace", "1s")
        until(lambda: containers(cluster, "filler")["filler-0"]["status"]["phase"] == "Pending")
        assert "Preempted" in cluster.ok("container", "events", "filler-0")
    finally:
        cluster.ok("container", "delete", "urgent", "--yes")
    until(lambda: status(cluster, "filler")["running"] == 1)
    told = status(cluster, "filler")
    assert (told["tries"], told["retried"], told["failed"]) == ({"1": "0"}, 0, 0)
    cluster.ok("job", "cancel", "filler")


def test_the_logs_of_a_task_can_be_followed(cluster: Cluster, run: Job) -> None:
    run("talk", "for n in 1 2 3; do echo $n; sleep 1; done", "--detach")
    until(lambda: containers(cluster, "talk").get("talk-0", {}).get("status", {}).get("started_at"))
    following = [WEFT, "job", "logs", "talk", "-f"]
    said = subprocess.run(following, cwd=cluster.folder, capture_output=True, timeout=60)
    assert (said.returncode, said.stdout) == (0, b"1\n2\n3\n")


@pytest.mark.long
def test_the_logs_of_all_tasks_are_followed_at_once_and_tasks_and_tries_that_begin_later_join(
    cluster: Cluster, run: Job
) -> None:
    script = (
        "echo begun; sleep $((WEFT_TASK_INDEX ? 1 : 5)); echo done; [ $WEFT_TRY != 1 ] || [ $WEFT_TASK_INDEX != 3 ]"
    )
    run("many", script, "--array", "0-3", "--parallelism", "2", "--retries", "1", "--backoff", "0.5s", "--detach")
    said = subprocess.run(
        [WEFT, "job", "logs", "many", "-f"], cwd=cluster.folder, capture_output=True, timeout=60, text=True
    )
    assert said.returncode == 0, said.stderr
    lines = [tuple(line.split()) for line in said.stdout.splitlines()]
    tasks = ["many-0", "many-1", "many-2", "many-3", "many-3-r2"]
    assert sorted(lines) == sorted((task, word) for task in tasks for word in ("begun", "done"))
    assert lines.index(("many-1", "begun")) < lines.index(("many-0", "done")), "two ran at once, and were seen at once"


def test_what_can_be_no_job_is_refused_with_its_field(cluster: Cluster, run: Job, tmp_path: Path) -> None:
    assert b"--array: " in run("odd", "true", "--array", "5-1").stderr
    assert b'image "odd" not found' in cluster.run("job", "run", "odd").stderr
    file = tmp_path / "job.yaml"
    file.write_text("kind: job\nname: odd\nspec:\n  task:\n    image: r.example.org/a:1\n    publish: ['80:80']\n")
    assert "spec.task.publish: job tasks don't support publish" in cluster.fails(2, "job", "run", "-f", str(file))


def test_a_task_whose_image_is_not_there_says_so_and_ends_with_its_job(cluster: Cluster, run: Job, image: str) -> None:
    done = run("nothing", "true", "--image", image.replace("busybox", "none"), "--job-timeout", "6s")
    assert (done.returncode, b"task 0: imageGone: " in done.stderr) == (1, True), done.stderr
    assert status(cluster, "nothing")["phase"] == "TimedOut"


@pytest.mark.long
def test_tasks_that_mount_one_volume_have_it_one_after_the_other(cluster: Cluster, run: Job) -> None:
    cluster.ok("volume", "create", "tally", "--size", "64M")
    try:
        script = "touch /srv/of-$WEFT_TASK_INDEX; ls /srv | grep -c of-"
        assert run("tally", script, "--array", "0-2", "--mount", "tally:/srv").returncode == 0
        assert sorted(cluster.ok("job", "logs", "tally").split()) == ["1", "2", "3"]
    finally:
        cluster.run("job", "delete", "tally", "--yes")
        cluster.run("volume", "delete", "tally", "--yes")


def test_a_schedule_makes_a_run_each_minute(cluster: Cluster, run: Job, ticking: bytes) -> None:
    assert b"job/tick  Scheduled; first at " in ticking
    refused = run("bad", "true", "--schedule", "61 * * * *")
    assert (refused.returncode, b"'61 * * * *' is not a schedule: bad minute" in refused.stderr) == (2, True)
    until(lambda: len(cluster.json("job", "list", "-l", "job=tick")["items"]) >= 1, 90)
    child = min(item["name"] for item in cluster.json("job", "list", "-l", "job=tick")["items"])
    cluster.ok("wait", f"job/{child}")
    assert cluster.ok("job", "logs", child) == "ticked\n"
