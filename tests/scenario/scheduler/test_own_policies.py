"""Users' own policies, in real worker processes: what they answer counts, and whatever they do wrong is theirs alone."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.policies.test_policies import GIB, ask, make, node, put

from weft.contracts.policy import Datum, GpuAsk, Request, Spread
from weft.kinds.fields.strategy import Term
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.own_policies import process as process_module
from weft.scheduler.own_policies import registry as own_module
from weft.scheduler.own_policies.process import PolicyFailed, read_columns
from weft.scheduler.own_policies.registry import STRIKES, OwnPolicies
from weft.scheduler.policies import POLICIES, Policies
from weft.scheduler.table.facts import Gpu
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.usage import Measured

PATIENT = 20.0  # a loaded machine is not what is tried here
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process other rights")


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Lab:
    """A policy's file, and an engine that uses it over three nodes of which n3 is the emptiest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mine.py"
        self.clock = Clock()
        self.snapshot = make(*(node(name, cpu=16, memory=32) for name in ("n1", "n2", "n3")))
        put(self.snapshot, "n1", 4, 8)
        put(self.snapshot, "n2", 2, 4)
        self.own = OwnPolicies(POLICIES["least_loaded"], self.clock, isolated=True, timeout_seconds=PATIENT)
        self.engine = Engine(self.snapshot, policies=Policies(self.own.find))
        self.strategy = f"file:{self.path}"

    def write(self, source: str) -> None:
        self.path.write_text(source)

    def begin(self, source: str, timeout_seconds: float = PATIENT) -> None:
        self.write(source)
        self.own._timeout_seconds = timeout_seconds
        self.own.prepare(self.strategy, PATIENT)

    def choose(self, **more: object) -> str:
        request: Request = ask(self.strategy, **more)  # type: ignore[arg-type]
        self.own.prepare(self.strategy)
        row = self.engine.choose(request, "vm1")
        assert row is not None
        return self.snapshot.names[row]

    def skipped(self) -> str:
        return " ".join(self.own.skipped(self.strategy))

    @property
    def reason(self) -> str:
        health = self.own.find(Term(self.strategy)).health
        return "" if health is None else health.reason


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.own.close()


FULLEST = """
def score(table, request, occasion):
    return 100.0 * table.allocated[0] / table.capacity[0]
"""


def test_what_a_policy_answers_decides(lab: Lab) -> None:
    lab.begin(FULLEST)
    assert lab.choose() == "n1" and not lab.skipped() and lab.reason == "Answers"
    told = explain(lab.engine, ask(lab.strategy), "vm1", 0)
    assert [(term.name, term.value) for term in told.verdicts[0].terms] == [("mine", 25.0)]
    put(lab.snapshot, "n2", 8, 8)
    assert lab.choose() == "n2"


