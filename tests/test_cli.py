"""Every verb on a real run, and every mistake we could think of: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from anyres.cli import listing
from anyres.models.index import known_weights
from anyres.models.registry import list_models
from tests.command import COMMANDS, VERBS, anyres, parse, refused
from tests.conftest import TinyRun
from tests.pictures import draw, make_folder

FIRST = ["model", "height", "width", "top1", "n", "latency_ms", "macs"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_parses(verb: str) -> None:
    answer = anyres(verb, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "Example:" in answer.out
    doc = COMMANDS[verb].help
    examples = re.findall(r"Example: `([^`]+)`", doc)
    assert examples
    assert {parse(example) for example in examples} == {verb}


def test_without_a_verb_the_help_is_shown() -> None:
    answer = anyres()
    assert answer.code == 0
    assert all(verb in answer.out for verb in VERBS)


def test_help_and_lists_start_without_torch(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text(
        "model,height,width,top1,n,latency_ms,macs,images_per_s\nm,64,64,0.9,100,1.0,1000000,500\n"
    )
    code = (
        "import sys\nfrom unittest import mock\nfrom anyres.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['models'], ['data'], ['recipes'], "
        f"['pick', {str(tmp_path)!r}, '--bound', '0.9']):\n"
        "    with mock.patch('sys.argv', ['anyres', *words]):\n"
        "        try:\n            main()\n"
        "        except SystemExit as ended:\n            assert not ended.code, words\n"
        "    assert 'torch' not in sys.modules, words\n"
        "import anyres.recipe\nassert 'torch' not in sys.modules\n"
        "import anyres.runs.predict\nslow = {'torchvision', 'timm', 'accelerate', 'matplotlib', 'torch._dynamo'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_models_are_listed_with_whole_names(width: int) -> None:
    """On a terminal of so many columns: nothing is cut, and no number is missing."""
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    listing._list_models(console, list_models())
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    rows = {line.split()[0]: line for line in lines if line[:1].strip()}
    assert [name for name in rows if name in list_models()] == list_models()
    for text in ("22.0 M", "4.6 G", " 224 ", "78.2@128", "MIT", "hand"):
        assert text in rows["resformer_small_patch16"], text
    assert rows["deit_small_patch16_LS"].split()[-1] == "4"
    assert rows["restv2_nano"].split()[-1] == "ours"


def test_models_in_a_pipe_stand_on_one_line_each() -> None:
    answer = anyres("models", "rest*")
    assert "82.3@224 83.7@384" in answer.out
    assert answer.out.count("\n") <= len(list_models("rest*")) + 4


def test_one_model_is_shown_with_its_weights() -> None:
    told = anyres("models", "deit3_small").out
    for row in known_weights("deit_small_patch16_LS"):
        assert f"{row.name}, {row.trained}" in told
        assert row.url in told
    assert "also called deit3_small" in told
    assert "pretrained='deit3_small.224'" in told
    assert "k-NN" in anyres("models", "dino_vits8").out
    assert "ours" in anyres("models", "resmlp_nano").out
    assert "did you mean 'deit3_small'" in refused("models", "deit3_smal")


def test_options_before_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"anyres \d+\.\d+\.\d+\n", anyres("--version").out)
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANYRES_OFFLINE", "")
    told = refused("--offline", "train", "restv2_nano", "--data", "groceries", "--out", tmp_path / "run")
    assert "the network is switched off" in told
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_recipes_show_and_data_say_what_there_is() -> None:
    listed = anyres("recipes")
    assert listed.code == 0
    assert {"demo/any_size", "folder", "nano", "resformer/small_mr"} <= {
        line.split()[0] for line in listed.out.splitlines() if line[:1].strip()
    }
    shown = anyres("show", "demo/any_size", "train.epochs=5")
    assert shown.code == 0
    assert "epochs: 5" in shown.out
    told = anyres("data")
    assert "groceries" in told.out
    assert "Licence" in told.out


def test_a_run_leaves_what_its_documentation_says(tiny_run: TinyRun) -> None:
    folder = tiny_run.folder
    files = ["model.safetensors", "recipe.yaml", "metrics.jsonl", "run.json", "curve.csv", "curve.png", "report.html"]
    assert {*files, "tensorboard"} <= {p.name for p in folder.iterdir()}
    assert list((folder / "tensorboard").iterdir())
    with (folder / "curve.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head[: len(FIRST)] == FIRST
    assert [row[:3] for row in rows] == [["restv2_nano", "32", "32"], ["restv2_nano", "48", "48"]]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["steps"] == 2 * (33 // 8)
    assert facts["images"] == 8 * facts["steps"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("val/top1/48" in record for record in records)
    with Image.open(folder / "curve.png") as picture:
        assert picture.format == "PNG"
    assert not [p for p in folder.rglob("*") if p.name.endswith((".part", ".partial", ".tmp"))]
    assert "training and 9 held-out images of 3 classes" in tiny_run.said


def test_the_same_command_again_says_done_and_another_recipe_is_refused(tiny_run: TinyRun) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.folder.rglob("*")}
    again = anyres(*tiny_run.command)
    assert again.code == 0
    assert "is done" in again.err
    line = refused(*tiny_run.command, "optim.lr=0.5")
    assert "optim.lr" in line
    assert "choose another --out" in line
    assert before == {p: p.stat().st_mtime_ns for p in tiny_run.folder.rglob("*")}


def test_eval_scores_and_writes_nothing(tiny_run: TinyRun) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.folder.rglob("*")}
    answer = anyres("eval", tiny_run.folder, "--sizes", "32,40x56", "--data", tiny_run.data, "--split", "train")
    assert answer.code == 0, answer.err
    assert "40x56" in answer.out
    assert answer.err == "no val split: 9 of 42 images held out of train for it\n"
    assert before == {p: p.stat().st_mtime_ns for p in tiny_run.folder.rglob("*")}


def answered_none(*words: object) -> str:
    """The sentence with which ``anyres WORDS`` says that there is none."""
    answer = anyres(*words)
    assert (answer.code, answer.err) == (3, "")
    return answer.out


def test_curve_then_pick(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.folder, tmp_path / "first")
    answer = anyres("curve", folder, "--sizes", "32:64:16", "--sizes", "48x32")
    assert answer.code == 0, answer.err
    with (folder / "curve.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert [(p["height"], p["width"]) for p in points] == [("32", "32"), ("48", "48"), ("64", "64"), ("48", "32")]
    assert list(points[0])[: len(FIRST)] == FIRST
    best = max(float(p["top1"]) for p in points)
    picked = anyres("pick", folder, "--min-top1", best)
    assert picked.code == 0
    assert f"top-1 {100 * best:.1f} %" in picked.out
    assert anyres("pick", folder, "--max-ms", 1e6).out.count(f"top-1 {100 * best:.1f} %") == 1
    assert anyres("pick", folder, "--max-ms", 1e6, "--min-top1", 0).code == 0
    impossible = answered_none("pick", folder, "--min-top1", "1", "--max-ms", "1e-9")
    assert "no size reaches top-1 100.0 % and runs within 1e-09 ms" in impossible
    assert re.search(r"the (most accurate|fastest).* is size \d+", impossible)
    assert best == 1 or "most accurate is size" in answered_none("pick", folder, "--min-top1", "1")
    assert "the fastest is size" in answered_none("pick", folder, "--max-ms", "1e-9")
    assert "write 76.4 % as 0.764" in refused("pick", folder, "--min-top1", "76.4")
    assert "say what the size has to do" in refused("pick", folder)


def test_predict_names_classes_and_unreadable_files(tiny_run: TinyRun, tmp_path: Path) -> None:
    good, bad = tmp_path / "a [b] photo.png", tmp_path / "broken.jpg"
    draw(0, 5).save(good)
    bad.write_text("no picture")
    answer = anyres("predict", tiny_run.folder, good, "--size", "40x56", "--top", 9)
    assert answer.code == 0, answer.err
    row = answer.out.splitlines()[-1]  # where a program reads it, a path is never folded
    assert row.startswith(str(good))
    assert all(re.search(rf"{name} [0-9.]+ %", row) for name in ("disc", "square", "stripes"))
    mixed = anyres("predict", tiny_run.folder, good, bad)
    assert mixed.code == 2
    assert "disc" in mixed.out
    assert mixed.err == f"error: {bad} is unreadable: no JPEG, PNG, WebP, TIFF or other picture\n"
    assert f"{tmp_path / 'none.jpg'} is unreadable" in refused("predict", tiny_run.folder, tmp_path / "none.jpg")


COMMAND_LINE = {
    "trian restv2_nano": "'train'",
    "train": "RECIPE",
    "eval --foo x": "--foo",
    "predict x y.jpg --top 0": "--top",
    "pick x --min-top1 much": "--min-top1",
    "train resformer/smal_mr": "did you mean 'resformer/small_mr'",
    "train restv2_nanno": "'restv2_nano'",
    "show restv2_nano modle.name=x": "'modle' is not a key; did you mean 'model'",
    "show nano optim.lrr=1": "'optim.lrr' is not a key; did you mean 'lr'",
    "show nano optim.lr=fast": "optim.lr: Input should be a valid number",
    "show nano train.epochs=2.5": "train.epochs: Input should be a valid integer",
    "show nano train.epochs=0": "train.epochs=0 must be 1 or more",
    "show nano data.batch_size=0": "data.batch_size=0 must be 1 or more",
    "show nano data.workers=-1": "data.workers=-1 must be 0 or more",
    "show nano evaluate.batch_size=0": "evaluate.batch_size=0 must be 1 or more",
    "show nano evaluate.sizes=[]": "no size is given",
    "show nano views.sizes=[big]": "size 'big' is neither",
    "show nano views.sizes=[]": "views.sizes is empty",
    "show nano optim.name=adamv": "is no optimiser of timm's; did you mean",
    "show nano optim.lr=-1": "optim.lr must be above 0",
    "show nano train.precision=bf17": "train.precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16'",
    "show nano model.name=": "model.name is missing",
    "show nano model.name=restv2_nan": "there is no model 'restv2_nan'; did you mean 'restv2_nano'",
    "show nano model.drop_pat=1": "has no option 'drop_pat'; did you mean 'drop_path'",
    "show nano model.drop_path=wide": "model.drop_path: Input should be a valid number",
    "show nano optim": "'optim' is not KEY=VALUE, as in optim.lr=3e-4",
    "show nano optim.lr.x=1": "'lr' is a value, not a group of keys",
    "show nowhere.yaml": "nowhere.yaml: No such file or directory",
    "models restv3*": "no model matches 'restv3*'",
    "eval nowhere": "nowhere is not a run folder: it has no recipe.yaml",
    "curve nowhere --sizes ten": "size 'ten' is neither a side such as 224 nor HEIGHTxWIDTH such as 320x192",
    "curve nowhere --sizes 64:32:8": "size range '64:32:8' is empty",
    "curve nowhere --sizes=": "no size is given",
    "eval nowhere --sizes 0": "size '0' is neither",
    "predict nowhere x.jpg --size 3x": "size '3x' is neither",
    "pick nowhere --max-ms 3": "there is no curve at nowhere/curve.csv",
    "demo --epochs 0": "--epochs",
    "show nano model.num_classes=4": "model.num_classes is decided by the images",
    "show nano model.depths=many": "model.depths: Input should be a valid tuple",
}


@pytest.mark.parametrize("words", COMMAND_LINE)
def test_a_mistake_in_the_command_is_one_line(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert COMMAND_LINE[words] in refused(*shlex.split(words))
    assert not list(tmp_path.iterdir())


def test_recipe_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, line in {
        "model: {name: [": "is not YAML",
        "just words": "does not hold a recipe",
        "": "does not hold a recipe",
        "optim: {lr: 1}": "model: Field required",
        "model: {name: restv2_nano}\nextra: 1": "'extra' is not a key",
        "model: {name: restv2_nano}\noptim: 3": "optim: Input should be a dictionary",
    }.items():
        path.write_text(text)
        said = refused("train", path, "--data", tmp_path, "--out", tmp_path / "run")
        assert line in said
        assert str(path) in said
    path.write_bytes(b"\xff\xfe\x00model")
    assert "is not YAML" in refused("show", path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_data_that_is_none(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def said(data: Path | str, *more: str) -> str:
        line = refused("train", "restv2_nano", "--data", data, "--out", out, "views.sizes=[32]", *more)
        assert not out.exists()
        return line

    (tmp_path / "shapes").mkdir()
    assert f"no folder or table {tmp_path / 'shpes'}; did you mean 'shapes'?" in said(tmp_path / "shpes")
    assert "no class with images to train on" in said(tmp_path / "shapes")
    picture = tmp_path / "photo.jpg"
    draw(0, 0).save(picture)
    assert f"{picture} is a file but no .csv table" in said(picture)
    (tmp_path / "shapes" / "disc").mkdir()
    shutil.copy(picture, tmp_path / "shapes" / "disc")
    assert "only the class 'disc' to train on: two or more are needed" in said(tmp_path / "shapes")
    junk = tmp_path / "junk"
    for name in ("cat", "dog"):
        (junk / name).mkdir(parents=True)
        for i in range(4):
            (junk / name / f"{i}.jpg").write_text("no picture")
    line = said(junk)
    assert "of 6 images are unreadable, as cat/" in line
    assert "of 6 images are unreadable" in said(junk, "data.cache_side=null")
    for i in range(20):
        draw(i % 2, i).save(junk / ("cat", "dog")[i % 2] / f"good{i}.jpg")
    assert "of 22 images are unreadable" in said(junk, "data.max_unreadable=0")
    none = refused("train", "restv2_nano", "--out", out)
    assert "give --data a folder, a CSV manifest or a built-in set such as groceries" in none
    assert not out.exists()


def test_out_that_is_taken(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=3)
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    file.write_text("years of work")
    command = ("train", "restv2_nano", "--data", data, "views.sizes=[32]", "--out")
    assert f"{taken} is not empty and has no recipe.yaml: choose another --out" in refused(*command, taken)
    assert f"{file} is a file: choose another --out" in refused(*command, file)
    assert str(file / "run") in refused(*command, file / "run")
    assert [p.name for p in taken.iterdir()] == ["thesis.tex"]
    assert file.read_text() == "years of work"


def test_runs_that_are_none(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert "is not a run folder" in refused("eval", run)
    shutil.copy(tiny_run.folder / "recipe.yaml", run)
    for verb in (("eval", run), ("curve", run), ("predict", run, "x.jpg")):
        assert f"{run} is not finished: it has no model.safetensors" in refused(*verb)
    assert f"did you mean '{run.name}'" in refused("eval", tmp_path / "runn")
    whole = (tiny_run.folder / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"<html>" + whole):
        (run / "model.safetensors").write_bytes(damaged)
        assert str(run / "model.safetensors") in refused("eval", run)
    from safetensors.torch import load_file, save_file

    save_file(load_file(tiny_run.folder / "model.safetensors"), run / "model.safetensors")
    assert "was not written by `anyres train`" in refused("eval", run)
    (run / "curve.csv").write_text("size,accuracy\n1,2\n")
    assert "is no curve: it lacks the column 'model'" in refused("pick", run, "--max-ms", "1")


def test_data_of_other_classes_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_run.data, tmp_path / "other")
    (other / "disc").rename(other / "circle")
    line = refused("eval", tiny_run.folder, "--data", other)
    assert "'circle' is not among the classes of the model" in line
    assert "unknown split 'tests'; did you mean 'test'" in refused("eval", tiny_run.folder, "--split", "tests")
    assert "no folder or table" in refused("eval", tiny_run.folder, "--data", tmp_path / "none")


def test_data_that_changed_during_an_interruption_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    data, run = shutil.copytree(tiny_run.data, tmp_path / "shapes"), tmp_path / "run"
    recipe = tiny_run.folder / "recipe.yaml"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.read_text().replace(str(tiny_run.data), str(data)))
    step = next(tiny_run.folder.glob("step_*"))
    shutil.copytree(step, run / step.name)
    words = [
        str(data) if w == str(tiny_run.data) else str(run) if w == str(tiny_run.folder) else w for w in tiny_run.command
    ]
    shutil.copy(data / "disc" / "00.jpg", data / "disc" / "copy1.jpg")
    shutil.copy(data / "disc" / "00.jpg", data / "disc" / "copy2.jpg")
    assert "was begun with 33 training images, now there are 3" in refused(*words)
    shutil.copytree(data / "disc", data / "another")
    line = refused(*words)
    assert "have the classes of the data changed since?" in line
    assert step.name in line


def test_ctrl_c_outside_the_loop_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While images are read there is nothing to save, and no traceback either."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anyres.runs.train.train_run", interrupted)
    answer = anyres("train", "restv2_nano", "--out", tmp_path / "run")
    assert answer == (130, "", "stopped\n")


def test_a_full_disk_is_one_line(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/first/curve.csv")

    monkeypatch.setattr("anyres.runs.evaluate.report_on", full)
    line = refused("curve", tiny_run.folder, "--sizes", "32")
    assert line.startswith("error: runs/first/curve.csv: No space left on device: make room")


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.\nMore lines.")

    monkeypatch.setattr("anyres.runs.train.run_loop", full)
    data = make_folder(tmp_path / "shapes", per_class=3)
    answer = anyres("train", "restv2_nano", "--data", data, "--out", tmp_path / "run", "views.sizes=[48, 32]")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("error: the device's memory is too small for 6 images at 48, 32 px")


def test_a_warning_is_a_note_and_another_library_s_goes_to_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import logging
    import warnings

    import torch

    def warned(_: str) -> None:
        warnings.showwarning("this is new", UserWarning, "file.py", 1)
        warnings.showwarning("this is\nold", UserWarning, torch.__file__, 1)
        logging.getLogger("torch.strange").warning("odd: %s", 3)

    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.setattr("anyres.cli.listing.show_models", warned)
    assert anyres("models") == (0, "", "note: this is new\n")
    first, second = (tmp_path / "warnings.log").read_text().splitlines()
    assert "py.warnings: this is old (UserWarning, " in first
    assert second.endswith("torch.strange: odd: 3")
    (tmp_path / "warnings.log").write_bytes(b"0" * 2**21)
    anyres("models")
    assert (tmp_path / "warnings.log").stat().st_size < 2000


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m anyres show nano | head -1"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.stdout == "model:\n"
    assert done.stderr == ""
