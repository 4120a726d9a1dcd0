"""Takes secrets out: values of fields that hold them, and anything in a text that looks like one. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "(hidden)"
_SECRET_FIELDS = re.compile(
    r"(?:^|[_.-])(?:token|secret|password|passwd|passphrase|credential|credentials|authorization|apikey|api[_-]key|access[_-]key"
    r"|private[_-]key|key|values|sealed|sha256_hmac|ticket|cookie|user_data)s?$",
    re.I,
)
_PUBLIC_FIELDS = frozenset({"ssh_keys", "key_id", "registry_secret", "env_secrets"})  # names and public halves
_COMMANDS = ("args", "command", "argv")  # command lines have passwords in them
_TEXTS = tuple(
    re.compile(pattern, re.S | re.I)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"(?<=weft_)[a-z0-9][-a-z0-9]*_[0-9a-f]{16,}",
        r"(?<=bearer )\s*[^\s\"',;]+",
        r"(?<=basic )\s*[A-Za-z0-9+/=]{8,}",
        r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",
        r"(?:AKIA|ASIA|WEFT)[A-Z0-9]{16}\b",
        r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        r"(?:(?<=signature=)|(?<=ticket=)|(?<=token=))[^\s&\"',;]+",
    )
)
_ASSIGNED = re.compile(
    r"((?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|credentials?)[\w.-]*[\"']?\s*[:=]\s*)"
    r"(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s\"',;&}\])]+)",
    re.I,
)
_LEAST_KNOWN = 6  # a shorter known secret is not searched for: it may stand in any text by chance


def hide_in_text(text: str, known: Iterable[str] = ()) -> str:
    """``text`` without what looks like a secret, and without those that are ``known``."""
    for secret in sorted({word for word in known if len(word) >= _LEAST_KNOWN}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern in _TEXTS:
        text = pattern.sub(HIDDEN, text)
    return _ASSIGNED.sub(lambda found: found[1] + HIDDEN, text)


def hide_in_data(value: Any, known: Iterable[str] = (), name: str = "") -> Any:
    """Plain data without secrets: fields with a secret's name and command lines are emptied, environments keep only names, and
    all text is searched."""
    words = tuple(known)
    if isinstance(value, dict) and (name == "env" or is_secret(name)):
        return dict.fromkeys(value, HIDDEN)
    if name in _COMMANDS and value:
        return HIDDEN
    if isinstance(value, dict):
        return {key: hide_in_data(inner, words, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [hide_in_data(inner, words, name) for inner in value]
    if is_secret(name) and value not in (None, "", False, True):
        return HIDDEN
    return hide_in_text(value, words) if isinstance(value, str) else value


def is_secret(name: str) -> bool:
    """Whether a field of that name holds a secret."""
    return name not in _PUBLIC_FIELDS and _SECRET_FIELDS.search(name) is not None


def is_private(name: str) -> bool:
    """Whether a field of that name holds what may be a secret: one itself, an environment, or a command line."""
    return name == "env" or name in _COMMANDS or is_secret(name)


def hide_in_body(body: bytes, most: int = 2000) -> str:
    """A request's body as one line for a person, at most ``most`` characters."""
    try:
        shown = json.dumps(hide_in_data(json.loads(body)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return f"({len(body)} bytes)"
    return shown if len(shown) <= most else f"{shown[:most]}… ({len(body)} bytes)"
