"""`anyres predict --out` at length: killed and continued, on one machine and on a Ray cluster, and how fast it is.

    python benchmarks/bulk_predict.py [kills] [rate] [ray] [--images 5000]

The script draws small JPEGs, 0.2 % of them broken, and asks restv2_nano as it is initialized, at 64 px.
``kills``: one job in peace; another is killed by SIGKILL three times, at random moments, and given again: each image
once, and the same bytes? ``rate``: the job against a plain loop of ``anyres.Predictor`` over the same files (those that
can be read) with the same batch, both with opening the model and writing CSV, in turn, three times each in one
process. ``ray``: a cluster of two nodes on this machine; the driver is killed once, and then the second node while it
works. What a cluster leaves behind is ended by its process ids. Writes benchmarks/results/bulk_predict.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "bulk_predict.json"
MODEL, SIDE, SIZE, BATCH = "restv2_nano", 96, "64", 32
KILLS, ROUNDS = 3, 3
BROKEN = 500  # one image in so many
PATIENCE_S = 900


def draw_images(folder: Path, count: int) -> None:
    """Different JPEGs, about 3 kB each; every so many one is cut short."""
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6 + i % 3, 3), dtype=np.uint8))
        path = folder / f"{i % 50:02d}" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((SIDE + i % 40, SIDE), Image.Resampling.BICUBIC).save(path, quality=85)
        if i % BROKEN == BROKEN - 1:
            path.write_bytes(path.read_bytes()[:300])


def command(images: Path, out: Path, *more: str) -> list[str]:
    """`anyres predict` as a user gives it."""
    words = ["predict", MODEL, str(images), "--weights", "none", "--size", SIZE, "--batch", str(BATCH)]
    return [sys.executable, "-m", "anyres", *words, "--out", str(out), *more]


def finish(words: Sequence[str]) -> float:
    """Run to the end; seconds."""
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip())
    return time.perf_counter() - start


def parts(out: Path) -> int:
    """How many parts a job has answered."""
    return len([path for path in out.with_name(f".{out.name}.parts").glob("*.jsonl") if path.stem.isdecimal()])


def kill_at(words: Sequence[str], out: Path, wanted: int) -> int:
    """Start it, and kill it when so many parts are there; how many there were."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + PATIENCE_S
        while parts(out) < wanted:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "it stands still"
            time.sleep(0.002)
        time.sleep(random.random() * 0.3)  # anywhere within a part
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    end_all(family)
    return parts(out)


def end_all(processes: Sequence[psutil.Process]) -> None:
    """End what is left of some processes."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def compared(out: Path, whole: Path, images: int) -> dict[str, Any]:
    """What a job's answers are, beside those of one in peace."""
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [sorted(path.read_bytes().splitlines()) for path in (out, whole)]
    return {
        "rows": len(rows),
        "distinct": len({row["image"] for row in rows}),
        "images": images,
        "unreadable": sum(bool(row["error"]) for row in rows),
        "same sorted bytes": lines[0] == lines[1],
        "same bytes": out.read_bytes() == whole.read_bytes(),
    }


