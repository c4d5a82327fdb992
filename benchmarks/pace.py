"""Direction and speed of clips with and without attention over time, at several sizes: the table of docs/video.md.

    python benchmarks/pace.py --seeds 0 1 2 --out runs/pace [KEY=VALUE ...]

Trains the recipe video/pace with head.kind=timesformer and =average, each seed in a folder of its own that continues
where it was killed, and scores both on the held-out quarter. One answer has both parts, as "forward x4"; each part is
counted by itself. Intervals are Wilson's over clips, of all seeds together.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import anyres
from anyres.evaluation.metrics import Scores, wilson
from anyres.runs.inputs import evaluated_sizes

PARTS = ("direction", "speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pace"))
    parser.add_argument("--kinds", nargs="+", default=["timesformer", "average"])
    given = parser.parse_args()
    for kind in given.kinds:
        right: dict[tuple[str, str], list[np.ndarray]] = {}
        began = time.process_time()
        for seed in given.seeds:
            values = [f"head.kind={kind}", f"train.seed={seed}", *given.values]
            run = anyres.train("video/pace", values, out=given.out / f"{kind}-{seed}", report=False).load()
            for size, quality in run.quality(run.images(), evaluated_sizes(run.recipe)).items():
                assert isinstance(quality.scores, Scores)
                for part, found in zip(PARTS, parts_right(quality.scores, run.classes), strict=True):
                    right.setdefault((str(size), part), []).append(found)
        spent = (time.process_time() - began) / len(given.seeds)
        print(f"{kind}: {spent:.0f} CPU seconds a run, {len(given.seeds)} runs")
        for (side, part), each in right.items():
            every = np.concatenate(each)
            low, high = wilson(int(every.sum()), len(every))
            print(f"  {side:>6} {part:<10} {100 * every.mean():5.1f} %  {100 * low:.1f} to {100 * high:.1f}")


def parts_right(scores: Scores, classes: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Of each clip, whether the direction was right, and whether the speed was."""
    named = np.array([name.split() for name in classes])  # (classes, 2)
    return tuple((named[scores.predicted] == named[scores.target]).T)


if __name__ == "__main__":
    main()
