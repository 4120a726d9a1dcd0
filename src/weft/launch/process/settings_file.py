"""A file of settings: one map in YAML, each entry with the place where it is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.objects.errors import InvalidInput

MOST_BYTES = 1 << 20
# What to do about a list, a map, nothing, or what YAML takes for true or false, where one text or number goes.
ONE_VALUE = "write one value there, in quotes if YAML reads it as something else; or leave the setting out"


def read_settings_file(path: Path, example: str) -> tuple[dict[Any, Any], Callable[[Any], str]]:
    """The file's map, and a function from a key to FILE:LINE, which takes the keys on the way to an inner one as a tuple. Raises
    FileNotFoundError, and InvalidInput for what isn't one map (``example`` is a line of it)."""
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for, for ever
            raise InvalidInput(f"{path} isn't a regular file", field="config", hint="give the path of a YAML file")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise InvalidInput(
                f"{path} has more than {MOST_BYTES >> 10} KiB", field="config", hint="give the settings' file"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as problem:
        raise InvalidInput(
            f"{path} is not UTF-8: byte {problem.start + 1}", field="config", hint="write it as text in UTF-8"
        ) from None
    except OSError as problem:
        raise InvalidInput(
            f"{path} can't be read: {problem.strerror}", field="config", hint="let this process read it"
        ) from None
    documents = importlib.import_module("weft.cli.manifest.yaml_text").read_yaml(text, str(path))
    if not documents:
        return {}, str
    if len(documents) > 1 or not isinstance(documents[0].value, dict):
        raise InvalidInput(f"{path}: must be one map of settings, like {example}", field="config")
    places = documents[0].places

    def find_place(key: Any) -> str:
        line = places.get(key if isinstance(key, tuple) else (key,), (0, 0))[0]
        return f"{path}:{line}" if line else str(path)

    return documents[0].value, find_place
