"""How long scoring detections takes: faster-coco-eval's matching, our bootstrap and tables, on drawn boxes.

    python benchmarks/coco_speed.py --images 5000 --boxes 100

Seconds of wall time and of CPU for each part. Objects are 7 a picture of 80 classes, as COCO has them; one box for each
object lies near it, the others anywhere. `--no-draws` leaves the interval out.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from anyres.evaluation.coco import CocoScores, Detections, Truth
from anyres.flow import Size

T = TypeVar("T")
SIZE = Size(480, 640)


def drawn(images: int, boxes: int, objects: int, classes: int) -> CocoScores:
    """Pictures with objects, and boxes found on them."""
    rng = np.random.default_rng(0)

    def some(n: int) -> np.ndarray:
        corner = rng.uniform(0, (600, 440), (n, 2))
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (n, 2)))
        return np.concatenate([corner, np.minimum(corner + sides, (640, 480))], 1).astype(np.float32)

    truths, found = [], []
    for _ in range(images):
        there, kinds = some(objects), rng.integers(0, classes, objects)
        near = there + rng.normal(0, 2, there.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        said = np.concatenate([near, some(boxes)])[:boxes]
        scores = np.sort(rng.random(boxes).astype(np.float32))[::-1].copy()
        said_kinds = np.concatenate([kinds, rng.integers(0, classes, boxes)])[:boxes]
        areas = (there[:, 2:] - there[:, :2]).prod(1).astype(np.float64)
        truths.append(Truth(there, kinds, np.zeros(objects, bool), areas, None, SIZE))
        found.append(Detections(said, scores, said_kinds))
    return CocoScores(np.arange(images), tuple(truths), tuple(found), classes)


def timed(name: str, what: Callable[[], T]) -> T:
    """Run ``what`` and print its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = what()
    print(f"{name:28} {time.perf_counter() - wall:8.1f} {time.process_time() - cpu:8.1f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--objects", type=int, default=7)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--draws", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    print(f"{given.images} images x {given.boxes} boxes, {given.classes} classes")
    print(f"{'':28} {'seconds':>8} {'of CPU':>8}")
    scores = drawn(given.images, given.boxes, given.objects, given.classes)
    start = time.perf_counter()
    matched = timed("matching and accumulation", lambda: scores.boxes)
    if given.draws:
        timed("interval of 200 draws", matched.interval)
    timed("tables of classes, pictures", lambda: (scores.rows([str(c) for c in range(given.classes)]), scores.facts))
    print(f"{'all':28} {time.perf_counter() - start:8.1f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"box AP {100 * matched.ap():.2f} %; most memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
