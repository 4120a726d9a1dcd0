"""`weft secret create regcred --registry HOST --username NAME --password-stdin`, `weft secret set db --from-file password=FILE`:
its values come from files and stdin, so that no shell history or list of processes shows them, or are typed as KEY=VALUE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import read_pairs, refuse_twice
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import one_target, read_targets
from weft.cli.manifest.config import read_config
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, finish_one
from weft.kinds.record import Kind
from weft.kinds.secret import MOST_BYTES, PASSWORD, TOKEN, USERNAME
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    words = (
        "Create a secret: values for containers that nobody can read back."
        if verb == "create"
        else "Change values of a secret; other keys keep theirs."
    )
    params: list[click.Parameter] = [
        options.targets(kind, many=False),
        click.Option(["--registry"], metavar="HOST[:PORT]", help="The image registry that the credentials are for."),
        click.Option(["--username"], metavar="NAME", help="The registry's user name."),
        click.Option(["--password-stdin"], is_flag=True, help="Read the password from stdin."),
        click.Option(["--token-stdin"], is_flag=True, help="Read a token from stdin, instead of a password."),
        click.Option(
            ["--from-file", "files"],
            multiple=True,
            metavar="KEY=FILE",
            help="Set a key to a file's content; - is stdin.",
        ),
        click.Option(
            ["--value", "values"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Set a key to this value; other users of this machine may see it.",
        ),
        click.Option(
            ["--offline/--no-offline"],
            default=None,
            help="Keep it, sealed, on nodes with containers that name it: they start again while the server is away.",
        ),
        *(options.making(named=False) if verb == "create" else []),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, words, _create if verb == "create" else _set, kind, params)


def _create(
    session: Session, kind: Kind, words: tuple[str, ...], config: str | None, labels: tuple[str, ...], **given: Any
) -> int:
    written = read_config(config, kind).value if config else {"spec": {}}
    named = words or ((written["name"],) if written.get("name") else ())
    target = one_target(read_targets(kind, named), "give one name: weft secret create NAME")
    spec = dict(written["spec"])
    spec["values"] = {**(spec.get("values") or {}), **_read_values(given)}
    if given["registry"]:
        spec["registry"] = given["registry"]
    if given["offline"] is not None:
        spec["offline"] = given["offline"]
    manifest: dict[str, Any] = {"kind": kind.name, "name": target.name, "spec": spec}
    pairs = {**(written.get("labels") or {}), **read_pairs(labels, "label")}
    if pairs:
        check_labels(pairs)
        manifest["labels"] = pairs
    if session.project or written.get("project"):
        manifest["project"] = session.project or written["project"]
    made = session.client.create(manifest)
    if not spec["values"]:
        session.notify(f"it has no values yet: weft secret set {target.name} --from-file KEY=FILE")
    return finish_one(session, target, made, "create")


def _set(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    target = find_one(session, kind, words, (), "give one secret")
    spec: dict[str, Any] = {"values": values} if (values := _read_values(given)) else {}
    if given["registry"] is not None:
        spec["registry"] = given["registry"]
    if given["offline"] is not None:
        spec["offline"] = given["offline"]
    if not spec:
        raise click.UsageError(
            "nothing to set: give --from-file KEY=FILE, --password-stdin, --value KEY=VALUE or --offline"
        )
    made = session.client.patch(kind.name, target.name, {"spec": spec})
    what = "set; containers get it at their next start" if spec.keys() - {"offline"} else "set"
    return finish(session, [Done(target, made, "set", what)], [])


def _read_values(given: dict[str, Any]) -> dict[str, str]:
    """Raises InvalidInput, UsageError; neither contains a value."""
    files = read_pairs(given["files"], "from-file")
    stdins = sum(path == "-" for path in files.values()) + given["password_stdin"] + given["token_stdin"]
    if stdins > 1:
        raise click.UsageError("only one value can come from stdin")
    values = _split(given["values"])
    for key, path in files.items():
        refuse_twice(key, values, "--from-file")
        values[key] = _read(path)
    if given["username"] is not None:
        values[USERNAME] = given["username"]
    for key in (PASSWORD, TOKEN):
        if given[f"{key}_stdin"]:
            values[key] = _read("-").rstrip("\r\n")
            if not values[key]:
                raise click.UsageError(f"stdin is empty: --{key}-stdin reads the {key} from it")
    return values


def _split(words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if any(not key or not sign for key, sign, _ in pairs):
        raise click.UsageError("--value: write KEY=VALUE")
    values: dict[str, str] = {}
    for key, _, value in pairs:
        refuse_twice(key, values, "--value")
        values[key] = value
    return values


def _read(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InvalidInput(f"{path}: too large for a secret", field="spec.values", hint="at most 64 KiB")
        return data.decode()
    except OSError as problem:
        raise InvalidInput(f"{path}: {problem.strerror or problem}", field="spec.values") from None
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{path} is not text", field="spec.values", hint="a secret holds text: encode other data as base64"
        ) from None