def test_a_policy_sees_all_of_the_table_and_the_request(lab: Lab) -> None:
    lab.snapshot.put_node(
        node("n4", texts={"zone": "a"}, numbers={"cost": 2.5}, extras={"sriov": 3}, gpus=(Gpu("T4", 16 * GIB),),
             taints=frozenset({"spot"}), data=frozenset({"pool:raw"}), round_trips={"uid-n1": 7.0})
    )  # fmt: skip
    put(lab.snapshot, "n4", 1, 1, "p/g")
    lab.snapshot.put_use("uid-n2", Measured((500, 0, 0)))
    lab.begin("""
from weft.contracts.policy import Column
import numpy as np

def score(table, request, occasion):
    assert list(table.names) == ["n1", "n2", "n3", "n4"] and table.uids[3] == "uid-n4"
    assert table.text("zone").words == ["a"] and list(table.text("zone").codes) == [-1, -1, -1, 0]
    assert table.text("rack") is None and table.number("nothing") is None
    assert table.number("cost")[3] == 2.5 and np.isnan(table.number("cost")[0])
    assert list(table.extra("sriov")[0]) == [0, 0, 0, 3]
    assert list(table.members("p/g")) == [0, 0, 0, 1] and list(table.holds("pool:raw")) == [False] * 3 + [True]
    assert table.distance("uid-n1")[3] == 7.0 and table.machine("q35").all() and table.online.all()
    assert [(name, list(flags)) for name, flags in table.taints()] == [("spot", [False] * 3 + [True])]
    assert list(table.measured) == [False, True, False, False]
    assert list(table.used[0] - table.allocated[0]) == [0, 500, 0, 0] and request.basis == "allocation"
    assert table.gpu_free.shape == (4, 1) and table.gpu_memory[3, 0] == 16 * 1024**3
    assert table.gpu_model.words[table.gpu_model.codes[3, 0]] == "T4"
    assert request.amounts == (1000, 1024**3, 1024**3) and request.gpus.count == 1 and request.data[0].bytes == 5
    assert request.spread[0].key == "zone" and request.groups == ("p/g",) and request.mode == "serverless"
    assert (occasion.uid, occasion.last) == ("vm1", None)
    return [Column("a", 3.0, table.online * 100.0), Column("b", 1.0, np.arange(4.0))]
""")
    request = ask(
        lab.strategy, gpus=GpuAsk(1), data=(Datum("pool:raw", 5),), spread=(Spread("zone", 1, "p/g"),),
        groups=("p/g",), tolerations=("spot",), mode="serverless",
    )  # fmt: skip
    lab.engine.choose(request, "vm1")
    assert not lab.skipped()
    columns = POLICIES.get("least_loaded") and lab.engine.terms(request, "vm1", [3])
    assert columns is not None and [(c.name, c.weight, c.values[0]) for c in columns] == [
        ("a", 0.75, 100.0),
        ("b", 0.25, 3.0),
    ]


SHOUTS = """
    import os
    for descriptor in range(3, 4096):
        try:
            os.write(descriptor, b"\\xff" * 64)
        except OSError:
            pass
"""


FAILURES = [
    ("raise ValueError('no')", "raised"),
    ("raise SystemExit(0)", "raised"),
    ("return 1 / 0", "raised"),
    ("return score(table, request, occasion)", "raised"),
    ("return bytearray(3 << 30)", "raised"),
    ("import os; return os.fork()", "raised"),
    ("open('/tmp/weft-policy-was-here', 'w').write('x')", "raised"),
    ("import socket; socket.create_connection(('127.0.0.1', 1), 5)", "raised"),
    ("table.capacity[0] = 0; return [1] * 3", "raised"),
    ("return [float('nan')] * 3", "notFinite"),
    ("return [1, 2, float('inf')]", "notFinite"),
    ("return [0, 50, 100.5]", "outOfRange"),
    ("return [-1, 50, 100]", "outOfRange"),
    ("return [1, 2]", "wrongShape"),
    ("return [[1], [2], [3]]", "wrongShape"),
    ("return 5", "wrongShape"),
    ("return None", "wrongShape"),
    ("return 'abc'", "wrongShape"),
    ("return {'n1': 1}", "wrongShape"),
    ("return []", "wrongShape"),
    ("return [1, 2, 3j]", "wrongShape"),
    ("raise ValueError('\\x1b[2J\\nover there')", "raised"),
    ("[table.number(f'a{i}') for i in range(1000)]", "asksTooMuch"),
    ("table.members('x' * 1000)", "asksTooMuch"),
]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One policy that fails in each of these ways, as the workload's uid says, in one worker that outlives them all."""
    lab = Lab(tmp_path_factory.mktemp("failing"))
    ways = [f"def way{at}(table, request, occasion):\n    {body}\n" for at, (body, _) in enumerate(FAILURES)]
    lab.begin(
        "".join(ways)
        + "def score(table, request, occasion):\n    return globals()[occasion.uid](table, request, occasion)\n"
    )
    yield lab
    lab.own.close()


