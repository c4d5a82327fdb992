"""The examples work from outside the package: train, resume, curve, report, predict, with no file of src/ changed."""

from __future__ import annotations

import csv
import runpy
import shutil
from functools import partial
from pathlib import Path

import pytest

from anyres.tasks import registry as tasks
from anyres.training.objectives import registry as objectives
from tests.command import anyres, refused
from tests.pictures import make_folder
from tests.runs import Run, differences

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ("model.dims=[16,32,64,128]", "model.depths=[1,1,1,1]", "views.sizes=[40,32]", "data.batch_size=6")
SHORT = (*SMALL, "train.epochs=3", "train.log_every=1", "train.checkpoint_every=2", "evaluate.sizes=[32]")
MOST_LINES = 60


def load(name: str) -> None:
    """Run an example as ``import`` would."""
    runpy.run_path(str(EXAMPLES / name), run_name=Path(name).stem)


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example registers is forgotten after its test."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.setattr(objectives, "_REGISTERED", dict(objectives._REGISTERED))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("new_*.py")), ids=lambda path: path.stem)
def test_an_example_fits_a_screen(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pictures, each with a number."""
    root = tmp_path_factory.mktemp("numbers")
    folder = make_folder(root / "shapes", per_class=10)
    table = root / "numbers.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for i, path in enumerate(sorted(folder.rglob("*.*"))):
            rows.writerow([path.relative_to(root), f"{i / 7:.2f}"])
    return table


def test_a_task_of_ones_own(tmp_path: Path, numbers: Path) -> None:
    load("new_task.py")
    words = ["train", "restv2_nano", "task=number", *SHORT]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Run(numbers, whole, words=words, before=partial(load, "new_task.py")).start().wait()
    run = Run(numbers, killed, words=words, before=partial(load, "new_task.py")).start().reach(3)
    run.kill()
    run.start().wait()
    assert not differences(whole, killed)
    answer = anyres("curve", whole, "--sizes", "32,48x32")
    assert answer.code == 0, answer.err
    assert "MAE" in answer.out
    rows = list(csv.DictReader((whole / "curve.csv").read_text().splitlines()))
    assert [(row["height"], row["width"]) for row in rows] == [("32", "32"), ("48", "32")]
    assert all(float(row["mae_low"]) <= float(row["mae"]) <= float(row["mae_high"]) for row in rows)
    assert "MAE" in (whole / "report.html").read_text()
    worst = max(float(row["mae"]) for row in rows)
    assert "MAE" in anyres("pick", whole, "--bound", worst).out
    photo = next(numbers.parent.rglob("*.jpg"))
    answer = anyres("predict", whole, photo)
    assert answer.code == 0, answer.err
    float(answer.out.split()[-1])


def test_a_label_that_is_no_number_is_named(tmp_path: Path, numbers: Path) -> None:
    load("new_task.py")
    shutil.copytree(numbers.parent / "shapes", tmp_path / "shapes")
    bad = tmp_path / "numbers.csv"
    bad.write_text(numbers.read_text().replace("0.43", "many"))
    line = refused("train", "restv2_nano", "task=number", "--data", bad, "--out", tmp_path / "run", *SHORT)
    assert "'many' is no number" in line


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    load("new_objective.py")
    data = make_folder(tmp_path / "shapes", per_class=8)
    words = ["train", "restv2_nano", "objective.name=short_features", "objective.options={weight: 0.5}", *SHORT]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Run(data, whole, words=words, before=partial(load, "new_objective.py")).start().wait()
    run = Run(data, killed, words=words, before=partial(load, "new_objective.py")).start().reach(3)
    run.kill()
    run.start().wait()
    assert not differences(whole, killed)
    assert '"ce/40"' in (whole / "metrics.jsonl").read_text()
    assert '"length/32"' in (whole / "metrics.jsonl").read_text()
    assert anyres("curve", whole, "--sizes", "32").code == 0
    assert (whole / "report.html").is_file()
    assert anyres("predict", whole, next(data.rglob("*.jpg"))).code == 0


def test_what_is_not_registered_is_one_line(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=4)
    assert "task=numbre is not registered" in refused(
        "train", "restv2_nano", "task=numbre", "--data", data, "--out", tmp_path / "a", *SHORT
    )
    assert "objective.name=shorter is not registered" in refused(
        "train", "restv2_nano", "objective.name=shorter", "--data", data, "--out", tmp_path / "b", *SHORT
    )
