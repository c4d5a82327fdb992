"""The longest silence of each verb on a terminal, imports included: each on tiny images in a pseudo-terminal.

    python benchmarks/silence.py [--forked] [VERB ...]

``silence``: in seconds, less what the process waited for a processor meanwhile; ``wall``: with that. ``--forked``:
from a server that has imported everything. Writes benchmarks/results/silence.json.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
VERBS = {
    "train": "train restv2_nano --data {data} --out {run} views.sizes=[48,32] data.batch_size=8 train.epochs=1 "
    "evaluate.sizes=[32,48]",
    "eval": "eval {run} --sizes 32,48",
    "curve": "curve {run} --sizes 32,48",
    "probe": "probe {run} --data {data} --size 32",
    "cascade": "cascade {run} --sizes 32,48 --data {more}",
    "predict": "predict {run} {data}",
    "predict --backend auto": "predict {run} {data} --backend auto",
    "bench data": "bench data {data} --seconds 0.5",
    "bench model": "bench model restv2_nano --weights none --sizes 32 --batches 1 --rounds 1 --seconds 0.1",
    "check": "check {data}",
    "export": "export {run} --out {tmp}/mine.onnx",
    "demo": "demo --epochs 1 --out {tmp}/demo",
    "doctor": "doctor",
}


def main() -> None:
    from tests.pictures import make_folder
    from tests.terminal import watch

    words = sys.argv[1:]
    fresh, asked = "--forked" not in words, [word for word in words if word != "--forked"]
    chosen = [verb for verb in VERBS if not asked or verb in ("train", *asked)]
    into = Path(__file__).with_name("results") / "silence.json"
    rows = json.loads(into.read_text())["verbs"] if into.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        data, more = make_folder(tmp / "shapes", per_class=14), make_folder(tmp / "more", per_class=14)
        for verb in chosen:
            words = VERBS[verb].format(data=data, more=more, run=tmp / "run", tmp=tmp).split()
            seen = watch(words, tmp, fresh=fresh)
            rows[verb] = {
                "exit": seen.code,
                "seconds": round(seen.seconds, 1),
                "silence": round(seen.silence, 2),
                "wall": round(seen.wall, 2),
                "imports": fresh,
                "after": re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", " ", seen.after).strip()[-40:],
            }
            print(verb, rows[verb], flush=True)
            if seen.code:
                print(seen.text[-1500:], flush=True)
    result = {"what": __doc__, "load": os.getloadavg()[0], "verbs": rows}
    into.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
