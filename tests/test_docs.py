"""What the documentation says is so: links, snippets, commands, names, and nothing in it that must not be published."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import anyres
from tests.command import VERBS, parse
from tests.pictures import draw

ROOT = Path(__file__).parents[1]
PAGES = sorted(p.relative_to(ROOT) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")])
FENCE = re.compile(
    r"(?P<before>(?:<!--[^\n]*-->\s*\n)?)^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^ *```", re.M | re.S
)
SHELLS = ("bash", "sh", "shell", "console", "text", "")
PAGE_PARAMETERS = pytest.mark.parametrize("page", PAGES, ids=str)


class Block(NamedTuple):
    kind: str
    text: str
    line: int
    skipped: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text()
    return [
        Block(m["kind"], m["text"], text[: m.start("text")].count("\n"), "not run:" in m["before"])
        for m in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", (ROOT / page).read_text())


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined, prompts taken off."""
    lines = [line for b in blocks(page) if b.kind in SHELLS for line in b.text.replace("\\\n", " ").splitlines()]
    return [line.strip().removeprefix("$ ").removeprefix("> ") for line in lines]


def committed() -> list[Path]:
    """Every file under version control, or under the known folders where there is none."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for part in ("src", "tests", "docs", "benchmarks", "examples") for p in (ROOT / part).rglob("*")]
        paths += list(ROOT.iterdir())
    return [p for p in paths if p.is_file() and "__pycache__" not in p.parts]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))


def test_there_are_pages() -> None:
    assert {Path("README.md"), Path("docs/structure.md")} <= set(PAGES)


@PAGE_PARAMETERS
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    links += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", path):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            heads = re.findall(r"^#+\s+(.+)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            broken += [] if anchor in slugs else [link]
    assert not broken


@PAGE_PARAMETERS
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+)`", prose(page))
    assert not [name for name in named if not (ROOT / name).exists()]


@PAGE_PARAMETERS
def test_commands_parse(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True) if re.match(r"[\w./]*(anyres|torchrun|accelerate)\s", line) else []
        if any(word.split("/")[-1] == "anyres" for word in words):
            parse(line)
    for line in re.findall(r"`anyres ([a-z]+)[^`]*`", prose(page)):
        assert line in VERBS, f"{page}: there is no verb `anyres {line}`"


@PAGE_PARAMETERS
def test_make_verbs_exist(page: Path) -> None:
    named = [verb for line in commands(page) for verb in re.findall(r"^make ((?:[a-z-]+ ?)+)", line.split("#")[0])]
    named += re.findall(r"`make ([a-z-]+)`", prose(page))
    assert {verb for line in named for verb in line.split()} <= targets()


@PAGE_PARAMETERS
def test_python_snippets_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page run in order, in one namespace, beside ``runs/first``, ``photo.jpg`` and ``root/``; other
    runs that it names are there too, unless it trains them."""
    snippets = [block for block in blocks(page) if block.kind in ("python", "py") and not block.skipped]
    text = "\n".join(block.text for block in snippets)
    if re.search(r"runs/|photo\.jpg|root", text):
        tiny = request.getfixturevalue("tiny_run")
        trained = set(re.findall(r'\bout="runs/(\w+)"', text))
        for name in {"first", "mine", *re.findall(r"runs/((?:demo/)?[\w-]+)", text)} - trained:
            shutil.copytree(tiny.folder, tmp_path / "runs" / name)
        shutil.copytree(tiny.data, tmp_path / "root")
        draw(0, 1).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in snippets:
        code = compile("\n" * block.line + block.text, str(ROOT / page), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)


def test_every_python_snippet_that_is_not_run_says_why() -> None:
    for page in PAGES:
        assert not re.search(r"<!--\s*not run:\s*-->", (ROOT / page).read_text()), page


def test_what_is_made_by_a_script_is_up_to_date() -> None:
    """The reference is what docstrings and comments say, and the examples are those that tests run."""
    command = [sys.executable, ROOT / "docs" / "make_reference.py", "--check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert made.returncode == 0, made.stderr


def test_every_recipe_key_has_a_comment() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    keys = re.findall(
        r"^- `(?!model\.)([a-z_]+(?:\[\])?(?:\.[a-z_\[\]]+)*)` \(.*", page.partition("## Recipe keys")[2], re.M
    )
    assert len(keys) > 100
    assert not re.findall(r"^- `(?!model\.)[\w.\[\]]+` \([^)]*\)$", page.partition("## Recipe keys")[2], re.M)


def test_the_recipe_that_is_shown_is_the_default_one() -> None:
    shown = [block.text for block in blocks(Path("docs/train.md")) if block.kind == "yaml"]
    assert [yaml.safe_load(text) for text in shown] == [
        yaml.safe_load((ROOT / "src/anyres/recipes/nano.yaml").read_text())
    ]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not [page for page in sorted(pages) if f"]({page}" not in index]


def test_makefile_says_what_each_verb_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())  # type: ignore[index]
    assert phony == targets() == set(re.findall(r"^([a-z][\w-]*):.*## \w", makefile, re.M))
    for path in re.findall(r"(?:python|pytest) ((?:benchmarks|tests)/\S+)", makefile):
        assert (ROOT / path).is_file(), path


FORBIDDEN = {
    "a package registry": r"pypi\.(org|python)|pythonhosted|npmjs|yarnpkg|anaconda\.org|download\.pytorch\.org",
    "an index's address": r"index-url[\s=\"']+\w*:?//|find-links[\s=\"']+\w+://",
    "this project's workplace": r"/work" + r"/[\w.]|/tmp/pytest-",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_names(what: str) -> None:
    guilty = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__) and re.search(FORBIDDEN[what], text):
            guilty.append(str(path.relative_to(ROOT)))
    assert not guilty


def test_public_names_are_sorted_and_there() -> None:
    assert list(anyres.__all__) == sorted(anyres.__all__)
    for name in anyres.__all__:
        assert getattr(anyres, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        anyres.nothing  # noqa: B018
    models = importlib.import_module("anyres.models")
    assert models.__all__ == sorted(models.__all__)
