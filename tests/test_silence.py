"""No verb is silent for more than three seconds on a terminal. The slow ones: ``python benchmarks/silence.py``."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.conftest import TinyRun
from tests.terminal import SILENT_S, watch

VERBS = {
    "train": "train restv2_nano --data {data} --out {tmp}/run views.sizes=[48,32] data.batch_size=8 train.epochs=1",
    "eval": "eval {run} --sizes 32,48",
    "curve": "curve {run} --sizes 32,48 --out {tmp}",
    "probe": "probe {run} --data {data} --size 32 --epochs 2",
    "cascade": "cascade {run} --sizes 32,48 --backend eager --data {more}",
    "predict": "predict {run} {data} --csv {tmp}/answers.csv",
    "bench data": "bench data {data} --seconds 0.5",
    "check": "check {data}",
    "export": "export {run} --to safetensors --out {tmp}/mine.safetensors",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_terminal_is_never_silent_for_long(
    verb: str, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("silence")
    more = shutil.copytree(tiny_run.data, tmp / "more")
    words = VERBS[verb].format(data=tiny_run.data, run=tiny_run.folder, more=more, tmp=tmp).split()
    seen = watch(words, tmp)
    assert seen.code == 0, seen.text
    assert seen.silence < SILENT_S, (seen.silence, seen.wall, seen.after)
    left = re.sub(r"[^\n]*\r\x1b\[K", "", seen.text)
    assert "working ..." not in left, left
