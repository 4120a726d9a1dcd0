"""Which server, project and form are used: a flag goes before a variable, that before the project's file, that before a user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.cli.app import run
from weft.contracts.clock import SystemClock
from weft.objects.errors import Unavailable

Weft = Callable[..., tuple[int, str, str]]


def put(path: Path, told: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WEFT_CONTEXT", "WEFT_SERVER", "WEFT_OUTPUT", "WEFT_PROJECT", "WEFT_TOKEN", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def weft(home: Path, capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*argv: str) -> tuple[int, str, str]:
        code = run(argv, SystemClock)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def shown(weft: Weft, *flags: str) -> dict[str, dict[str, str]]:
    code, out, err = weft(*flags, "config", "view", "--show-origin", "-o", "json")
    assert code == 0, err
    told: dict[str, dict[str, str]] = json.loads(out)
    return told


def test_contexts_have_names_and_one_is_in_use(weft: Weft, home: Path) -> None:
    assert weft("context", "list")[2] == "no contexts: weft context add NAME FILE\n"
    for name in ("prod", "lab"):
        file = put(home / f"{name}.json", {"server": f"https://{name}", "token": f"weft_{name}", "project": name})
        assert weft("context", "add", name, str(file))[0] == 0
    stored = home / "home" / ".config" / "weft" / "contexts" / "prod.json"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert weft("context", "show")[0] == 4, "none is in use yet"
    assert weft("context", "use", "prod") == (0, "context  prod\n", "")
    assert json.loads(weft("context", "show", "-o", "json")[1])["server"] == "https://prod"
    rows = weft("context", "list", "--no-header", "-c", "in-use,name,server")[1].splitlines()
    assert [row.split() for row in rows] == [["lab", "https://lab"], ["*", "prod", "https://prod"]]
    assert weft("context", "list", "-o", "name")[1] == "lab\nprod\n"
    assert json.loads(weft("--context", "lab", "context", "show", "-o", "json")[1])["chosen_by"] == "--context"
    code, _, err = weft("context", "use", "prd")
    assert code == 4 and "contexts: lab, prod" in err
    assert weft("context", "remove", "lab")[0] == 0 and "lab" not in weft("context", "list")[1]
    assert weft("context", "add", "lab")[0] == 2 and weft("context", "use")[0] == 2
    again = ("context", "add", "prod", str(put(home / "next.json", {"server": "https://next"})))
    code, _, err = weft(*again)
    assert code == 5 and "context/prod exists already\ngive another name, or --force" in err
    assert weft(*again, "--force")[0] == 0 and "https://next" in weft("context", "list")[1]
    (home / "diary.txt").write_text("dear diary")
    code, _, err = weft("login", "--server", "https://one", "--user", "ann", "--save-as", str(home / "diary.txt"))
    assert code == 2 and "diary.txt exists already and is not a context" in err
    code, _, err = weft("login", "--server", "https://one", "--user", "ann", "--save-as", f"{home}/")
    assert code == 2 and f"is a folder\ngive a file in it: {home}/NAME.json" in err


def test_the_context_of_another_server_is_replaced_only_by_force(weft: Weft, home: Path) -> None:
    own = home / "home" / ".config" / "weft"
    put(own / "context.json", {"server": "https://two"})
    kept = put(own / "contexts" / "ann.json", {"server": "https://one", "token": "weft_one"})
    for more in ((), ("--save-as", "ann"), ("--save-as", str(kept))):
        code, _, err = weft("login", "--user", "ann", *more)
        assert code == 5 and "ann.json is the context of another server, https://one\ngive --save-as NAME" in err
    file = str(put(home / "three.json", {"server": "https://three"}))
    code, _, err = weft("context", "use", file)
    assert code == 5 and "of another server, https://two\nweft context add NAME FILE" in err
    assert "weft_one" in kept.read_text() and "https://two" in (own / "context.json").read_text()
    assert weft("context", "use", file, "--force")[0] == 0 and weft("context", "use", file)[0] == 0


def test_a_context_is_used_by_its_name_alone_and_one_that_is_removed_is_used_no_more(weft: Weft, home: Path) -> None:
    for name in ("prod", "lab"):
        file = put(home / f"{name}.json", {"server": "https://one", "project": name})
        weft("context", "add", name, str(file))
    assert weft("context", "lab") == (0, "context  lab\n", "")
    assert shown(weft)["project"]["value"] == "lab"
    code, _, err = weft("context", "prd")
    assert code == 4 and "contexts: lab, prod" in err
    code, out, err = weft("context", "remove", "lab")
    assert (code, out) == (0, "context/lab  removed\n") and "weft context NAME" in err
    code, _, err = weft("vm", "list")
    assert code == 4 and "no weft context found" in err, "nothing that is gone is named"
    weft("context", "prod")
    code, _, err = weft("--context", str(home / "gone.json"), "vm", "list")
    assert code == 4 and "gone.json does not exist\nweft context list" in err


def test_of_two_files_that_are_called_so_the_context_is_removed_and_is_in_use_as_long_as_it_is_there(
    weft: Weft, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = home / "home" / ".config" / "weft" / "contexts" / "lab.json"
    file = put(home / "lab.json", {"server": "https://one", "project": "lab"})
    weft("context", "add", "lab", str(file))
    weft("context", "lab")
    Path("lab").write_text("somebody's own")

    def fail(path: Path, settings: object) -> None:
        raise Unavailable("no room")

    with monkeypatch.context() as full:
        full.setattr("weft.cli.verbs.context.write_settings", fail)
        assert "no room" in weft("context", "remove", "lab")[2]
    assert stored.exists() and shown(weft)["project"]["value"] == "lab", "nothing half-done is left"
    assert weft("context", "remove", "lab")[0] == 0
    assert Path("lab").read_text() == "somebody's own" and not stored.exists()


def test_a_context_that_is_chosen_where_another_is_stronger_says_so(weft: Weft, home: Path) -> None:
    """Also where both ask the same server: their projects and tokens may be others."""
    here = put(home / "work" / ".weft" / "context.json", {"server": "https://one", "project": "clone"})
    weft("context", "add", "lab", str(put(home / "lab.json", {"server": "https://one", "project": "lab"})))
    code, _, err = weft("context", "use", "lab")
    assert code == 0 and f"{here} overrides this context here" in err
    here.unlink()
    assert weft("context", "use", "lab")[2] == ""


def test_a_flag_goes_before_a_variable_that_before_the_project_that_before_the_user(
    weft: Weft, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = home / "home" / ".config" / "weft"
    for name in ("flag", "variable", "project", "user"):
        put(user / "contexts" / f"{name}.json", {"server": f"https://{name}", "token": "weft_x"})
    mine = put(user / "config.json", {"context": "user", "project": "pu", "output": "wide"})
    found = shown(weft)
    assert found["server"]["value"] == "https://user"
    assert found["project"] == {"value": "pu", "origin": str(mine)}

    ours = put(home / "work" / ".weft" / "config.json", {"context": "project", "project": "pp"})
    found = shown(weft)
    assert found["context"]["origin"] == found["project"]["origin"] == str(ours)
    assert (found["server"]["value"], found["project"]["value"]) == ("https://project", "pp")
    assert weft("config", "view", "--show-origin")[1].splitlines()[4].split()[:2] == ["output", "wide"], (
        "the user's still"
    )

    for name, value in (("CONTEXT", "variable"), ("PROJECT", "pv"), ("OUTPUT", "yaml")):
        monkeypatch.setenv(f"WEFT_{name}", value)
    found = shown(weft)
    assert found["server"]["value"] == "https://variable" and found["project"]["origin"] == "WEFT_PROJECT"
    assert "output: yaml" in weft("config", "view")[1]

    found = shown(weft, "--context", "flag", "-p", "pf")
    assert found["server"]["value"] == "https://flag"
    assert (found["project"], found["output"]["origin"]) == ({"value": "pf", "origin": "--project"}, "--output")


def test_settings_show_no_token_and_what_cannot_be_read_is_named(weft: Weft, home: Path) -> None:
    put(home / "work" / ".weft" / "context.json", {"server": "https://here", "token": "weft_admin_5ecret"})
    for form in ("json", "yaml", "table"):
        code, out, _ = weft("config", "view", "--show-origin", "-o", form)
        assert code == 0 and "5ecret" not in out and "https://here" in out
    file = put(home / "work" / ".weft" / "config.json", {"contxt": "prod"})
    code, _, err = weft("config", "view")
    assert code == 2 and str(file) in err and "contxt" in err


def test_a_form_that_is_none_is_refused_wherever_it_is_said(
    weft: Weft, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_OUTPUT", "jsn")
    code, _, err = weft("schema", "vm")
    assert code == 2 and "did you mean json?" in err and "Traceback" not in err
