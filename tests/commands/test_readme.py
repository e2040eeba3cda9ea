"""What the documentation tells a reader to type, works; what it links to, is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import load_config, shipped_config_names

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

_SMALL_TRAINING = (
    "network.width=4", "network.depth=2", "patch.size=[8, 16, 16]", "training.batch_size=2", "training.steps=2",
    "training.base_steps=null",
    "training.validate_every=2",
)  # fmt: skip
#: What is added to a command of the README to have it done in a second; a later option wins.
TINY = {
    "data simulate": ["--fields", "4", "--shape", "12,32,32"],
    "train": [part for item in _SMALL_TRAINING for part in ("--set", item)],
    # In this process: in two, each would take ten seconds to import Avalanche.
    "bench": [*(part for item in _SMALL_TRAINING for part in ("--set", item)), "--jobs", "1"],
    "add": ["--steps", "2"],
    "replace": ["--steps", "2", "--seed", "1"],
    "compare": ["--steps", "2"],
}


class Block(NamedTuple):
    language: str
    text: str
    run: bool


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page; those below the comment ``run`` are run by a test."""
    for found in re.finditer(r"(<!-- run -->\n)?^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        yield Block(found[2], found[3], found[1] is not None)


def lines(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def arguments_of(line: str) -> tuple[list[str], str | None]:
    """Return a line's words after the program, and the file that its output goes to."""
    words = shlex.split(line, comments=True)[1:]
    if ">" in words:
        return words[: words.index(">")], words[words.index(">") + 1]
    return words, None


def check_command(words: list[str]) -> None:
    """Parse a command line as the program would, without running it: unknown options and missing ones raise."""
    command, words = typer.main.get_command(app), list(words)
    if words == ["--help"] or words == ["--version"]:
        return
    name = "repmode-cl"
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    command.make_context(name, words)


SHELL = [line for block in blocks(README) if block.language == "sh" for line in lines(block)]


@pytest.mark.parametrize("line", SHELL)
def test_every_shell_line_of_the_readme_is_valid(line: str) -> None:
    program, *rest = shlex.split(line)
    name = program.removeprefix(".venv/bin/")
    if name == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in rest)
    elif name == "repmode-cl":
        check_command(arguments_of(line)[0])
    elif name == "pip":
        assert rest[:2] == ["install", "-e"]
        extras = re.fullmatch(r"\.(?:\[(.*)\])?", rest[2])
        assert extras is not None
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        assert not extras[1] or extras[1] in known["project"]["optional-dependencies"]
    else:
        assert line in ("python3 -m venv .venv", ".venv/bin/pytest"), "a line that no test knows how to check"


def inline_commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        found += [(page.name, code) for code in re.findall(r"`(repmode-cl [^`]+)`", text)]
        plain = [block for block in blocks(page.read_text(encoding="utf-8")) if not block.language]
        found += [
            (page.name, line) for block in plain for line in lines(block) if line.startswith("repmode-cl ")
        ]
    return found


@pytest.mark.parametrize(("page", "line"), inline_commands())
def test_every_command_within_the_text_is_valid(page: str, line: str) -> None:
    words, _ = arguments_of(line.replace("LEVEL", "files"))
    names = {"train", "add", "predict", "data check", "data import", "data simulate"}
    if " ".join(words) in names or len(words) == 1:
        # Only named, without what it needs.
        return
    check_command(words)


def test_there_are_commands_to_check() -> None:
    assert len(SHELL) > 15
    assert len(inline_commands()) > 5
    assert "make quickstart" in SHELL[:1]


def test_the_commands_of_the_readme_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = []
    for block in blocks(README):
        if not block.run:
            continue
        if block.language == "python":
            exec(compile(block.text.replace("steps=300", "steps=2"), "README.md", "exec"), {})
            continue
        for line in lines(block):
            words, target = arguments_of(line)
            key = " ".join(words[:2]) if words[0] in ("data", "pack") else words[0]
            result = CliRunner().invoke(app, [*words, *TINY.get(key, [])])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == 0, f"{line}\n{result.stdout}\n{result.stderr}"
            if target is not None:
                Path(target).write_text(result.stdout, encoding="utf-8")
            done.append(key)
    assert set(done) >= {
        "data simulate",
        "data check",
        "config",
        "train",
        "add",
        "verify",
        "predict",
        "bench",
    }
    assert set(done) >= {"compare", "replace", "accept", "pack export", "pack import", "rollback", "gc"}
    assert Path("compared/report.html").is_file()
    assert Path("nucleolus.ome.tif").is_file()
    assert Path("runs/mine/report.html").is_file()


def test_the_readme_lists_every_shipped_configuration() -> None:
    listed = re.findall(
        r"^\| `([a-z0-9_]+)` \|.*\|.*\|$", README.split("The shipped configurations:")[1].split("##")[0], re.M
    )
    assert sorted(listed) == sorted(shipped_config_names())
    for name in listed:
        load_config(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        if path:
            assert (page.parent / path).exists(), f"{page.name} links to {link}, which is not there"
        else:
            assert anchor in headings, f"{page.name} has no heading for #{anchor}"


def test_files_that_the_readme_names_are_there() -> None:
    for name in re.findall(r"`((?:tests|docs|\.ci)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
