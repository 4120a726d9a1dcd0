"""Builds the site of the documents: ``python -m tools.site.build [FOLDER]``; its order is that of docs/README.md.

It is read from a folder as from a web server: nothing in it is fetched from elsewhere. The same commit gives the same files.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from tools.site.pages import CONTENTS, FIRST, ROOT, convert, list_pages, place, read_order

from weft import __version__

HERE = Path(__file__).parent
# Of the theme what only other languages need, and what only debuggers read.
_LEFT_OUT = ("assets/javascripts/lunr", "sitemap.xml", "sitemap.xml.gz", "404.html", "assets/images/favicon.png")
# They name everything, and people look for the guide first.
_LESS_SOUGHT = re.compile(r"docs/decisions/|docs/measured|docs/status|CHANGELOG")
_SHORT = 20


def build_site(out: Path, root: Path = ROOT) -> None:
    """Write the site into ``out``, which is replaced. Raises ``mkdocs.exceptions.Abort`` for a link without an end."""
    with tempfile.TemporaryDirectory() as folder:
        pages, site = Path(folder) / "pages", Path(folder) / "site"
        lay_out(pages, root)
        config = load_config(
            str(HERE / "mkdocs.yml"),
            docs_dir=str(pages),
            site_dir=str(site),
            nav=_list_nav(root),
            copyright=f"weft {__version__}",
            strict=True,
        )
        build(config)
        for name in _LEFT_OUT:
            path = site / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in site.rglob("assets/**/*.map"):
            path.unlink()
        for path in site.rglob("*.html"):
            path.write_text(_let_paths_break(path.read_text()))
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(site, out)


def lay_out(pages: Path, root: Path) -> None:
    """Write the documents and the files beside them as the site has them."""
    pages.mkdir(parents=True)
    for path in sorted((root / "docs").rglob("*")):
        if path.is_file() and path.suffix != ".md":
            target = pages / str(place(str(path.relative_to(root))))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name in ("site.css", "iframe-worker.js", "weft.svg"):
        shutil.copyfile(HERE / name, pages / name)
    for page in list_pages(root):
        target = pages / str(place(page))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = convert((root / page).read_text(), page, root)
        if _LESS_SOUGHT.match(page):
            text = f"---\nsearch:\n  boost: 0.3\n---\n{text}"
        target.write_text(text)


def _list_nav(root: Path) -> list[dict[str, object]]:
    sections = [(title, [{label: place(path)} for label, path in found]) for title, found in read_order(root)]
    return [
        {"Home": [{"weft": place(FIRST)}, {"All pages": place(CONTENTS)}]},
        *({title: of} for title, of in sections),
    ]


def _let_paths_break(html: str) -> str:
    """A page in whose tables a path may go on in the next line: columns of paths would be as wide as the longest."""
    return re.sub(r"<td.*?</td>", lambda cell: re.sub(r"<code>([^<]*)", _break_code, cell[0]), html, flags=re.DOTALL)


def _break_code(code: re.Match[str]) -> str:
    """A short word of code stays in one line, as with a hyphen."""
    if len(code[1]) <= _SHORT:
        return f'<code class="short">{code[1]}'
    return re.sub(r"(?<=[\w}])([/,])(?=[\w{…])", r"\1<wbr>", code[0])


def _main(out: Path) -> int:
    began = time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        build_site(out)
    except Abort as problem:
        print(problem, file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    many = sum(1 for _ in out.rglob("*.html"))
    print(f"✓ {out}/index.html: {many} pages, {size >> 20} MiB {time.monotonic() - began:6.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]) if sys.argv[1:] else Path("dist/docs")))
