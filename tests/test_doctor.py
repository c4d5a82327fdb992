"""What is there before any work: `anyres doctor`, `--quiet`, and completion by the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyres.cli import doctor as verb
from anyres.runs import doctor
from tests.command import VERBS, anyres
from tests.conftest import TinyRun
from tests.pictures import draw

ROOT = Path(__file__).parents[1]


def test_the_doctor_names_the_machine_and_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "some").write_bytes(b"0" * 3_000_000)
    uses = (*doctor.NEEDS, doctor.Need("a use", ("torch", "no_such_module"), "install it"))
    monkeypatch.setattr(doctor, "NEEDS", uses)
    answer = anyres("doctor", "--json", tmp_path / "found.json")
    assert (answer.code, answer.err) == (0, "")
    told = answer.out.splitlines()
    assert any(line.startswith("cache") and "holds 3 MB" in line for line in told)
    after = told.index(next(line for line in told if line.startswith("a use")))
    assert told[after].split("  ")[-1].strip() == "lacks no_such_module"
    assert told[after + 1].strip() == "-> install it"
    assert "lines with -> say what to do" in told[-1]
    found = json.loads((tmp_path / "found.json").read_text())
    parts = {finding["part"] for finding in found["machine"]}
    assert parts >= {"anyres", "python", "libraries", "device", "processors", "engines", "memory", "cache", "network"}
    assert {finding["part"] for finding in found["uses"]} == {need.use for need in uses}


def test_nothing_is_missing_where_everything_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    good = [doctor.Finding("part", "fine")]
    verb._print(good)
    assert capsys.readouterr().out.split() == ["part", "fine"]


def test_every_module_that_an_extra_brings_is_asked_for() -> None:
    asked = {module for need in doctor.NEEDS for module in need.modules}
    assert {
        "pyarrow",
        "datasets",
        "openvino",
        "nncf",
        "onnxruntime",
        "onnx",
        "onnxscript",
        "wandb",
        "tifffile",
    } <= asked


def test_quiet_leaves_results_and_errors(tiny_run: TinyRun, tmp_path: Path) -> None:
    for i in range(2):
        draw(i, i).save(tmp_path / f"{i}.png")
    words = ("predict", tiny_run.folder, tmp_path)
    loud, quiet = anyres(*words), anyres("--quiet", *words)
    assert "next: " in loud.err
    assert (quiet.code, quiet.err, quiet.out) == (0, "", loud.out)
    assert anyres("--quiet", "predict", tiny_run.folder, tmp_path / "none.jpg").err.startswith("error: ")
    assert anyres(*words).err == loud.err


def test_the_shell_completes_verbs_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ANYRES_COMPLETE", "complete_bash")
    for typed, wanted in (("anyres pr", {v for v in VERBS if v.startswith("pr")}), ("anyres predict --cs", {"--csv"})):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        assert set(anyres().out.split()) == wanted