@pytest.mark.parametrize("way", range(len(FAILURES)), ids=[f"{body[:40]}-{reason}" for body, reason in FAILURES])
def test_one_that_fails_is_skipped_and_says_why(failing: Lab, way: int) -> None:
    before = pid_of(failing)
    row = failing.engine.choose(ask(failing.strategy), f"way{way}")
    assert row is not None and failing.snapshot.names[row] == "n3"  # as least_loaded has it
    reason = FAILURES[way][1]
    assert failing.reason == reason and f": {reason}: " in failing.skipped()
    assert failing.skipped().isprintable() and not Path("/tmp/weft-policy-was-here").exists()
    failing.clock.at += 61.0  # it isn't left alone for longer
    failing.own.prepare(failing.strategy, PATIENT)
    assert (pid_of(failing) == before) is (reason != "asksTooMuch")  # that one gets another worker


@pytest.mark.parametrize(
    "body", ["import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", SHOUTS]
)
def test_one_whose_worker_ends_is_skipped_and_says_so(lab: Lab, body: str) -> None:
    lab.begin(f"def score(table, request, occasion):\n    {body}\n")
    assert lab.choose() == "n3" and lab.reason == "ended" and ": ended: " in lab.skipped()


@pytest.mark.parametrize(
    ("source", "reason", "says"),
    [
        ("def score(table, request, occasion:\n", "raised", "SyntaxError"),
        ("import nonsense_that_is_not\n", "raised", "ModuleNotFoundError"),
        ("x = 1\n", "noScore", "score(table, request, occasion)"),
        ("score = 1\n", "noScore", "score(table, request, occasion)"),
        ("raise RuntimeError('at once')\n", "raised", "RuntimeError: at once (line 1)"),
        ("import os\nos._exit(7)\n", "ended", "exit status 7"),
        ("#" * 300_000, "fileUnreadable", "256 KiB"),
    ],
)
def test_one_that_can_not_be_read_is_skipped_and_says_why(lab: Lab, source: str, reason: str, says: str) -> None:
    lab.begin(source)
    assert lab.choose() == "n3" and lab.reason == reason and says in lab.skipped()


def test_a_file_that_is_none_is_skipped_and_its_content_is_not_told(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    for name, says in (("gone", "no such file"), ("folder", "is a directory"), ("pipe", "is not a file")):
        path = tmp_path / f"{name}.py"
        lab.strategy = f"file:{path}"
        lab.own.prepare(lab.strategy, PATIENT)
        assert lab.choose() == "n3" and says in lab.skipped(), path


def test_one_that_never_ends_being_read_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "START_SECONDS", 0.5)
    lab.write("while True:\n    pass\n")
    until = time.monotonic() + PATIENT
    while not lab.own.prepare(lab.strategy) and time.monotonic() < until:
        time.sleep(0.05)
    assert lab.choose() == "n3" and lab.reason == "timedOut" and "inside its function" in lab.skipped()
    assert lab.own.find(Term(lab.strategy))._worker is None


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everyone may read, as installed packages lie in."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_an_installed_package_may_offer_a_policy(lab: Lab, readable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(process_module._ENVIRONMENT, "PYTHONPATH", str(readable))
    (readable / "acme.py").write_text(f"{FULLEST}\nspread = 5\n")
    about = readable / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[weft.policies]\nacme = acme\nfullest = acme:score\nnone = acme:spread\n")
    offered = (
        ("acme", "n1", ""),
        ("fullest", "n1", ""),
        ("none", "n3", "noScore"),
        ("gone", "n3", "no installed package"),
    )
    for name, chosen, says in offered:
        lab.strategy = f"entry:{name}"
        lab.own.prepare(lab.strategy, PATIENT)
        assert lab.choose() == chosen and says in lab.skipped() and bool(lab.skipped()) == bool(says), lab.skipped()


def test_one_that_blocks_costs_one_time_out_and_then_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(own_module.PolicyWorker, "ask", _counting(asked, own_module.PolicyWorker.ask))
    lab.begin("def score(table, request, occasion):\n    while True: pass\n", timeout_seconds=0.1)
    pid = pid_of(lab)
    for _ in range(50):
        assert lab.choose() == "n3"
        lab.own.prepare(lab.strategy)
    assert len(asked) == 1 and lab.reason == "timedOut" and not alive(pid)
    pauses = []
    for _ in range(7):  # each time it gets a new worker after a longer pause
        before = lab.clock.at
        while len(asked) < 2 + len(pauses):
            lab.clock.at += 0.5
            lab.own.prepare(lab.strategy, PATIENT)
            lab.choose()
        pauses.append(lab.clock.at - before)
    assert pauses[0] <= 1.5 and pauses == sorted(pauses) and 59.0 <= pauses[-1] <= 61.0


