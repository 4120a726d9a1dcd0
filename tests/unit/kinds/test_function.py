"""What a function's spec may say, and what a version takes from it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.kinds.function import (
    FUNCTION,
    FunctionLogsInput,
    FunctionSpec,
    PublishInput,
    check_function,
    keep_alive_of,
    ready_of,
    weights_of,
)
from weft.kinds.function_version import FUNCTION_VERSION
from weft.kinds.parts.stream_verbs import refuse_filters_alone
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.schema import read_strict

DIGEST = "ab" * 32
PUBLISH = FUNCTION.verb("publish")


def read(**fields: Any) -> FunctionSpec:
    spec = read_strict({"code": DIGEST, "handler": "app.handler", **fields}, FunctionSpec)
    check_function(spec)
    return spec


def test_code_alone_is_python() -> None:
    spec = read()
    assert (spec.runtime, spec.memory, spec.timeout, spec.max_concurrent) == ("python3.11", 256 * 2**20, 30.0, 50)
    assert (keep_alive_of(spec), ready_of(spec)) == (None, None)


def test_words_get_their_one_spelling() -> None:
    spec = read(
        keep_alive="10m", ready="3", strategy="best-fit,data-locality", aliases={"prod": 3, "new": {"4": 0.1, "3": 0.9}}
    )
    assert (keep_alive_of(spec), ready_of(spec), spec.strategy) == (600.0, 3, "best_fit,data_locality")
    assert weights_of(spec, "prod") == {"3": 1.0}
    assert weights_of(spec, "new") == {"3": 0.9, "4": 0.1}
    assert weights_of(spec, "gone") is None
    again = read(**msgspec.to_builtins(spec))
    assert again == spec


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("spec.code", {"code": ""}),
        ("spec.code", {"code": "AB" * 32}),
        ("spec.code", {"image": "registry.example.org/a:1"}),
        ("spec.image", {"code": "", "image": "oci:/etc/passwd"}),
        ("spec.registry_secret", {"code": "", "image": "held", "registry_secret": "reg"}),
        ("spec.runtime", {"runtime": "python3.12"}),
        ("spec.runtime", {"code": "", "image": "registry.example.org/a:1", "runtime": "python3.11"}),
        ("spec.handler", {"handler": ""}),
        ("spec.handler", {"handler": "app"}),
        ("spec.handler", {"handler": "../app.handler"}),
        ("spec.memory", {"memory": "1M"}),
        ("spec.scratch", {"scratch": "1T"}),
        ("spec.timeout", {"timeout": "2h"}),
        ("spec.timeout", {"timeout": 0}),
        ("spec.env", {"env": {"AWS_LAMBDA_RUNTIME_API": "x"}}),
        ("spec.env", {"env": {"1": "x"}}),
        ("spec.isolation", {"isolation": "none"}),
        ("spec.command", {"command": [""]}),
        ("spec.constraint", {"constraint": "gpu.memory>="}),
        ("spec.strategy", {"strategy": "best"}),
        ("spec.data_hints[0]", {"data_hints": ["a b"]}),
        ("spec.keep_alive", {"keep_alive": "sometimes"}),
        ("spec.keep_alive", {"keep_alive": "2d"}),
        ("spec.ready", {"ready": "-1"}),
        ("spec.ready", {"ready": "many"}),
        ("spec.ready", {"ready": 3, "max_concurrent": 2}),
        ("spec.max_age", {"max_age": "8d"}),
        ("spec.local_secret", {"local_nodes": ["branch"]}),
        ("spec.local_nodes", {"local_secret": "door"}),
        ("spec.local_nodes", {"local_nodes": ["branch", "branch"], "local_secret": "door"}),
        ("spec.local_nodes", {"local_nodes": [f"n{number}" for number in range(17)], "local_secret": "door"}),
        ("spec.schedule[0].cron", {"schedule": [{"cron": "often"}]}),
        ("spec.schedule[0].zone", {"schedule": [{"cron": "@daily", "zone": "Nowhere/At-All"}]}),
        ("spec.schedule[0].input", {"schedule": [{"cron": "@daily", "input": "x" * 40_000}]}),
        ("spec.aliases.prod", {"aliases": {"prod": "latest"}}),
        ("spec.aliases.prod", {"aliases": {"prod": 0}}),
        ("spec.aliases.prod", {"aliases": {"prod": {"1": 0.5, "2": 0.4}}}),
        ("spec.aliases.prod", {"aliases": {"prod": {"1": 2.0, "2": -1.0}}}),
        ("spec.aliases.3", {"aliases": {"3": 1}}),
        ("spec.aliases.Prod", {"aliases": {"Prod": 1}}),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(**fields)
    assert caught.value.field == field


def test_a_bootstrap_needs_no_handler_and_an_image_brings_all() -> None:
    assert read(runtime="provided", handler="").handler == ""
    assert read(code="", handler="", image="registry.example.org/a:1").runtime == ""


def obj(**status: Any) -> dict[str, Any]:
    spec = msgspec.to_builtins(read(max_concurrent=7))
    return {
        "kind": "function",
        "name": "thumb",
        "generation": 4,
        "spec": spec,
        "actions": {"published": 2},
        "status": status,
    }


def test_a_version_is_a_copy_of_what_runs_under_the_next_number() -> None:
    assert PUBLISH is not None and PUBLISH.act is not None and PUBLISH.make is not None
    ready = obj(phase="Ready", observed_generation=4)
    assert PUBLISH.act(ready, PublishInput())["published"] == 3
    made = PUBLISH.make(ready, PublishInput("quicker"), "")
    assert (made["kind"], made["name"]) == ("functionversion", "thumb-3")
    version = read_strict(made["spec"], FUNCTION_VERSION.spec)
    assert (version.function, version.number, version.description) == ("thumb", 3, "quicker")
    assert (version.code, version.handler) == (DIGEST, "app.handler")


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Preparing"},
        {"phase": "Ready", "observed_generation": 3},
        {"phase": "Ready", "observed_generation": 4, "reason": "Runtime.ImportModuleError"},
    ],
)
def test_what_does_not_serve_is_not_published(status: dict[str, Any]) -> None:
    assert PUBLISH is not None and PUBLISH.act is not None
    with pytest.raises(IllegalTransition):
        PUBLISH.act(obj(**status), PublishInput())


def test_a_function_s_log_is_read_with_and_without_filters() -> None:
    refuse_filters_alone(FunctionLogsInput())
    refuse_filters_alone(FunctionLogsInput(filter="ERROR", aggregate=True))
    with pytest.raises(InvalidInput, match="need aggregate"):
        refuse_filters_alone(FunctionLogsInput(filter="ERROR"))
