"""Hooks of the documentation site: navigation, pages outside ``docs/``, and the module list.

Pages link to files elsewhere in the repository (``../runners/sweeps/x.yaml``). Those links work on a forge; here the
linked files are added to the site under ``source/``, so that the strict build checks every link. A link to a folder
becomes a link to its README, or plain text if it has none.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
ROLE = re.compile(r":[a-z]+:<code>(~?)([^<]+)</code>")
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "README.md", "results/README.md")
SECTIONS = {"howto": "How-to", "findings": "Findings", "decisions": "Decisions"}  # folder to section of the navigation
PACKAGES = ("peft_matrix", "reports", "runners", "tasks", "harness")
MARK = "<!-- modules -->"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every page of ``docs/`` that the navigation does not name to the section of its folder."""
    docs = ROOT / "docs"
    named = set(re.findall(r"\S+\.md", str(config.nav).replace("'", " ")))
    for page in sorted([*docs.glob("*.md"), *(p for folder in SECTIONS for p in (docs / folder).glob("*.md"))]):
        uri = page.relative_to(docs).as_posix()
        if uri not in named:
            title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            section = SECTIONS.get(posixpath.dirname(uri), "More")
            _section(config.nav, section).append({title: uri})
    return config


def _section(nav: list[dict[str, list[object]]], name: str) -> list[object]:
    for entry in nav:
        if name in entry:
            return entry[name]
    nav.append({name: []})
    return _section(nav, name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/`` and every file that a page links to."""
    for page in PAGES:
        _add(files, config, page)
    for page in [*files.documentation_pages()]:
        source = _source_of(page.src_uri)
        for _, target, _, _ in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            path = _in_repository(source, target)
            if path and not path.startswith("docs/") and (ROOT / path).is_file():
                _add(files, config, path)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links to the added files; fill the module list."""
    source = _source_of(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = _in_repository(source, match[2])
        if path is None:
            return match[0]
        if (ROOT / path).is_dir():
            path = f"{path}/README.md"
        if not (ROOT / path).is_file():
            return match[1].lstrip("!").removeprefix("[").removesuffix("](")
        target = path[len("docs/") :] if path.startswith("docs/") else f"source/{path}"
        here = posixpath.dirname(page.file.src_uri)
        return f"{match[1]}{posixpath.relpath(target, here or '.')}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, markdown).replace(MARK, _modules() if MARK in markdown else MARK)


def on_page_content(html: str, **_: object) -> str:
    """Show the name alone where a docstring has a role of Sphinx: ``:class:`~harness.errors.UserError```."""
    return ROLE.sub(lambda match: f"<code>{match[2].rpartition('.')[2] if match[1] else match[2]}</code>", html)


def _source_of(uri: str) -> str:
    return uri[len("source/") :] if uri.startswith("source/") else f"docs/{uri}"


def _in_repository(source: str, target: str) -> str | None:
    """Path of a link's target from the root; None for an address or a missing file."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    uri = f"source/{path}"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))


def _modules() -> str:
    """One table per package: module and the first line of its docstring."""
    parts = []
    for package in PACKAGES:
        rows = []
        for file in sorted((ROOT / package).rglob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            first = text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
            name = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
            rows.append(f"| `{name}` | {first} |")
        if rows:
            parts.append(f"## {package}\n\n| module | purpose |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)
