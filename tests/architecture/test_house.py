"""The house holds: walls, sizes, and what the type checker and the linters say."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from source import FILES, ROOT, SOURCE, nodes_of, text_of, tree_of

CLOCK = SOURCE / "contracts" / "clock.py"
# A program of its own, one for each container, that imports nothing of weft: it writes down when a line was printed.
LOG_KEEPER = SOURCE / "drivers" / "runtime" / "oci" / "containerd" / "log_writer.py"
QUICK_COMPLETION = SOURCE / "cli" / "quick_completion.py"  # run by itself, too

SAYS_NOTHING = ("Outcome", "Refused", "Step", "Place", "Facts", "Kept")  # of one thing at most, without another noun


def run_tool(*argv: str) -> None:
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def lines_of(path: Path) -> int:
    return len(text_of(path).splitlines())


def hidden_imports(path: Path) -> Iterator[ast.stmt]:
    if not re.search(r"^\s+(import|from)\b", text_of(path), re.M):
        return
    imports = [*nodes_of(path, ast.Import, ast.ImportFrom)]
    for function in nodes_of(path, ast.FunctionDef, ast.AsyncFunctionDef):
        for node in imports:
            if function.lineno <= node.lineno <= (function.end_lineno or 0):
                yield node


def test_imports_point_down_and_rooms_on_one_line_never_meet() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", ".")


def test_every_file_is_as_the_formatter_writes_it() -> None:
    run_tool("ruff", "format", "--check", ".")  # make fmt writes it


def test_what_runs_before_a_commit_is_all_here() -> None:
    """No hook is fetched from elsewhere, and each runs a program that make install has brought."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = [hook["entry"].split()[0] for hook in hooks]
    assert [name for name in programs if not (ROOT / name).exists() and shutil.which(name) is None] == []


def test_the_type_checker_is_content() -> None:
    run_tool("mypy")


def test_each_folder_of_modules_is_a_package() -> None:
    """import-linter doesn't see the modules of another folder, so no wall would hold for them."""
    loose = sorted({str(path.parent.relative_to(ROOT)) for path in FILES if not (path.parent / "__init__.py").exists()})
    assert loose == [], "add an empty __init__.py"


def test_no_import_cycle() -> None:
    names = {".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in tree_of(path).body:
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            edges[name] |= {t for t in targets if t in names and t != name}
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> None:
        state[name] = 1
        for target in edges[name]:
            # A package that imports its own modules is its front page, not a cycle.
            if name.startswith(target + "."):
                continue
            assert state.get(target) != 1, "import cycle: " + " -> ".join([*path, name, target])
            if target not in state:
                visit(target, [*path, name])
        state[name] = 2

    for name in names:
        if name not in state:
            visit(name, [])


def test_at_most_five_imports_hide_in_functions() -> None:
    hidden = [f"{p.relative_to(ROOT)}:{n.lineno}" for p in FILES for n in hidden_imports(p)]
    assert len(hidden) <= 5, hidden


def test_files_stay_readable() -> None:
    sizes = sorted((lines_of(p), str(p.relative_to(ROOT))) for p in FILES if lines_of(p))
    p90 = sizes[int(len(sizes) * 0.9)]
    assert p90[0] <= 400, p90
    assert sizes[-1][0] <= 800, sizes[-1]


def test_no_class_is_wider_than_fifteen_public_methods() -> None:
    for path in FILES:
        for node in nodes_of(path, ast.ClassDef):
            public = [
                m.name
                for m in node.body
                if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)) and not m.name.startswith("_")
            ]
            assert len(public) <= 15, f"{path.relative_to(ROOT)}: {node.name} has {len(public)}: {public}"


def test_a_public_class_shares_its_name_with_two_others_at_most() -> None:
    """The noun that tells it apart is in its name: ``MigrationOutcome``, not the eleventh ``Outcome``."""
    modules: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: found for name, found in modules.items() if len(found) > (1 if name in SAYS_NOTHING else 3)} == {}


