"""Commands and links of the documentation: commands work, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.config import load_config, shipped_config_names

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
#: Pages whose marked blocks are run, each list in a separate folder: those of one list follow one another.
COURSES = {
    "readme": ["README.md"],
    "adding, then a benchmark": ["docs/adding.md", "docs/benchmark.md"],
    "microscopist": ["docs/guides/microscopist.md"],
    "first model": ["docs/first-model.md"],
    "researcher": ["docs/guides/researcher.md"],
    "deployer": ["docs/guides/deployer.md"],
    "avalanche": ["docs/avalanche.md"],
}
#: Run by `make test-slow`: each of their lines is checked, and most of their commands run in the other courses.
LONG_COURSES = ("adding, then a benchmark", "researcher", "avalanche")
#: What each list of pages must have run, and the files that it must have left.
LEAVES = {
    "readme": (
        {"data simulate", "data check", "config", "train", "add", "verify", "show", "predict"},
        {"nucleolus.ome.tif", "predictions"},
    ),
    "adding, then a benchmark": (
        {
            *("data simulate", "data check", "config", "train", "add", "verify", "predict", "bench"),
            *("compare", "replace", "accept", "pack export", "pack import", "rollback", "gc"),
        },
        {"compared/report.html", "nucleolus.ome.tif", "runs/mine/report.html", "tables"},
    ),
    "microscopist": (
        {"data check", "train", "add", "predict"},
        {"look.html", "predicted_dna.ome.tif", "stack.ome.tif"},
    ),
    "first model": (
        {"config", "train", "show", "predict"},
        {"check.html", "look.html", "predictions/dna.ome.tif"},
    ),
    "researcher": ({"config", "bench", "report"}, {"runs/first/report.html", "tables"}),
    "deployer": ({"verify", "accept", "history", "rollback", "pack import"}, {"nucleolus.safetensors"}),
    "avalanche": ({"data simulate"}, {"logs/eval_results.csv", "events"}),
}

_SMALL_TRAINING = (
    "network.width=4", "network.depth=2", "patch.size=[8, 16, 16]", "training.batch_size=2", "training.steps=2",
    "training.base_steps=null",
    "training.validate_every=2",
    "data.simulate.fields=4", "data.simulate.shape=[12, 32, 32]",
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


@cache
def program() -> Any:
    """Return the parser of all commands, which takes longer to make than to use."""
    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    """Parse a command line as the program would, without running it: unknown options and missing ones raise."""
    command, words = program(), list(words)
    if words == ["--help"] or words == ["--version"]:
        return
    name = "repmode-cl"
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    if words != ["--help"]:  # it would print the help and leave
        command.make_context(name, words)


SHELL = [
    (page.relative_to(ROOT).as_posix(), line)
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"))
    if block.language == "sh"
    for line in lines(block)
]


@pytest.mark.parametrize(("page", "line"), SHELL)
def test_every_shell_line_is_valid(page: str, line: str) -> None:
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
    assert SHELL[0] == ("README.md", "make quickstart")


@pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping plugin is not computed yet")
@pytest.mark.parametrize(
    "course",
    [pytest.param(course, marks=[pytest.mark.slow] * (course in LONG_COURSES)) for course in COURSES],
)
def test_the_marked_commands_run_in_order(
    course: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = []
    names: dict[str, dict[str, object]] = {page: {} for page in COURSES[course]}
    marked = [
        (page, block)
        for page in COURSES[course]
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        if block.run
    ]
    for page, block in marked:
        if block.language == "python":
            text = block.text
            # Fewer steps and patches; and a rank for each of three levels, since the network is a level shallower.
            for full, small in (
                ("steps=300", "steps=2"),
                ("patches=400", "patches=16"),
                ("lowrank:8,8,3,1", "lowrank:8,8,3"),
            ):
                text = text.replace(full, small)
            exec(compile(text, page, "exec"), names[page])  # the blocks of a page follow one another
            for logger in getattr(getattr(names[page].get("strategy"), "evaluator", None), "loggers", ()):
                file = getattr(logger, "writer", logger)  # of TensorBoard, or of tables
                if hasattr(file, "close"):
                    file.close()
            continue
        for line in lines(block):
            words, target = arguments_of(line)
            key = " ".join(words[:2]) if words[0] in ("data", "pack") else words[0]
            result = CliRunner().invoke(app, [*words, *TINY.get(key, [])])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == 0, f"{page}: {line}\n{result.stdout}\n{result.stderr}"
            if target is not None:
                Path(target).write_text(result.stdout, encoding="utf-8")
            done.append(key)
    commands, files = LEAVES[course]
    assert set(done) >= commands
    for name in files:
        assert Path(name).exists(), name


def test_no_marked_block_is_left_out() -> None:
    run = {page for pages in COURSES.values() for page in pages}
    for page in PAGES:
        marked = any(block.run for block in blocks(page.read_text(encoding="utf-8")))
        assert marked == (page.relative_to(ROOT).as_posix() in run), page


def test_the_documentation_lists_every_shipped_configuration() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\| `([a-z0-9_]+)` \|.*\|.*\|$", page.split("## Shipped configurations")[1].split("\n## ")[0], re.M
    )
    assert sorted(listed) == sorted(shipped_config_names())
    for name in listed:
        load_config(name)


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Return what a link to a heading of a page may name; those of the commands are made with the site."""
    if page.name == "commands.md":
        return {"repmode-cl-" + name for name in program().commands}
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name} links to {link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|docs|repmode_cl|strategies|scenarios|configs|\.ci)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_front_page_stays_short() -> None:
    assert len(README.encode()) <= 10_000
    for line in README.splitlines():
        assert len(line) <= 110 or line.startswith(("|", "!", "repmode-cl ")), line
