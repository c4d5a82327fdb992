"""Python is a door as good as the command line: the same code, typed results, and what it does said on stderr."""

from __future__ import annotations

import contextlib
import csv
import inspect
import json
import logging
import pydoc
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyres
from anyres.cli.console import start_logging
from anyres.flow import Estimate, Size, SizeResult
from anyres.runs.opened import ModelSpec, TrainedModel
from anyres.runs.report import Evaluation
from anyres.runs.stderr import show_log
from anyres.tasks import Answer
from tests import command
from tests.conftest import TinyRun
from tests.pictures import draw

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"
MEASURED_ANEW = {"latency_ms", "images_per_s", "latency_low_ms", "latency_high_ms", "disturbed"}


def test_the_public_names_are_those_of_the_reference() -> None:
    python = REFERENCE.read_text().split("\n## ")[1]
    assert re.findall(r"^### (\w+)$", python, re.M) == sorted(anyres.__all__)
    assert set(anyres.__all__) <= set(dir(anyres))
    assert len(set(anyres.__all__)) == len(anyres.__all__)


WORDS = {
    "train": ("Raises UserError", "Stopped", "model.safetensors", "resumes"),
    "evaluate": ("Raises UserError", "pixels", "[0, 1]", "milliseconds", "95 %"),
    "curve": ("Raises UserError", "curve.csv"),
    "pick": ("Raises UserError", "[0, 1]", "milliseconds"),
    "predict": ("Raises UserError", "uint8", "(c, h, w)", "pixels"),
    "load": ("Raises UserError", "evaluation mode"),
    "load_weights": ("Raises UserError",),
    "create_model": ("Raises UserError",),
    "register_task": ("Raises UserError",),
    "register_objective": ("Raises UserError",),
    "register_family": ("Raises UserError",),
    "Predictor": ("UserError",),
}


@pytest.mark.parametrize("name", anyres.__all__)
def test_help_says_what_goes_in_and_what_goes_wrong(name: str) -> None:
    told = " ".join(pydoc.render_doc(getattr(anyres, name), renderer=pydoc.plaintext).split())
    assert inspect.getdoc(getattr(anyres, name))
    assert not [words for words in WORDS.get(name, ()) if words not in told]


def test_help_of_train_names_its_arguments_and_what_it_returns() -> None:
    told = pydoc.render_doc(anyres.train, renderer=pydoc.plaintext)
    for name in ("recipe", "overrides", "data", "out", "weights", "report"):
        assert f"``{name}``" in told, name
    assert "-> TrainingRun" in told.replace("'", "")
    assert "train" in pydoc.render_doc(anyres, renderer=pydoc.plaintext)


