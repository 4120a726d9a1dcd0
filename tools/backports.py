"""Says where this machine gets Debian's backports from: reads apt's own sources, prints the source to add.

    python3 tools/backports.py [/etc/apt]

Prints one deb822 stanza on stdout that names the same mirror, keys and options as the machine's bookworm source, or
nothing when a source for bookworm-backports is there already. Exits 1 with a sentence when no Debian source is found.
Runs before the virtual environment exists, so it imports the standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path

RELEASES = ("bookworm", "oldstable", "stable")
BACKPORTS = "bookworm-backports"

Stanza = dict[str, str]


def read_stanzas(name: str, text: str) -> list[Stanza]:
    """The enabled binary sources in one file, keys in lower case; ``name`` decides between the two formats."""
    stanzas = _read_deb822(text) if name.endswith(".sources") else _read_lines(text)
    return [
        s for s in stanzas if "deb" in s["types"].split() and s.get("enabled", "yes").lower() not in ("no", "false")
    ]


def plan_backports(stanzas: list[Stanza]) -> Stanza | None:
    """The source to add, or None when backports are configured already.

    Raises LookupError when no source offers Debian 12's main archive over something apt can fetch from.
    """
    if any(BACKPORTS in s["suites"].split() and "main" in s["components"].split() for s in stanzas):
        return None
    for stanza in stanzas:
        uris = " ".join(uri for uri in stanza["uris"].split() if not uri.startswith("cdrom:"))
        if uris and set(RELEASES) & set(stanza["suites"].split()) and "main" in stanza["components"].split():
            return {**stanza, "types": "deb", "uris": uris, "suites": BACKPORTS, "components": "main"}
    raise LookupError("apt has no source for Debian 12 (bookworm main)")


def write_stanza(stanza: Stanza) -> str:
    """One stanza in deb822 form; field names there ignore case."""
    return "".join(f"{key.title()}: {value}\n" for key, value in stanza.items())


def _read_deb822(text: str) -> list[Stanza]:
    stanzas: list[Stanza] = []
    current: Stanza = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if {"types", "uris", "suites"} <= current.keys():
                stanzas.append({"components": "", **current})
            current, key = {}, ""
        elif line[0] in " \t":
            current[key] = f"{current.get(key, '')}\n{line}"  # a key block in Signed-By goes on over lines
        else:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            current[key] = value.strip()
    return stanzas


def _read_lines(text: str) -> list[Stanza]:
    renamed = {"arch": "architectures", "lang": "languages", "target": "targets"}
    stanzas: list[Stanza] = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        kind, _, rest = line.partition(" ")
        if kind not in ("deb", "deb-src"):
            continue
        options: Stanza = {}
        rest = rest.strip()
        if rest.startswith("["):
            inside, _, rest = rest[1:].partition("]")
            for option in inside.split():
                key, _, value = option.partition("=")
                options[renamed.get(key.lower(), key.lower())] = value.replace(",", " ")
        words = rest.split()
        if len(words) >= 2:
            stanzas.append(
                {"types": kind, "uris": words[0], "suites": words[1], "components": " ".join(words[2:]), **options}
            )
    return stanzas


def main(folder: Path) -> int:
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    stanzas: list[Stanza] = []
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            stanzas += read_stanzas(file.name, file.read_text(errors="replace"))
    try:
        stanza = plan_backports(stanzas)
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    if stanza is not None:
        sys.stdout.write(write_stanza(stanza))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "/etc/apt")))
