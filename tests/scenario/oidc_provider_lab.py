"""The npm package oidc-provider as a process, and a person with a browser: follows redirects, keeps cookies, fills in forms."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import html
import http.cookiejar
import re
import select
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "oidc"
CACHE = Path(__file__).parents[2] / ".weft" / "cache"
FILES = ("package.json", "package-lock.json", "provider.mjs")
SECRET = "a secret of the test"
_FORM = re.compile(r"<form[^>]*action=\"([^\"]+)\"[^>]*>(.*?)</form>", re.S)
READY_SECONDS, MORE_STARTS = 30.0, 3
_INPUT = re.compile(r"<input[^>]*>")


def install_provider() -> Path:
    """The folder with the package, installed once for each lock file: npm compares all that it fetches with the hashes there."""
    mark = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in FILES)).hexdigest()[:12]
    folder = CACHE / f"oidc-provider-{mark}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "oidc-provider.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            fresh = CACHE / f"oidc-provider-{mark}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for name in FILES:
                shutil.copy(SOURCE / name, fresh)
            words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(words, cwd=fresh, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, done.stderr
            fresh.rename(folder)
    return folder


@contextlib.contextmanager
def run_provider(port: int, key: str, *pages: str) -> Iterator[None]:
    """A provider at a port, with a new key called ``key``, and without memory of anybody; browsers may come back to ``pages``."""
    words = ["node", "provider.mjs", str(port), key, *pages]
    process = _start(words)
    for _ in range(MORE_STARTS):
        if _is_ready(process):
            break
        _end(process)  # node may stand still as it starts, all its threads waiting for each other
        process = _start(words)
    try:
        assert process.stdout is not None and "ready" in process.stdout.readline()
        yield
    finally:
        _end(process)


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        cwd=install_provider(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _is_ready(process: subprocess.Popen[str]) -> bool:
    """Whether it says something, or ends, within READY_SECONDS."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], READY_SECONDS)[0])


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def take_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Browser:
    """A person called ``name`` who logs in wherever a page asks."""

    def __init__(self, name: str) -> None:
        self.name = name
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(jar, urllib.request.ProxyHandler({}))

    def visit(self, url: str) -> str:
        """Go there and fill in every form until there is none; the last page."""
        at, page = self._open(url)
        for _ in range(8):
            form = _FORM.search(page)
            if form is None:
                return page
            fields = {"login": self.name, "password": "any"}
            for text in _INPUT.findall(form[2]):
                found = dict(re.findall(r"(\w+)=\"([^\"]*)\"", text))
                if found.get("name") and "value" in found:
                    fields[found["name"]] = html.unescape(found["value"])
            at, page = self._open(urllib.parse.urljoin(at, html.unescape(form[1])), fields)
        raise AssertionError(page)

    def _open(self, url: str, fields: dict[str, str] | None = None) -> tuple[str, str]:
        data = urllib.parse.urlencode(fields).encode() if fields is not None else None
        try:
            with self._opener.open(url, data, timeout=20) as answer:
                return answer.url, answer.read().decode()
        except urllib.error.HTTPError as problem:
            raise AssertionError(f"{url}: {problem.code} {problem.read().decode()[:500]}") from None