def _counting(asked: list[float], ask: object) -> object:
    def count(*given: object) -> object:
        asked.append(time.monotonic())
        return ask(*given)  # type: ignore[operator]

    return count


def test_one_that_raises_again_and_again_is_left_alone_for_a_while(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(own_module.PolicyWorker, "ask", _counting(asked, own_module.PolicyWorker.ask))
    lab.begin("def score(table, request, occasion):\n    raise ValueError\n")
    for number in range(30):
        lab.engine.choose(ask(lab.strategy), f"vm{number}")
    assert len(asked) == STRIKES
    lab.clock.at += 1.1
    lab.engine.choose(ask(lab.strategy), "later")
    assert len(asked) == STRIKES + 1


def test_one_that_fails_now_and_then_is_asked_again_and_is_sound_after_some_time(lab: Lab) -> None:
    lab.begin("""
def score(table, request, occasion):
    if occasion.uid == "odd":
        raise ValueError("odd")
    return [1, 2, 3] if occasion.uid == "up" else [3, 2, 1]
""")
    request = ask(lab.strategy)
    assert lab.engine.choose(request, "up") == 2 and lab.own.take_news()[lab.strategy].working
    assert lab.engine.choose(request, "odd") == 2 and "ValueError: odd (line 4)" in lab.skipped()
    assert lab.own.take_news()[lab.strategy].reason == "raised" and not lab.own.take_news()
    for number in range(20):
        assert lab.engine.choose(request, f"down{number}") == 0 and not lab.skipped()
    assert lab.own.take_news()[lab.strategy].working


def test_a_decision_asks_once_however_often_it_is_looked_at(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(own_module.PolicyWorker, "ask", _counting(asked, own_module.PolicyWorker.ask))
    lab.begin(
        "import random\ndef score(table, request, occasion):\n    return [random.random() * 100 for _ in range(3)]\n"
    )
    request = ask(lab.strategy)
    row = lab.engine.choose(request, "vm1")
    told = explain(lab.engine, request, "vm1", row)
    best = told.verdicts[0]
    assert len(asked) == 1 and row is not None and best.node == lab.snapshot.names[row]
    assert best.score is not None and all(verdict.score <= best.score for verdict in told.verdicts if verdict.score)
    put(lab.snapshot, "n1", 1, 1)
    lab.engine.choose(request, "vm1")
    assert len(asked) == 2


def test_a_changed_file_counts_and_what_was_wrong_with_the_old_one_is_forgotten(lab: Lab) -> None:
    lab.begin("def score(table, request, occasion):\n    raise ValueError\n")
    for _ in range(5):
        lab.choose()
    lab.write(FULLEST)
    lab.clock.at += 1.0  # files are looked at so often
    assert not lab.own.prepare(lab.strategy) or lab.reason == "Answers"
    assert lab.own.prepare(lab.strategy, PATIENT) and lab.choose() == "n1" and lab.reason == "Answers"


def test_a_worker_that_is_killed_is_followed_by_another(lab: Lab) -> None:
    lab.begin(FULLEST)
    assert lab.choose() == "n1"
    os.kill(pid_of(lab), signal.SIGKILL)
    put(lab.snapshot, "n1", 0.5, 0.5)
    assert lab.choose() == "n3" and lab.reason == "ended" and "signal 9" in lab.skipped()
    lab.clock.at += 1.1
    lab.own.prepare(lab.strategy, PATIENT)
    put(lab.snapshot, "n1", 0.5, 0.5)
    assert lab.choose() == "n1" and not lab.skipped()


def test_an_own_policy_beside_others_is_weighed_and_skipped_alone(lab: Lab) -> None:
    lab.begin(FULLEST)
    lab.strategy = f"file:{lab.path}:9,least_loaded:1"
    assert lab.choose() == "n1"
    lab.own.close()
    os.unlink(lab.path)
    lab.clock.at += 2.0
    lab.own.prepare(lab.strategy, PATIENT)
    put(lab.snapshot, "n1", 0.5, 0.5)
    assert lab.choose() == "n3" and "no such file" in lab.skipped()


def test_no_more_workers_than_are_allowed_and_none_is_left_behind(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_module, "MOST_WORKERS", 2)
    pids = []
    for number in range(own_module.MOST_WORKERS + 2):
        path = tmp_path / f"p{number}.py"
        path.write_text(FULLEST)
        lab.clock.at += 1.0
        lab.own.prepare(f"file:{path}", PATIENT)
        worker = lab.own.find(Term(f"file:{path}"))._worker
        assert worker is not None
        pids.append(worker._process.pid)
    assert [alive(pid) for pid in pids] == [False, False] + [True] * own_module.MOST_WORKERS
    lab.own.close()
    assert not any(map(alive, pids))


def test_a_server_that_is_not_root_runs_none(tmp_path: Path) -> None:
    own = OwnPolicies(POLICIES["best_fit"], Clock(), isolated=False)
    (tmp_path / "mine.py").write_text(FULLEST)
    strategy = f"file:{tmp_path}/mine.py"
    assert own.prepare(strategy) and own.take_news()[strategy].reason == "notIsolated"
    assert own.find(Term(strategy))._worker is None


@root_only
def test_a_worker_has_no_rights_no_secrets_and_no_network(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o600)
    os.environ["WEFT_SECRET_FOR_TEST"] = "hidden"
    lab.begin(f"""
import os, socket

def refused(what):
    try:
        what()
    except OSError:
        return True
    return False

def score(table, request, occasion):
    assert os.getuid() == os.geteuid() >= 0x7800_0000 or os.getuid() == 65534
    assert os.getgroups() == [] and "WEFT_SECRET_FOR_TEST" not in os.environ
    assert refused(lambda: open({str(secret)!r})) and refused(lambda: os.listdir("/root"))
    assert refused(lambda: os.kill(os.getppid(), 0)) and refused(lambda: open(f"/proc/{{os.getppid()}}/environ"))
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert len(os.listdir("/proc/self/fd")) <= 5  # the three, the line, and the one of listdir
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert status["NoNewPrivs"].strip() == "1" and int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    return [1, 3, 2]
""")
    assert lab.choose() == "n2" and not lab.skipped(), lab.skipped()


def test_a_worker_ends_with_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FULLEST)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        own = OwnPolicies(POLICIES["best_fit"], Clock(), isolated=True)
        own.prepare(f"file:{tmp_path}/mine.py", PATIENT)
        worker = own.find(Term(f"file:{tmp_path}/mine.py"))._worker
        os.write(writer, str(worker._process.pid if worker else 0).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    pid = int(os.read(reader, 20))
    os.waitpid(child, 0)
    until = time.monotonic() + PATIENT
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert pid and not alive(pid)


def pid_of(lab: Lab) -> int:
    worker = lab.own.find(Term(lab.strategy))._worker
    assert worker is not None
    return worker._process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_nothing_is_asked_where_there_are_no_nodes(lab: Lab) -> None:
    lab.begin("def score(table, request, occasion):\n    raise ValueError\n")
    engine = Engine(Snapshot(), policies=Policies(lab.own.find))
    assert engine.choose(ask(lab.strategy), "vm1") is None and not lab.skipped()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=24),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(
    anything | st.lists(st.tuples(st.text(max_size=4), st.floats(), st.binary(min_size=24, max_size=24)), max_size=3)
)
def test_whatever_a_worker_answers_is_checked_before_it_counts(body: object) -> None:
    try:
        columns = read_columns(body, 3)
    except (PolicyFailed, ValueError, TypeError):  # each of which ends in the policy being skipped
        return
    assert sum(column.weight for column in columns) == pytest.approx(1.0)
    for column in columns:
        assert column.values.shape == (3,) and ((column.values >= 0.0) & (column.values <= 100.0)).all()
