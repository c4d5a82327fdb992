"""``anyres predict --out``: lists, tables and shards in; tables and JSON lines out; continued where it stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import anyres
from anyres.config import UserError
from anyres.data.answer_table import write_answer_parquet
from anyres.data.image_list import read_words, wanted_images
from anyres.deploy.cascade import Cascade
from anyres.flow import Size
from anyres.runs.bulk.job import folder_of
from anyres.runs.bulk.joined import check_out, columns_of
from anyres.runs.bulk.on_ray import Pool, blocks_of, pool_for
from anyres.runs.bulk.options import BulkOptions, Engine
from anyres.runs.bulk.run import predict_into
from anyres.runs.bulk.worker import AnswerRow, Worker
from anyres.runs.opened import ModelSpec
from tests.command import anyres as command
from tests.command import refused
from tests.conftest import TinyRun
from tests.pictures import draw
from tests.runs import SERVER, listening

COLUMNS = ["image", "class", "probability", "size", "error"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures, one of them smaller, and a file that is none."""
    root = tmp_path_factory.mktemp("bulk")
    for i in range(7):
        draw(i % 3, i, 40 if i == 6 else 72).save(root / f"{i}.png")
    (root / "bad.jpg").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def spec(tiny_run: TinyRun) -> ModelSpec:
    return ModelSpec(str(tiny_run.folder))


