"""The container files: what they copy, install and start exists. No container engine is at hand to build them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from anyres.cli.app import app

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def _instructions(file: Path, name: str) -> list[str]:
    text = file.read_text().replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(name + " ")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_exists_and_is_sent(file: Path) -> None:
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {source for line in _instructions(file, "COPY") for source in line.split()[:-1]}
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_extras_exist(file: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"'\.\[([a-z,]+)\]'", file.read_text())
    assert set(asked.split(",")) <= set(known)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_parses_and_does_not_run_as_root(file: Path) -> None:
    (entry,), (command,) = _instructions(file, "ENTRYPOINT"), _instructions(file, "CMD")
    program, verb, *rest = json.loads(entry) + json.loads(command)
    assert program == "anyres"
    group: Any = typer.main.get_command(app)
    group.commands[verb].make_context(verb, rest)  # raises on an option that does not exist
    assert _instructions(file, "USER") == ["10001"]


def test_compose_starts_what_the_files_build() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {ROOT / service["build"]["dockerfile"] for service in services.values()} == set(FILES)
    assert services["serve"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services["serve"]["environment"]["ANYRES_TOKEN"].startswith("${ANYRES_TOKEN:?")


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    if not beside.exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([beside, "--no-color", *FILES], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
