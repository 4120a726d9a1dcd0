"""A file of settings: one map in YAML, each entry with the place where it is written."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.objects.errors import InvalidInput


def read_settings_file(path: Path, example: str) -> tuple[dict[Any, Any], Callable[[Any], str]]:
    """The file's map, and a function from a key to FILE:LINE. Raises FileNotFoundError, and InvalidInput for what isn't one map
    (``example`` is a line of it)."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"{path} can't be read: {problem}", field="config") from None
    documents = importlib.import_module("weft.cli.manifest.yaml_text").read_yaml(text, str(path))
    if not documents:
        return {}, str
    if len(documents) > 1 or not isinstance(documents[0].value, dict):
        raise InvalidInput(f"{path}: must be one map of settings, like {example}", field="config")
    places = documents[0].places

    def find_place(key: Any) -> str:
        line = places.get((key,), (0, 0))[0]
        return f"{path}:{line}" if line else str(path)

    return documents[0].value, find_place