def kills(images: Path, work: Path, count: int) -> dict[str, Any]:
    """Killed at random moments, and given again."""
    whole, out = work / "whole.csv", work / "killed.csv"
    seconds = finish(command(images, whole))
    total = -(-count // 256)
    at = sorted(random.sample(range(1, total - 1), KILLS))
    reached = [kill_at(command(images, out), out, wanted) for wanted in at]
    finish(command(images, out))
    return {"seconds in peace": round(seconds, 1), "parts": total, "killed at parts": reached} | compared(
        out, whole, count
    )


def rate(images: Path, work: Path, count: int) -> dict[str, Any]:
    """The job against a plain loop, in turn."""
    import anyres
    from anyres.flow import Size
    from anyres.runs.bulk.options import BulkOptions
    from anyres.runs.bulk.run import predict_into
    from anyres.runs.opened import ModelSpec

    files = [path for path in sorted(images.rglob("*.jpg")) if int(path.stem) % BROKEN != BROKEN - 1][:count]
    listed = work / "readable.txt"
    listed.write_text("".join(f"{path}\n" for path in files))
    spec, options = ModelSpec(MODEL, "none"), BulkOptions((Size.parse(SIZE),), batch=BATCH)

    def plain(number: int) -> None:
        predictor = anyres.Predictor(spec, "eager", SIZE, batch=BATCH)
        with (work / f"plain-{number}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            for i in range(0, len(files), BATCH):
                some = files[i : i + BATCH]
                for path, found in zip(some, predictor.predict(some), strict=True):
                    rows.writerow((path, found[0].name, found[0].probability))

    def bulk(number: int) -> None:
        (work / f"bulk-{number}.csv").unlink(missing_ok=True)
        predict_into(work / f"bulk-{number}.csv", spec, [str(listed)], options)

    seconds: dict[str, list[float]] = {"plain loop": [], "predict --out": []}
    for number in range(ROUNDS):
        for name, run in (("plain loop", plain), ("predict --out", bulk)):
            start = time.perf_counter()
            run(number)
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {len(files) / seconds[name][-1]:.1f} images/s", flush=True)
    rates = {name: [round(len(files) / each, 1) for each in times] for name, times in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["plain loop"], seconds["predict --out"], strict=True)]
    return {
        "images": len(files),
        "images/s": rates,
        "ratio by round": [round(r, 3) for r in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


@contextmanager
def cluster() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A Ray cluster of two nodes in a process of its own: its address, and the process, whose stdin takes ``kill``."""
    words = [sys.executable, __file__, "--cluster"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    family: list[psutil.Process] = []
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "the cluster did not start"
            found = re.match(r"address (\S+)", line)
        family = psutil.Process(process.pid).children(recursive=True)
        yield found[1], process
    finally:
        with suppress(OSError):
            family += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        end_all(family)


def serve_cluster() -> None:
    """The process of a cluster: two nodes of two processors each; the line ``kill`` kills the second."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    args = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**28}
    made = Cluster(initialize_head=True, head_node_args=args)
    second = made.add_node(num_cpus=2, object_store_memory=2**28)
    made.wait_for_nodes()
    print(f"address {made.address}", flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            made.remove_node(second, allow_graceful=False)
            print("killed", flush=True)


def on_ray(images: Path, work: Path, count: int) -> dict[str, Any]:
    """The driver killed once, then a node."""
    whole, out = work / "whole.csv", work / "ray.csv"
    if not whole.exists():
        finish(command(images, whole))
    total = -(-count // 256)
    with cluster() as (address, process):
        words = command(images, out, "--engine", "ray", "--address", address, "--workers", "2")
        driver = kill_at(words, out, max(2, total // 5))
        start = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            wanted, end = parts(out) + max(2, total // 5), time.monotonic() + PATIENCE_S
            while parts(out) < wanted:
                assert second.poll() is None, second.communicate()[1]
                assert time.monotonic() < end, "it stands still"
                time.sleep(0.01)
            assert process.stdin is not None
            print("kill", file=process.stdin, flush=True)
            node = parts(out)
            said, errors = second.communicate(timeout=PATIENCE_S)
            assert second.returncode == 0, errors
            print(said.strip(), errors.strip(), sep="\n")
        seconds = time.perf_counter() - start
    facts = {"parts": total, "driver killed at part": driver, "node killed at part": node}
    return facts | {"seconds of the last run": round(seconds, 1)} | compared(out, whole, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help="kills, rate, ray; all if none is named")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--timed", type=int, help="images of the rate; all if not given")
    parser.add_argument("--work", type=Path, help="a folder to keep images and answers in")
    parser.add_argument("--cluster", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster:
        serve_cluster()
        return
    random.seed(0)
    wanted = options.what or ["kills", "rate", "ray"]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        images = work / "images"
        if not images.is_dir():
            draw_images(images, options.images)
        found = json.loads(OUT.read_text()) if OUT.exists() else {}
        for what in wanted:
            if what == "kills":
                found[what] = kills(images, work, options.images)
            elif what == "rate":
                found[what] = rate(images, work, options.timed or options.images)
            else:
                found[what] = on_ray(images, work, options.images)
            print(what, json.dumps(found[what], indent=1))
            OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {OUT}")


if __name__ == "__main__":
    main()