@pytest.fixture(scope="module")
def unbroken(spec: ModelSpec, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of a job that nothing stopped, in parts of two images."""
    out = tmp_path_factory.mktemp("unbroken") / "a.csv"
    done = predict_into(out, spec, [str(photos)], BulkOptions(batch=2), part=2)
    assert done.line == f"8 images (1 unreadable): written to {out}"
    return out


def names(*words: object) -> list[str]:
    return [image.name for image in wanted_images(read_words(list(map(str, words))))[0]]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_a_row_with_the_answer_that_one_image_gets(
    tiny_run: TinyRun, photos: Path, unbroken: Path
) -> None:
    rows = table(unbroken)
    assert list(rows[0]) == COLUMNS
    assert [row["image"] for row in rows] == [*(str(photos / f"{i}.png") for i in range(7)), str(photos / "bad.jpg")]
    assert rows[-1]["error"].startswith("no JPEG")
    assert rows[-1]["class"] == rows[-1]["probability"] == rows[-1]["size"] == ""
    alone = anyres.predict(tiny_run.folder, [row["image"] for row in rows[:-1]], backend="eager")
    for row, answer in zip(rows, alone, strict=False):
        best = answer.values["classes"][0]
        assert (row["class"], row["size"]) == (best["name"], "48")
        assert float(row["probability"]) == pytest.approx(best["probability"], abs=1e-5)
    assert [path.name for path in unbroken.parent.iterdir()] == ["a.csv"]


def test_threads_answer_side_by_side_as_one_does(spec: ModelSpec, photos: Path) -> None:
    """Two threads that each read and answer, over parts and two sizes; where something fails, it is told."""
    (listed, _), options = wanted_images(read_words([str(photos)])), BulkOptions((Size(24, 24), Size(48, 48)), batch=2)
    parts = [(number, listed[3 * number : 3 * number + 3]) for number in range(3)]
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            worker = Worker(spec, options)
            assert worker.side_by_side == (threads == 2)
            found[threads] = list(worker.answer_parts(iter(parts)))
            if threads == 2:
                worker.predictors.clear()
                with pytest.raises(KeyError):
                    worker.answer(listed)
            worker.close()
    finally:
        torch.set_num_threads(before)
    assert [number for number, _ in found[2]] == [0, 1, 2]
    one, two = ([row for _, rows in found[threads] for row in rows] for threads in (1, 2))
    assert [(row["image"], row["size"], row["error"]) for row in one] == [
        (row["image"], row["size"], row["error"]) for row in two
    ]
    assert {row["size"] for row in two} == {"24", "48", ""}
    for a, b in zip(one, two, strict=True):
        if not a["error"]:
            assert a["answer"]["classes"][0] == pytest.approx(b["answer"]["classes"][0], abs=1e-5)


def test_the_three_forms_say_the_same(tiny_run: TinyRun, photos: Path, unbroken: Path, tmp_path: Path) -> None:
    for ending in ("jsonl", "parquet"):
        out = tmp_path / f"a.{ending}"
        answer = command("predict", tiny_run.folder, photos, "--top", 2, "--batch", 2, "--out", out)
        assert answer.code == 0, answer.err
        assert answer.out == f"8 images (1 unreadable): written to {out}\n"
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows, cells = table(unbroken), pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert list(cells[0]) == COLUMNS
    assert [len(line.get("classes", [])) for line in lines] == [2] * 7 + [0]
    for row, line, cell in zip(rows, lines, cells, strict=True):
        assert all(line[name] == cell[name] for name in ("image", "class", "size", "error"))
        assert {name: "" if cell[name] is None else cell[name] for name in COLUMNS if name != "probability"} == {
            name: row[name] for name in COLUMNS if name != "probability"
        }
        if row["probability"]:
            assert float(row["probability"]) == pytest.approx(line["probability"], abs=1e-6)
            assert cell["probability"] == pytest.approx(line["probability"], abs=1e-6)


def test_lists_tables_and_shards_name_images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").symlink_to(photos)
    (tmp_path / "list.txt").write_text("\ufeffp/0.png\r\n\np/missing.png\n")
    (tmp_path / "table.csv").write_text("path,label\np/1.png,x\n")
    (tmp_path / "lines.jsonl").write_text('{"path": "p/2.png"}\n')
    pq.write_table(pa.table({"path": ["p/3.png"]}), tmp_path / "rows.parquet")
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for name in ("4.png", "bad.jpg"):
            tar.add(photos / name, f"x/{name}")
        tar.add(photos / "0.png", "x/0.cls")
    lists = [tmp_path / name for name in ("list.txt", "table.csv", "lines.jsonl", "rows.parquet")]
    assert names(*lists) == [str(tmp_path / "p" / f"{name}.png") for name in (0, "missing", 1, 2, 3)]
    shard = [f"{tmp_path}/s-0.tar/x/4.png", f"{tmp_path}/s-0.tar/x/bad.jpg"]
    assert names(tmp_path / "s-*.tar") == names(tmp_path / "s-0.tar") == shard
    monkeypatch.chdir(tmp_path)
    piped = read_words(["-", "p/0.png"], lambda: b"p/0.png\0p/5.png\0")
    images, notes = wanted_images(piped)
    assert [image.name for image in images] == ["p/0.png", "p/5.png"]
    assert [image.file for image in images] == [str(tmp_path / "p/0.png"), str(tmp_path / "p/5.png")]
    assert notes == ["1 images are named more than once: answered once"]
    for content, line in (("", "is empty|no image|first line"), ("name\nx\n", "no column 'path'")):
        (tmp_path / "table.csv").write_text(content)
        with pytest.raises(UserError, match=line):
            names(tmp_path / "table.csv")
    (tmp_path / "lines.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"lines\.jsonl:1: no path"):
        names(tmp_path / "lines.jsonl")
    with pytest.raises(UserError, match="no file"):
        names(tmp_path / "none.tar")


def test_members_of_a_shard_are_answered_as_their_files(
    spec: ModelSpec, photos: Path, unbroken: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(7):
            tar.add(photos / f"{i}.png", f"{i}.png")
        tar.add(photos / "bad.jpg", "bad.jpg")
    predict_into(tmp_path / "a.csv", spec, [str(tmp_path / "s.tar")], BulkOptions(batch=2), part=2)
    here = [dict(row, image="") for row in table(tmp_path / "a.csv")]
    assert here == [dict(row, image="") for row in table(unbroken)]


def test_an_image_is_seen_at_the_largest_size_that_it_fills(spec: ModelSpec, photos: Path, tmp_path: Path) -> None:
    predict_into(tmp_path / "a.csv", spec, [str(photos)], BulkOptions((Size(32, 32), Size(48, 48)), batch=3))
    sizes = [row["size"] for row in table(tmp_path / "a.csv")]
    assert sizes == ["48"] * 6 + ["32", ""]


MANY = 240


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same pictures under many names."""
    root = tmp_path_factory.mktemp("many")
    files = sorted(photos.iterdir())
    for i in range(MANY):
        os.link(files[i % len(files)], root / f"{i:03d}{files[i % len(files)].suffix}")
    return root


def answer_slowly(run: str, images: str, out: str) -> None:
    """In a process of its own, to be killed: parts of four images."""
    predict_into(Path(out), ModelSpec(run), [images], BulkOptions(batch=4), part=4)


def answer_share(run: str, images: str, out: str, rank: int) -> None:
    """The same as one of two processes of torchrun."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    answer_slowly(run, images, out)


def parts(out: Path) -> int:
    """How many parts are answered."""
    return len(list(folder_of(out).glob("0*.jsonl")))


@pytest.fixture(scope="module")
def killed(tiny_run: TinyRun, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that was killed by SIGKILL twice, and is not finished."""
    out = tmp_path_factory.mktemp("killed") / "a.csv"
    for _ in range(2):
        before = parts(out)
        process = SERVER.Process(target=answer_slowly, args=(str(tiny_run.folder), str(many), str(out)))
        process.start()
        deadline = time.monotonic() + 60
        while parts(out) < before + 3:
            assert process.is_alive(), "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.join()
    assert 6 <= parts(out) < MANY // 4
    return out


@pytest.fixture
def begun(killed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(folder_of(killed), folder_of(tmp_path / "a.csv"))
    return tmp_path / "a.csv"


@pytest.fixture(scope="module")
def whole(spec: ModelSpec, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of the same job in peace."""
    out = tmp_path_factory.mktemp("whole") / "a.csv"
    predict_into(out, spec, [str(many)], BulkOptions(batch=4), part=4)
    return out


def test_a_killed_job_answers_each_image_once_and_ends_in_the_same_bytes(
    spec: ModelSpec, many: Path, begun: Path, whole: Path, tmp_path: Path
) -> None:
    done = parts(begun)
    with listening() as said:
        predict_into(begun, spec, [str(many)], BulkOptions(batch=4), part=100)
    assert f"continuing {begun}: {4 * done} of {MANY} images are answered" in said
    assert begun.read_bytes() == whole.read_bytes()
    rows = table(begun)
    assert len({row["image"] for row in rows}) == len(rows) == MANY
    assert sum(bool(row["error"]) for row in rows) == MANY // 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_two_processes_share_a_job_which_the_first_one_joins(
    tiny_run: TinyRun, many: Path, whole: Path, tmp_path: Path
) -> None:
    words = (str(tiny_run.folder), str(many), str(tmp_path / "a.csv"))
    processes = [SERVER.Process(target=answer_share, args=(*words, rank)) for rank in (1, 0)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "a.csv").read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_what_would_mix_answers_is_refused(tiny_run: TinyRun, many: Path, begun: Path, tmp_path: Path) -> None:
    words = ("predict", tiny_run.folder, many, "--batch", 4, "--out", begun)
    assert "was begun with options.sizes ['48'], not ['32']" in refused(*words, "--size", 32)
    assert "was begun with options.batch 4, not 8" in refused(*words, "--batch", 8)
    assert "was begun with inputs" in refused(*words, many / "000.png")
    other = command("predict", "restv2_nano", "--weights", "none", many, "--batch", 4, "--size", 48, "--out", begun)
    assert other.code == 2
    assert "was begun with weights " in other.err.splitlines()[-1]
    part = next(folder_of(begun).glob("0*.jsonl"))
    part.write_bytes(part.read_bytes()[:-20])
    assert f"{part} was damaged and is removed" in command(*words).err.splitlines()[-1]
    assert command(*words).code == 0
    assert "is there already: remove it" in refused(*words)
    for out, line in (("a.txt", "must end with .csv, .jsonl, .parquet"), ("a", "must end with"), ("f.csv", "a folder")):
        (tmp_path / "f.csv").mkdir(exist_ok=True)
        assert line in refused("predict", tiny_run.folder, many, "--out", tmp_path / out)
    assert "--out stands alone" in refused(*words, "--csv", tmp_path / "b.csv")
    assert "add --engine ray" in refused(*words, "--address", "x:1")
    assert "go with --out" in refused(*words[:3], "--engine", "ray")
    line = refused("predict", tiny_run.folder, tmp_path / "none", "--out", tmp_path / "c.csv", "--threshold", 0.5)
    assert "--threshold" in line
    assert not folder_of(tmp_path / "c.csv").exists()


def test_a_cascade_says_which_size_answered(tiny_run: TinyRun, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run)
    files = [photos / f"{i}.png" for i in range(7)]
    sure = sorted(each.values["classes"][0]["probability"] for each in anyres.predict(run, files, size=32))
    kept = Cascade(("32", "48"), (1.0, 1.0), ((sure[2] + sure[3]) / 2,), 0.0, 7, 0.0, 0.0, 0.0, (0.5, 0.5), 1.0)
    kept.write(run / "cascade.json")
    answer = command("predict", run, *files, "--cascade", "--out", tmp_path / "a.csv")
    assert answer.code == 0, answer.err
    rows = table(tmp_path / "a.csv")
    assert sorted(row["size"] for row in rows) == ["32"] * 4 + ["48"] * 3
    for row, each in zip(rows, anyres.predict(run, files, cascade=True), strict=True):
        assert row["class"] == each.values["classes"][0]["name"]


def test_labels_stand_in_one_cell_and_places_in_lines_alone(tmp_path: Path) -> None:
    labels = [{"name": "a", "probability": 0.9}, {"name": "b", "probability": 0.6}]
    row = AnswerRow(image="x.png", answer={"labels": labels}, size="32", error="")
    assert columns_of(row, "several")["class"] == ["a", "b"]
    assert columns_of(AnswerRow(image="x", answer={}, size="", error="bad"), "several")["class"] is None
    write_answer_parquet(tmp_path / "a.parquet", [[columns_of(row, "several")]], several=True)
    assert pq.read_table(tmp_path / "a.parquet").to_pylist()[0]["class"] == ["a", "b"]
    check_out(tmp_path / "a.jsonl", "other")
    with pytest.raises(UserError, match=r"use \.jsonl"):
        check_out(tmp_path / "a.csv", "other")


def test_workers_leave_processors_of_a_cluster_free() -> None:
    assert pool_for(16, 0) == Pool(14, 1, 0)
    assert pool_for(16, 4) == Pool(4, 1, 1)
    assert pool_for(3, 0) == pool_for(2, 0) == Pool(1, 1, 0)
    assert pool_for(1, 0) == Pool(1, 0, 0)
    assert pool_for(2, 4).cpus == 0
    assert pool_for(64, 0, most=8).workers == 8


@pytest.mark.filterwarnings("ignore")  # Ray's
def test_ray_continues_a_job_on_two_processors_to_the_same_bytes(
    spec: ModelSpec, many: Path, begun: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of what made Ray jobs lose work or stand still: one block for all, no processor left for the rest of a plan
    that continues, and the names of all images in memory."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    others = set(psutil.Process().children(recursive=True))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    try:
        blocks = blocks_of(range(40))
        assert blocks.num_blocks() == 40
        assert blocks.schema().types == [pa.int64()]
        done = predict_into(begun, spec, [str(many)], BulkOptions(batch=4), Engine("ray"), part=4)
        assert (done.images, done.unreadable) == (MANY, MANY // 8)
        assert begun.read_bytes() == whole.read_bytes()
    finally:
        family = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        _, left = psutil.wait_procs(family, timeout=3)  # some are nobody's children any more
        for each in left:
            each.kill()