def test_only_the_clock_asks_for_the_time() -> None:
    asks = re.compile(
        r"\btime\.(time|monotonic|sleep|time_ns|monotonic_ns)\(|\bdatetime\.(now|utcnow)\(|\basyncio\.sleep\("
    )
    found = [
        f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
        for p in FILES
        if p not in (CLOCK, LOG_KEEPER, QUICK_COMPLETION)
        for i, line in enumerate(text_of(p).splitlines(), 1)
        if asks.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", ["utils", "common", "base", "manager", "helper", "helpers", "misc"])
def test_no_file_is_a_drawer_for_everything(word: str) -> None:
    assert not [p for p in FILES if p.stem == word or p.parent.name == word]


def test_no_file_keeps_unfinished_work() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    found = [
        f"{p.relative_to(ROOT)}:{i}"
        for p in FILES
        for i, line in enumerate(text_of(p).splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, found


def test_every_module_says_what_it_is() -> None:
    missing = [str(p.relative_to(ROOT)) for p in FILES if text_of(p).strip() and not ast.get_docstring(tree_of(p))]
    assert not missing, missing


def test_whoever_catches_everything_says_why_or_raises_it_again() -> None:
    silent = []
    for path in FILES:
        lines = text_of(path).splitlines()
        for node in nodes_of(path, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: a bare except"
            if not {"Exception", "BaseException"} & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}:
                continue
            again = isinstance(node.body[-1], ast.Raise)
            reason = any("#" in line for line in lines[node.lineno - 1 : node.body[0].lineno])
            if not again and not reason:
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


def test_nobody_takes_a_missing_attribute_for_a_lost_connection() -> None:
    """What is None where it shouldn't be is a defect, and shows; PyYAML alone says with it that a scalar is odd."""
    found = [
        str(p.relative_to(SOURCE))
        for p in FILES
        if re.search(r"(except|suppress|BROKEN)\b.*AttributeError", text_of(p))
    ]
    assert found == ["cli/manifest/yaml_text.py"]


def names_a_type(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return all(map(names_a_type, test.values))
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not) and names_a_type(test.operand)
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"


def test_an_assert_in_the_product_only_tells_the_type_checker_what_is_so() -> None:
    """Python leaves asserts out when it is told to be quick: what somebody gave us is never checked by one."""
    checks = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node in nodes_of(path, ast.Assert)
        if not names_a_type(node.test) and node not in tree_of(path).body
    ]
    assert checks == []


def test_no_hint_deletes_or_goes_back_without_asking() -> None:
    hasty = []
    for path in FILES:
        if "--yes" not in text_of(path):
            continue
        for node in nodes_of(path, ast.JoinedStr, ast.Constant):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            if re.search(r"(?<!`)weft .*\b(delete|restore)\b.* --yes\b", text):
                hasty.append((path.name, text[:200]))
    assert not hasty


def test_no_hint_deletes_what_has_a_name_that_is_wanted() -> None:
    """Whoever makes a thing under a name that is taken, by mistake or twice, isn't led to delete what has it; at most asked whether
    anybody needs it."""
    hasty = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in nodes_of(path, ast.Call)
        if says_a_name_is_taken(node)
        and re.search(r"(?<!=)\bdelete\b", words := ast.get_source_segment(text_of(path), node) or "")
        and "if nobody needs" not in words
    ]
    assert hasty == []


def says_a_name_is_taken(call: ast.Call) -> bool:
    reasons = [one.value for one in call.keywords if one.arg == "reason" and isinstance(one.value, ast.Constant)]
    is_taken = isinstance(call.func, ast.Name) and call.func.id == "AlreadyExists"
    return is_taken or any(str(one.value).endswith("Taken") for one in reasons)


def test_no_two_test_modules_have_one_name_where_a_folder_is_no_package() -> None:
    """Each would keep the other from being collected, and only when both are: a run of one room doesn't show it."""
    loose = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in loose]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


IN_CODE = re.compile(r"from (weft[\w.]*) import (\w+(?:, \w+)*)")
TO_DIE_AT = re.compile(r"([a-z_.]+:[A-Z]\w+\.\w+):(?:before|after)")  # see tests/host/migration_node.py


def test_names_of_the_product_in_texts_of_tests_are_there() -> None:
    """What a test hands to another process as text breaks without a word where a name of the product is changed."""
    gone = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text()
        if path.parent.name == "architecture" or not (IN_CODE.search(text) or TO_DIE_AT.search(text)):
            continue
        for node in ast.walk(ast.parse(text)):
            said = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            names = [f"{found[1]}.{name}" for found in IN_CODE.finditer(said) for name in found[2].split(", ")]
            for name in [*names, *(f"weft.agent.{found[1]}" for found in TO_DIE_AT.finditer(said))]:
                try:
                    pkgutil.resolve_name(name.replace(":", "."))
                except (ImportError, AttributeError):
                    gone.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert gone == []


def test_what_a_bench_imports_from_the_product_is_there() -> None:
    """No other test runs the benches: a name that is changed in the product would break one without a word."""
    gone = []
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "weft":
                module = importlib.import_module(node.module or "")
                gone += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
                ]
            elif isinstance(node, ast.Tuple) and len(node.elts) > 1:  # ("weft.module", "name", …): what is replaced
                where, name = (one.value if isinstance(one, ast.Constant) else None for one in node.elts[:2])
                if isinstance(where, str) and isinstance(name, str) and where.startswith("weft."):
                    found = pkgutil.resolve_name(where)
                    gone += [] if hasattr(found, name) else [f"{path.relative_to(ROOT)}:{node.lineno}: {where}.{name}"]
    assert gone == []
