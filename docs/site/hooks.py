"""MkDocs hooks: pages that come from the repository's other files and from the code.

The home page is README.md, `contributing.md` and `changelog.md` are the files of the root, and the reference of
commands is made from the program. Links are written for the repository, where files lie in folders; here those that
leave ``docs/`` are turned into links of the site, or into plain text where the site has no such page.
"""

from __future__ import annotations

import html
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

import typer
from latex2mathml.converter import convert as to_mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from repmode_cl.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
#: File of the root -> page of the site.
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
#: Packages of the repository -> where they lie in an installed copy, which the reference of the API is read from.
PACKAGES = {"repmode_cl": "", "strategies": "strategies", "scenarios": "scenarios"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
#: What a browser fetches by itself from another host; links that a reader follows are not among it.
LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']*|(?:url\(|@import)\s*["']?https?:[^"')]*"""
)
COMMANDS_MARK = "<!-- commands -->"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]*)(#[^)\s]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """Lay out the sources as they are installed, so that names of the API are those a user imports.

    Plugins look for the folder while the configuration is read: it must be there before.
    """
    target = ROOT / "build" / "docs-sources" / "repmode_cl"
    shutil.rmtree(target, ignore_errors=True)
    for package, below in PACKAGES.items():
        shutil.copytree(
            ROOT / package, target / below, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text lies in the root."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if page == "index.md":
            text = f"---\ntitle: Home\nhide: [navigation]\n---\n\n{text}"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site, and fill in the reference of commands."""
    source = next((name for name, at in ROOT_PAGES.items() if at == page.file.src_uri), None)
    folder = "" if source else posixpath.dirname(f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        label, path, anchor = match[1], match[2], match[3] or ""
        if not path or ":" in path:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in ROOT_PAGES:
            return f"{label}({posixpath.relpath(ROOT_PAGES[target], here or '.')}{anchor})"
        if target.startswith("docs/") and files.get_file_from_path(target.removeprefix("docs/")):
            return f"{label}({posixpath.relpath(target.removeprefix('docs/'), here or '.')}{anchor})"
        if (ROOT / target).exists() and not target.startswith("docs/"):
            return label[1:-1]  # a file of the repository that is no part of the site
        return match[0]

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    text = "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)
    return text.replace(COMMANDS_MARK, commands_markdown()) if COMMANDS_MARK in text else text


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers show without a script or a font from elsewhere."""

    def converted(match: re.Match[str]) -> str:
        return to_mathml(html.unescape(match[2]), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(converted, html_text)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page or a style sheet would load anything from elsewhere.

    Raises
    ------
    PluginError
        With the file and what it would load.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css") and (match := LOADED.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path} would load {match[0]}: the site must hold all that it shows")


def commands_markdown() -> str:
    """Return the reference of all commands: for each its help, usage, arguments and options."""
    return "\n".join(_section("repmode-cl", typer.main.get_command(app)))


def _section(name: str, command: Any) -> list[str]:
    """Return the lines of one command, and of those below it."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## `{name}` {{ #{name.replace(' ', '-')} }}", ""] if name != "repmode-cl" else []
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("  "):  # an example; examples that follow one another are one block
            example = [line.strip() for line in paragraph.splitlines()]
            if lines[-2:] == ["```", ""]:
                lines[-2:] = [*example, "```", ""]
            else:
                lines += ["```sh", *example, "```", ""]
        else:
            lines += [_prose(paragraph), ""]
    lines += ["```text", usage, "```", ""]
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [
        f"| {_code(names)} | {_cell(text)} |" for names, text in filter(None, records) if names != "--help"
    ]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    for below, child in getattr(command, "commands", {}).items():
        lines += _section(f"{name} {below}", child)
    return lines


def _code(text: str) -> str:
    plain = (
        text.replace("<int range>", "<whole number>")
        .replace("<float range>", "<number>")
        .replace("<float>", "<number>")
    )
    return "`" + " ".join(plain.replace("<str>", "<text>").split()).replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    # Bounds as click writes them: x>=1, 0<=x<=256.
    words = re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", text).replace(str(2**63 - 1), "2^63 - 1")
    words = re.sub(r"\bx>=(\d+)", r"at least \1", words)
    return _prose(words).replace("|", "\\|").replace("<", "&lt;")


def _prose(text: str) -> str:
    """Return a text as one line, with the options that it names as code."""
    return re.sub(r"(?<![`\w-])--[a-z][a-z0-9-]*", r"`\g<0>`", " ".join(text.split()))