def plain(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows without what is timed anew each time."""
    return [{key: value for key, value in row.items() if key not in MEASURED_ANEW} for row in rows]


def test_evaluate_is_what_the_command_prints(tiny_run: TinyRun) -> None:
    found = anyres.evaluate(tiny_run.folder, sizes=[32, "40x56", Size(48, 48)])
    assert isinstance(found, Evaluation)
    assert [result.size for result in found.sizes] == [Size(32, 32), Size(40, 56), Size(48, 48)]
    for result in found.sizes:
        assert isinstance(result, SizeResult)
        assert isinstance(result.best, Estimate)
        assert 0 <= result.best.low <= result.best.value <= result.best.high <= 1
        assert result.cost.latency_ms > 0
    said = json.loads(command.anyres("eval", tiny_run.folder, "--sizes", "32,40x56,48", "--json", "-").out)
    points = [{key: value for key, value in point.items() if key != "size"} for point in said["points"]]
    assert plain(json.loads(json.dumps(found.rows()))) == plain(points)
    assert plain(found.facts()["points"]) == plain(said["points"])
    assert found.facts().keys() == said.keys()
    assert "restv2_nano on" in repr(found)
    assert "40x56: " in repr(found)
    assert len(repr(found)) < 500


def test_evaluate_takes_what_load_returns_and_other_images(tiny_run: TinyRun) -> None:
    trained = anyres.load(tiny_run.folder)
    assert isinstance(trained, TrainedModel)
    assert not trained.model.training
    assert trained.classes == ("disc", "square", "stripes")
    of_run = anyres.evaluate(trained, data=str(tiny_run.data), split="train", sizes=["32"])
    assert of_run.sizes[0].n == 33
    of_weights = ModelSpec("restv2_nano", str(tiny_run.folder))
    assert anyres.evaluate(of_weights, data=str(tiny_run.data), split="train", sizes=[32]).best.result.best == (
        of_run.best.result.best
    )


def test_curve_then_pick(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "first"))
    found = anyres.curve(folder, sizes=["32:48:16"])
    with (folder / "curve.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in found.rows()]
    assert {"curve.png", "report.html"} <= {path.name for path in folder.iterdir()}
    best = found.best.result
    picked = anyres.pick(folder, bound=best.best.value)
    assert isinstance(picked, SizeResult)
    assert picked.best.value == best.best.value
    assert command.anyres("pick", folder, "--min-top1", best.best.value).out.startswith(f"{picked.size}  top-1 ")
    assert picked.row() in found.rows()
    assert anyres.pick(folder, max_ms=1e6).best.value == best.best.value
    with pytest.raises(anyres.UserError, match="no size runs within"):
        anyres.pick(folder, max_ms=1e-9)


def test_pick_of_a_metric_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """More of it may be worse."""
    head = "model,height,width,oddity,n,latency_ms,macs,oddity_low,oddity_high,images_per_s"
    (tmp_path / "curve.csv").write_text(f"{head}\na,32,32,1.5,9,1.0,7,1.0,2.0,5.0\n")
    with pytest.raises(anyres.UserError, match="has 'oddity', of a task that is not registered: import its module"):
        anyres.pick(tmp_path, bound=1.0)


def test_predict_is_what_the_command_prints(tiny_run: TinyRun, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    pictures = [draw(0, 5), draw(2, 6)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous() for picture in pictures]
    found = anyres.predict(tiny_run.folder, paths, size="40x56", top=2)
    assert all(isinstance(answer, Answer) for answer in found)
    assert found == anyres.predict(tiny_run.folder, pictures, size="40x56", top=2)
    assert found == anyres.predict(anyres.load(tiny_run.folder), tensors, size="40x56", top=2)
    rows = command.anyres("predict", tiny_run.folder, *paths, "--size", "40x56", "--top", 2).out.splitlines()[1:]
    for answer, path, row in zip(found, paths, rows, strict=True):
        assert row.split() == [str(path), *" ".join(answer.cells.values()).split()]
        assert answer.line == ", ".join(answer.cells.values())
        assert 0 <= answer.values["classes"][1]["probability"] <= answer.values["classes"][0]["probability"] <= 1
    assert anyres.predict(tiny_run.folder, [], size=32) == []


def test_mistakes_are_raised_not_printed(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(anyres.UserError, match="is not a run folder"):
        anyres.load(tmp_path / "nowhere")
    with pytest.raises(anyres.UserError, match="size 'ten' is neither a side"):
        anyres.evaluate(tiny_run.folder, sizes=["ten"])
    with pytest.raises(anyres.UserError, match=r"none.jpg is unreadable"):
        anyres.predict(tiny_run.folder, [tmp_path / "none.jpg"])
    with pytest.raises(anyres.UserError, match=r"an image is uint8 \(3, h, w\), not torch.float32"):
        anyres.predict(tiny_run.folder, [torch.zeros(3, 8, 8)])
    with pytest.raises(anyres.UserError, match="has no run folder: give --out"):
        anyres.curve(ModelSpec("restv2_nano", str(tiny_run.folder)), data=str(tiny_run.data), sizes=[32])
    assert capsys.readouterr().out == ""


SCRIPT = """
import json, sys
import anyres

data, out, *values = sys.argv[1:]
run = anyres.train("restv2_nano", values, data=data, out=out)
print(json.dumps(run.evaluation.rows()))
again = anyres.train("restv2_nano", values, data=data, out=out)
print(json.dumps([again.folder == run.folder, again.evaluation is None, run.load().name]))
assert "rich" not in type(sys.stderr).__module__
"""


def test_a_script_trains_as_the_command_does_and_says_so_on_stderr(tiny_run: TinyRun, tmp_path: Path) -> None:
    """In a process that sets up no logging: the same weights bit for bit, and each sentence once."""
    script, out = tmp_path / "mine.py", tmp_path / "run"
    script.write_text(SCRIPT)
    values = [word for word in tiny_run.command if "=" in word]
    words = [sys.executable, script, tiny_run.data, out, *values]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, again = map(json.loads, done.stdout.splitlines())
    assert again == [True, True, "restv2_nano"]
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tiny_run.folder / name).read_bytes(), name
    with (tiny_run.folder / "curve.csv").open(newline="") as file:
        of_command = plain(list(csv.DictReader(file)))
    assert [{key: str(value) for key, value in row.items()} for row in plain(rows)] == of_command
    lines = done.stderr.splitlines()
    assert lines.count("33 training and 9 held-out images of 3 classes") == 1
    assert len([line for line in lines if "is done: it holds model.safetensors" in line]) == 1
    said = [line for line in tiny_run.said.splitlines() if "ETA" not in line and not line.startswith("next: ")]
    assert [line for line in lines if "ETA" not in line][: len(said)] == said


@contextlib.contextmanager
def fresh_logging() -> Iterator[logging.Logger]:
    """Logging as a new process has it, without the handlers by which pytest listens."""
    root, log = logging.getLogger(), logging.getLogger("anyres")
    before = (root.handlers, log.handlers, log.level, log.propagate)
    root.handlers, log.handlers, log.propagate = [], [], True
    log.setLevel(logging.NOTSET)
    try:
        yield log
    finally:
        root.handlers, log.handlers, log.propagate = before[0], before[1], before[3]
        log.setLevel(before[2])


def test_sentences_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_logging() as top:
        log = top.getChild("runs.train")
        show_log()
        show_log()
        log.info("two\nlines")
        log.debug("a detail")
        assert capsys.readouterr() == ("", "two lines\n")
        start_logging()
        log.info("the command line adds no second handler")
        assert capsys.readouterr().err == "the command line adds no second handler\n"
        assert len(top.handlers) == 1


def test_a_program_with_logging_of_its_own_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_logging() as top:
        logging.getLogger().addHandler(logging.NullHandler())
        show_log()
        assert top.handlers == []
        assert top.level == logging.NOTSET
        top.warning("not ours to print")
        assert capsys.readouterr().err == ""


def test_a_picture_of_pillow_needs_no_file(tiny_run: TinyRun) -> None:
    (answer,) = anyres.predict(tiny_run.folder, [Image.new("L", (50, 40), 128)])
    assert sum(one["probability"] for one in answer.values["classes"]) == pytest.approx(1, abs=1e-3)


def test_only_public_names_are_shown() -> None:
    assert dir(anyres) == sorted([*anyres.__all__, "__version__"])
    assert re.fullmatch(r"\d+\.\d+.*", anyres.__version__)
    with pytest.raises(AttributeError, match="no attribute 'Any_thing'"):
        _ = anyres.Any_thing


def test_a_predictor_of_a_run_knows_its_classes_and_preprocessing(tiny_run: TinyRun, tmp_path: Path) -> None:
    path, picture = tmp_path / "a.png", draw(0, 5)
    picture.save(path)
    array = np.array(picture)
    answer = anyres.predict(tiny_run.folder, str(path))[0].values["classes"]
    assert anyres.predict(str(tiny_run.folder), picture)[0].values["classes"] == answer
    made = anyres.Predictor(str(tiny_run.folder), "eager")
    assert made.size == Size(48, 48)
    assert made.names == ("disc", "square", "stripes")
    (found,) = made.predict(str(path), top=3)
    assert [one.name for one in found] == [one["name"] for one in answer]
    assert [one.probability for one in found] == pytest.approx([one["probability"] for one in answer], abs=1e-2)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (path, picture, array, tensor, [array], array[None], [str(path)], tensor[None]):
        assert made.predict(given, top=3) == [found]
    assert len(made.predict([path, array, picture])) == 3
    assert len(made.predict(array[:, :, 0])) == 1  # gray
    assert anyres.predict(tiny_run.folder, array[None], size=Size(48, 48))[0].values["classes"] == answer
    with pytest.raises(anyres.UserError, match="an array is no image here: it has 5 channels"):
        made.predict(np.zeros((9, 9, 5), np.uint8))
    with pytest.raises(anyres.UserError, match="nowhere is not a run folder"):
        anyres.Predictor("nowhere")


def test_sizes_and_paths_may_be_plain(tiny_run: TinyRun, tmp_path: Path) -> None:
    one = anyres.evaluate(str(tiny_run.folder), data=tiny_run.data, split="train", sizes=32)
    assert [result.size for result in one.sizes] == [Size(32, 32)]
    folder = tiny_run.folder
    names = tmp_path / "classes.csv"
    names.write_text("disc\nsquare\nstripes\n")
    weights = folder / "model.safetensors"
    assert anyres.load("restv2_nano", weights, str(names)).classes == ("disc", "square", "stripes")
    model = anyres.load(folder).model
    torch.testing.assert_close(*(anyres.fuse(model, size)(torch.zeros(1, 3, 40, 56)) for size in ("40x56", (40, 56))))


def test_load_weights_says_what_it_did(tiny_run: TinyRun) -> None:
    for classes, replace_head in ((3, False), (5, True)):
        done = anyres.load_weights(
            anyres.create_model("restv2_nano", classes), tiny_run.folder, replace_head=replace_head
        )
        assert done
        assert done.new_classifier is replace_head
        assert done.source == str(tiny_run.folder / "model.safetensors")
        assert done.adapted == ()
        assert str(done).startswith("loaded ")
