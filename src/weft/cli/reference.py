"""``python -m weft.cli.reference cli|exit-codes``: the reference pages, written from the commands themselves.

docs/reference holds what this prints; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from weft.cli.command.exit_codes import MEANINGS
from weft.cli.command.grammar import AFTER, MAKEABLE, TOOLS, Entry, load, verbs_of
from weft.cli.command.options import common, parts, table
from weft.cli.command.synonyms import SYNONYMS
from weft.cli.output.form import describe_forms
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS

_HEAD = """\
# The command line

Written by `python -m weft.cli.reference cli`; change the commands, not this page.

`weft NOUN VERB [NAME]` and `weft VERB NOUN NAME` mean the same, and every verb takes `NAME` or `KIND/NAME`:
`weft vm describe web`, `weft describe vm web`, `weft describe vm/web`. A noun is a kind or its plural.

- **Names.** Without a kind, weft looks the NAME up: `weft describe web`, `weft logs web`; `delete` needs the kind. Verbs that only
  read (`get`, `describe`, `logs`, `events`, `explain`, `recommend`) accept the beginning of a name or uid
  if only one object has it.
- **Waiting.** Commands that change something wait for completion and show progress (`--wait`, the default). `--detach`
  returns immediately, `--timeout 30s` (or `--wait-timeout`) stops waiting with exit code 7. Ctrl-C and a timeout end the
  waiting, not the work.
- **Output.** Data goes to standard output, messages to standard error: [the forms](#output). Off a terminal nothing is cut or
  coloured; `NO_COLOR` and `COLUMNS` are honoured. If the reader stops early (`| head -1`), the exit code is 0.
- **Errors** say what failed, why, and what to type next; with `-o json` the same as an object on standard error:
  `{code, message, details, hint, retryable, request_id}`. Exit codes: [exit-codes.md](exit-codes.md).
- **Which server.** `--context NAME|FILE`, else `WEFT_CONTEXT`, else `WEFT_SERVER` with `WEFT_TOKEN` and `WEFT_CA`, else
  the nearest `.weft` from here upwards, else `~/.config/weft`: there `config.json` names a context, or `context.json` is
  one. Named contexts are in `~/.config/weft/contexts/NAME.json`. `WEFT_TOKEN` overrides the token in a
  file, unless `--context` gave that file.
- **Settings.** A flag overrides a variable, that overrides `.weft/config.json` from here upwards, and that
  `~/.config/weft/config.json`, for the context, the project and the output alike: `{"context": "prod", "project": "lab",
  "output": "wide"}`. `weft config view --show-origin` shows where each comes from.
- **Files.** `apply`, `diff` and `--config` read YAML (several objects by `---`), JSON, TOML and nix. An object is
  `kind, name, project, labels, spec`, or a list or `items` of them; what the server sets is ignored, so the output
  of `get -o yaml` can be applied. A nix file is an expression, or a function called with `{ }`. Flags win over
  `--config`.
- **Selectors.** `-l tier=db,env!=dev`, `--field phase=Running,node=n1`. Unknown fields, and values that a field
  can't have, are refused, also by `weft wait --for`; sizes may have units (`memory=64M`).
"""

_EXIT_HEAD = """\
# Exit codes

Written by `python -m weft.cli.reference exit-codes`; the table is `weft.cli.command.exit_codes`.

| code | meaning |
|---:|---|
"""


def write_cli_page() -> str:
    """docs/reference/cli.md."""
    page = [_HEAD, _write_kinds(), "\n## Options of every command\n\n", _write_options(common())]
    page.append(
        f"\n## Output\n\n`weft help output`, for every command that takes `-o`:\n\n```\n{describe_forms()}\n```\n"
    )
    page.append("\n## Verbs\n")
    for verb, entry in verbs_of(None).items():
        if verb != "create":
            page.append(_write_command(verb, entry, None))
    for name, entries in AFTER.items():
        page += [_write_command(verb, entry, BY_NAME[name]) for verb, entry in entries.items()]
    page.append(_write_habits())
    page.append("\n## Making objects\n")
    for name in MAKEABLE:
        kind = BY_NAME[name]
        page.append(_write_command("create", verbs_of(name)["create"], kind))
    page.append("\n## Tools\n")
    page += [_write_command(word, entry, None) for word, entry in TOOLS.items()]
    return "".join(page).rstrip() + "\n"


def write_exit_codes_page() -> str:
    """docs/reference/exit-codes.md."""
    return _EXIT_HEAD + "".join(f"| {code} | {meaning} |\n" for code, meaning in MEANINGS.items())


def _write_habits() -> str:
    synonyms = ", ".join(f"`{word}` is `{verb}`" for word, verb in SYNONYMS.items())
    others = "For other words of Docker, kubectl, Incus and Proxmox weft names the command to use."
    return f"\n## Words of other tools\n\n{synonyms}. {others}\n"


def _write_kinds() -> str:
    rows = [f"| {kind.name} | {kind.plural} | {kind.summary} | {', '.join(verbs_of(kind.name))} |\n" for kind in KINDS]
    return "\n## Nouns\n\n| noun | plural | what it is | verbs |\n|---|---|---|---|\n" + "".join(rows)


def _write_command(verb: str, entry: Entry, kind: Kind | None) -> str:
    command = load(verb, entry, kind)
    path = f"weft {kind.name} {verb}" if kind else f"weft {verb}"
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context)).replace("[OPTIONS] ", "").replace("[OPTIONS]", "")
    only = (
        f" For {', '.join(entry.kinds)}."
        if entry.kinds and kind is None and verb not in ("edit", "delete", "label")
        else ""
    )
    known = {param.opts[0] for param in (*common(), *parts(), *table())}
    options = _write_options([param for param in command.params if param.opts[0] not in known])
    return f"\n### `{f'{path} {usage}'.strip()}`\n\n{(command.help or '').strip()}{only}\n" + (
        f"\n{options}" if options else ""
    )


def _write_options(params: list[click.Parameter]) -> str:
    return "".join(f"- `{names}` {help_}\n" for names, help_ in _rows(params))


def _rows(params: list[click.Parameter]) -> Iterator[tuple[str, str]]:
    for param in params:
        if isinstance(param, click.Option) and not param.hidden:
            record = param.get_help_record(click.Context(click.Command("weft")))
            if record is not None:
                yield record


if __name__ == "__main__":
    sys.stdout.write(write_exit_codes_page() if sys.argv[1:] == ["exit-codes"] else write_cli_page())
