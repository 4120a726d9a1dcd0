"""The hand-written pages of docs/reference and the words people find in them say what the code says."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable

from source import FILES, ROOT, nodes_of, text_of
from tools.site.pages import find_anchors, find_links, list_pages

import weft.contracts.store  # noqa: F401  its errors belong to the tree
from weft.api.request.problem import STATUS
from weft.cli.command.exit_codes import exit_code
from weft.launch.reference import write_page
from weft.objects.errors import WeftError
from weft.protocol.frames import FrameType

PAGES = ROOT / "docs" / "reference"


def all_errors(cls: type[WeftError] = WeftError) -> dict[str, type[WeftError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found |= all_errors(sub)
    return found


def find_reasons() -> dict[str, set[type[WeftError]]]:
    """Every reason that the source gives an error, with the classes of the errors that have it."""
    classes = all_errors()
    reasons = {cls.reason: {cls} for cls in classes.values() if "reason" in vars(cls)}
    for path in FILES:
        for node in nodes_of(path, ast.Call):
            if isinstance(node.func, ast.Name) and (cls := classes.get(node.func.id)):
                for word in node.keywords:
                    values = [word.value.body] if isinstance(word.value, ast.IfExp) else [word.value]
                    if word.arg == "reason":
                        for value in values:
                            if isinstance(value, ast.Constant):
                                reasons.setdefault(value.value, set()).add(cls)
    return reasons


def read_table(page: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in (PAGES / page).read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_every_reason_of_an_error_is_in_the_reference_with_its_http_status_and_exit_code() -> None:
    told = {reason: (status, exit_) for reason, status, exit_, _ in read_table("errors.md")}
    truth = {}
    for reason, classes in find_reasons().items():
        truth[reason] = set()
        for cls in classes:
            known = [
                STATUS[r] for r in (reason, *(c.reason for c in cls.__mro__ if issubclass(c, WeftError))) if r in STATUS
            ]
            truth[reason].add((str(known[0] if known else 500), str(exit_code(cls("", reason=reason)))))
    missing, wrong = truth.keys() - told.keys(), {r for r in truth.keys() & told.keys() if told[r] not in truth[r]}
    assert not missing and not wrong, {r: truth[r] for r in missing | wrong}
    for reason in told.keys() - truth.keys():  # given by a table, or why a VM waits
        assert any(f'"{reason}"' in text_of(p) for p in FILES), reason
        assert told[reason] == (str(STATUS.get(reason, "")), str(exit_code(WeftError("", reason=reason))))


def test_every_variable_that_weft_reads_is_in_the_reference() -> None:
    text = "".join(map(text_of, FILES))
    read = set(re.findall(r'"((?:WEFT|SCHEDULING)_[A-Z]+)"', text))
    assert read <= {row[0] for row in read_table("environment.md")} and len(read) > 5


def test_the_page_of_settings_is_what_the_processes_understand() -> None:
    assert (PAGES / "settings.md").read_text() == write_page(), (
        "python -m weft.launch.reference > docs/reference/settings.md"
    )


def test_the_frames_of_the_gateway_are_in_the_reference() -> None:
    assert [(row[0], row[1]) for row in read_table("gateway.md")] == [(t.name, str(t.value)) for t in FrameType]


def find_dead_links(pages: dict[str, str], there: Callable[[str], bool]) -> list[str]:
    anchors = {page: find_anchors(text) for page, text in pages.items()}
    return [
        f"{page}: {link.target}{'#' if link.anchor else ''}{link.anchor}"
        for page, text in pages.items()
        for link in find_links(text, page)
        if (link.target and not there(link.target))
        or (link.anchor and link.anchor not in anchors.get(link.target or page, ()))
    ]


def test_every_link_in_the_documents_leads_to_a_file_or_a_heading() -> None:
    pages = {page: (ROOT / page).read_text() for page in list_pages()}
    assert {"README.md", "docs/README.md", "docs/map.md", "CHANGELOG.md"} < pages.keys() and len(pages) > 400
    assert find_dead_links(pages, lambda path: (ROOT / path).exists()) == []


def test_a_link_to_no_file_and_one_to_no_heading_are_found() -> None:
    text = (
        "# A `b` page\n[here](#a-b-page) [gone](#gone) [file](c.md#b) [label]: no\n```\n[in code](no)\n```\n`[a](b)`\n"
    )
    pages = {"docs/a.md": text, "docs/c.md": "[`up`](../a.md)\n[lost]: no/such.md\n[net](https://weft.example/a#b)\n"}
    found = find_dead_links(pages, lambda path: path in pages)
    assert found == ["docs/a.md: #gone", "docs/a.md: docs/c.md#b", "docs/c.md: a.md", "docs/c.md: docs/no/such.md"]


def test_every_commit_that_was_measured_is_in_the_history_or_said_to_be_gone() -> None:
    """A figure can be taken again only at a commit that is there: measure what has landed, not what is still moved about."""
    text = (ROOT / "docs/measured.md").read_text() + (ROOT / "docs/measured-archive.md").read_text()
    named = re.findall(r"^_commit ([0-9a-f]+)\+?([^,]*),|^## .* against ([0-9a-f]+)$", text, re.M)
    kept = {commit or against for commit, said, against in named if said != " (gone from the history)"}
    is_older = ["git", "merge-base", "--is-ancestor"]
    assert [c for c in kept if subprocess.run([*is_older, c, "HEAD"], cwd=ROOT, capture_output=True).returncode] == []
    assert kept
