"""Files that this package wrote are read as if anyone had: regular files only, bounded, by a schema.

Situations: garbage, wrong types, deep nesting, huge numbers, not finite numbers, YAML aliases that grow, keys twice, or
a named pipe, as recipe.yaml, run.json, model.safetensors and its metadata, cascade.json, backends.json.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyres.config import Damaged, UserError
from anyres.deploy.cascade import Cascade
from anyres.deploy.engines.timing_cache import BackendTiming, TimingCache
from anyres.models.state_files import read_state
from anyres.models.weights import save_weights
from anyres.recipe import read_recipe
from anyres.runs.opened import load
from anyres.runs.report import facts_of
from anyres.storage import read_json
from tests.conftest import TinyRun

GARBAGE = {
    "empty": b"",
    "no JSON": b"{",
    "binary": bytes(range(256)),
    "null": b"null",
    "number": b"3",
    "list": b"[1, 2]",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "wrong types": b'{"notes": 3, "classes": {"a": 1}, "sizes": null, "mean": "x", "pixels": [], "key": [3]}',
    "long number": b'{"pixels": ' + b"9" * 5000 + b', "classes": 1, "sizes": 1, "key": [{"ms": 1}]}',
}
each_garbage = pytest.mark.parametrize("content", GARBAGE.values(), ids=list(GARBAGE))


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1500
    assert all(word in text for word in words), text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (BOMB, "alias"),
        ("model: {name: restv2_nano}\nmodel: {name: resmlp_nano}", "twice"),
        ("[" * 3_000, "deep"),
        ("model: {name: restv2_nano}\ntrain: {seed: " + "9" * 5000 + "}", "digits"),
        ("data: {source: 2024-13-45}", "month"),
        ("x" * (2**20 + 1), "larger"),
        ("!!python/object/apply:os.system ['true']", "tag"),
        ("model: {? {a: b} : c}", "key"),
        ("\0", "character"),
        ("- 1", "mapping"),
        ("", "mapping"),
    ],
)
def test_a_recipe_that_is_none_is_refused_at_once(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_recipe(path)
    one_line(error, str(path), word)


@each_garbage
def test_json_is_what_its_schema_says_or_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(Damaged) as error:
        read_json(path, dict[str, list[BackendTiming]])
    one_line(error, str(path))


@pytest.mark.parametrize("content", [*GARBAGE.values(), None], ids=[*GARBAGE, "missing"])
def test_a_run_without_its_facts_is_used_all_the_same(tiny_run: TinyRun, tmp_path: Path, content: bytes | None) -> None:
    trained = replace(load(tiny_run.folder), folder=tmp_path)
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    assert [word in trained.facts["notes"][0] for word in ("run.json", "is lost")] == [True, True]
    assert dict(pair for group in facts_of(trained) for pair in group.facts)["epochs"] == "2"


def test_facts_are_read_as_they_were_written(tiny_run: TinyRun) -> None:
    written = json.loads((tiny_run.folder / "run.json").read_text())
    assert written["steps"] == 8
    assert load(tiny_run.folder).facts == written


@pytest.mark.parametrize(
    "about",
    ["", "{", "3", "[]", '{"classes": 3}', '{"classes": [1, 2, 3]}', '{"task": 5}', '{"mean": "x"}', "[" * 100_000],
)
def test_weights_that_say_garbage_of_themselves_are_refused(run: Path, about: str) -> None:
    path = run / "model.safetensors"
    save_file(load_file(path), path, metadata={"anyres": about})
    with pytest.raises(UserError) as error:
        load(run)
    one_line(error, str(path), "damaged")
    with pytest.raises(UserError) as error:
        load("restv2_nano", str(path))
    one_line(error, str(path), "damaged")


CASCADE = Cascade(
    sizes=("32", "48"),
    temperatures=(1.0, 1.5),
    thresholds=(0.9,),
    max_loss=0.5,
    images=20,
    expected_loss=0.1,
    top1=90.0,
    lost=0.0,
    shares=(0.5, 0.5),
    speedup=1.4,
)


def test_a_cascade_is_read_as_it_was_written(tmp_path: Path) -> None:
    CASCADE.write(tmp_path / "cascade.json")
    assert Cascade.read(tmp_path / "cascade.json") == CASCADE


@pytest.mark.parametrize(
    "changes",
    [
        {"temperatures": [0, 1.0]},
        {"temperatures": [float("nan"), 1.0]},
        {"temperatures": [1.0]},
        {"thresholds": []},
        {"thresholds": [-1.0]},
        {"sizes": ["32", "large"]},
        {"sizes": ["32", "99999999999"]},
        {"sizes": 3},
        {"speedup": "fast"},
    ],
)
def test_a_cascade_beyond_its_ranges_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "cascade.json"
    path.write_text(json.dumps(asdict(CASCADE) | changes))
    with pytest.raises(UserError) as error:
        Cascade.read(path)
    one_line(error, str(path), "`anyres cascade")


@each_garbage
def test_a_damaged_cache_of_timings_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    path = tmp_path / "backends.json"
    cache = TimingCache({"key": 1})
    path.write_bytes(content)
    assert cache.read() == ()
    cache.write([BackendTiming("eager:fp32", 2.0, 0.0)])
    assert cache.read() == (BackendTiming("eager:fp32", 2.0, 0.0),)
    path.write_text(path.read_text().replace("2.0", "NaN"))
    assert cache.read() == ()


@pytest.mark.parametrize("name", ["recipe.yaml", "model.safetensors", "run.json", "cascade.json", "backends.json"])
def test_a_named_pipe_is_not_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    if name == "recipe.yaml":
        with pytest.raises(UserError, match="named pipe"):
            read_recipe(run / name)
    elif name == "model.safetensors":
        with pytest.raises(UserError, match="named pipe"):
            load("restv2_nano", str(run / name))
    elif name == "run.json":
        assert "named pipe" in load(run).facts["notes"][0]
    elif name == "cascade.json":
        with pytest.raises(UserError, match="named pipe"):
            Cascade.read(run / name)
    else:
        monkeypatch.setenv("ANYRES_CACHE", str(run))
        assert TimingCache({"key": 1}).read() == ()


def test_a_changed_bit_of_weights_never_answers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"scale": torch.tensor(1.5), "matrix": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}
    save_weights(tensors, path, {"anyres": '{"model": "restv2_nano", "classes": ["cat", "dog"]}'})
    whole = path.read_bytes()
    found = read_state(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    read = []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            changed = read_state(path)
        except UserError:
            continue
        if changed.keys() != tensors.keys() or not all(torch.equal(changed[key], tensors[key]) for key in tensors):
            read.append((at, whole[at : at + 1]))
    assert not read
