"""The examples work from outside the package: train, resume, curve, report, predict, with no file of src/ changed."""

from __future__ import annotations

import csv
import runpy
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.data import sources
from anyres.deploy.engines import backend
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
    monkeypatch.setattr(sources, "_SEVERAL", dict(sources._SEVERAL))


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


def write_npz(path: Path, folder: Path, splits: tuple[str, ...]) -> Path:
    """The pictures of a folder of classes as arrays, dealt out to ``splits``."""
    arrays: dict[str, np.ndarray] = {}
    files = sorted(folder.rglob("*.*"))
    classes = sorted({file.parent.name for file in files})
    for place, split in enumerate(splits):
        own = files[place :: len(splits)]
        pictures = [np.asarray(Image.open(file).convert("RGB").resize((40, 40))) for file in own]
        arrays[f"{split}_images"] = np.stack(pictures)
        arrays[f"{split}_labels"] = np.array([[8 + classes.index(file.parent.name)] for file in own])
    np.savez(path, **arrays)
    return path


def test_a_dataset_format_of_ones_own(tmp_path: Path) -> None:
    load("new_dataset.py")
    folder = make_folder(tmp_path / "shapes", per_class=10)
    data = write_npz(tmp_path / "shapes.npz", folder, ("train", "val"))
    words = ["train", "restv2_nano", *SHORT]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Run(data, whole, words=words, before=partial(load, "new_dataset.py")).start().wait()
    run = Run(data, killed, words=words, before=partial(load, "new_dataset.py")).start().reach(3)
    run.kill()
    run.start().wait()
    assert not differences(whole, killed)
    assert anyres("curve", whole, "--sizes", "32,48x32").code == 0
    assert (whole / "report.html").is_file()
    answer = anyres("predict", whole, next(folder.rglob("*.jpg")))
    assert answer.code == 0, answer.err


def test_a_set_in_that_format(tmp_path: Path) -> None:
    load("new_dataset.py")
    folder = make_folder(tmp_path / "shapes", per_class=6)
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("a.npz", "b.npz"):
        write_npz(parts / name, folder, ("train", "val", "test"))
    whole = sources.open_source(str(parts), "train")
    one = sources.open_source(str(parts / "*.npz"), "train")
    assert whole.records == one.records
    assert whole.classes == ("8", "9", "10")  # by value
    assert len(whole.records) == 12
    with pytest.raises(sources.UserError, match="have a reader already"):
        sources.register_reader(".npz")(lambda paths: sources.Found({}))
    for ending in (".jpg", ".csv", "npz"):
        with pytest.raises(sources.UserError, match="cannot have a reader"):
            sources.register_reader(ending)
    np.savez(tmp_path / "empty.npz", val_images=np.zeros((1, 4, 4), np.uint8), val_labels=np.zeros(1, int))
    assert "no array train_images" in refused("train", "restv2_nano", "--data", tmp_path / "empty.npz", *SHORT)


def test_a_reader_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "shapes", per_class=6)
    data = write_npz(tmp_path / "shapes.npz", folder, ("train", "val"))
    assert "no .csv table or other source" in refused("train", "restv2_nano", "--data", data, *SHORT)
    read = runpy.run_path(str(EXAMPLES / "new_dataset.py"), run_name="new_dataset")["read_npz"]
    del sources._SEVERAL[".npz"]
    point = mock.Mock()
    point.configure_mock(name="npz", load=lambda: read)
    monkeypatch.setattr(sources, "entry_points", lambda group: [point] if group == sources.READERS else [])
    assert len(sources.open_source(str(data), "train").records) == 9


def test_an_engine_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ENGINES", dict(backend.ENGINES))
    load("new_engine.py")
    import anyres as package

    torch.manual_seed(0)
    model = package.create_model("restv2_nano", num_classes=5).eval()
    images = torch.randn(3, 3, 40, 56)
    own, plain = (package.Predictor(model, name, "40x56", batch=2)(images) for name in ("channels_last", "eager"))
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)
    assert backend.Backend("channels_last", "fp32") in backend.candidates(torch.device("cpu"), ("fp32",))


def test_what_is_not_registered_is_one_line(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=4)
    assert "task=numbre is not registered" in refused(
        "train", "restv2_nano", "task=numbre", "--data", data, "--out", tmp_path / "a", *SHORT
    )
    assert "objective.name=shorter is not registered" in refused(
        "train", "restv2_nano", "objective.name=shorter", "--data", data, "--out", tmp_path / "b", *SHORT
    )
