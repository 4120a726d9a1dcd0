"""`weft function endpoint`: where functions are invoked; `-o env`: as the variables that AWS's SDKs read; with a NAME: where that
one is called by HTTP."""

from __future__ import annotations

import shlex

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.output.formats import print_data
from weft.cli.session import Session
from weft.client.function_endpoint import find_endpoint, keep_ca
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        options.output("env"),
    ]
    return options.build(verb, "Show where functions are invoked over HTTP and by AWS SDKs.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    targets = find_targets(session, kind, words, ("function",)) if words else []
    if len(targets) > 1:
        raise click.UsageError("give one function")
    client = session.client
    endpoint = find_endpoint(client)
    if targets:
        name = targets[0].name
        http = client.get("function", name)["spec"]["http"]
        if http == "none":
            raise InvalidInput(
                f"function/{name} has no HTTP trigger",
                field="spec.http",
                hint=f"weft function update {name} --http token, or --http open",
            )
        told = {"url": f"{endpoint.url}/url/{client.project}/{name}/", "http": http}
        return _print(session, told, told["url"])
    variables = {
        "AWS_ENDPOINT_URL_LAMBDA": endpoint.url,
        "AWS_DEFAULT_REGION": endpoint.region,
        "AWS_CA_BUNDLE": str(keep_ca(client.context.ca, session.environ)),
    }
    if session.output == "env":
        for variable, value in variables.items():
            print(f"{variable}={shlex.quote(value)}")
        return 0
    return _print(session, {"url": endpoint.url, "region": endpoint.region, "variables": variables}, endpoint.url)


def _print(session: Session, told: dict[str, object], line: object) -> int:
    if session.is_document:
        print_data(session, told)
    else:
        print(line)
    return 0
