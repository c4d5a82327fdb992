"""`anyres serve` under load: an open-loop client at 0.5, 1, 2 and 4 x the capacity of the best size alone.

    python benchmarks/serve_load.py [--data DATA] [--split SPLIT] [--seconds N] [--deadline-ms N] -- RUN [--backend B]

RUN: a folder of `anyres train`, best with a `curve.csv`; the images are its held-out ones, or those of --data. Requests
come at random times at a fixed rate, whether or not answers do, each on a connection of its own. In turn, at each rate:
every request at the best size with the deadline, and the size left to the server with the deadline. Of each: p50 and
p99 of the answers, the share of 503, of requests and of answers in time, accuracy, and whether an answer was lost, or
differs from what the idle server says of the same image at the same size. Then so many requests of changing sizes, and
what the server's memory does. Client and server share the machine. Writes benchmarks/results/serve_load.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "serve_load.json"
RATES = (0.5, 1.0, 2.0, 4.0)
MOST_IMAGES = 500
CHECKED = 300
"""Answers of each load that are compared with the idle server's."""
NEAR = 1e-3
"""Largest difference of a probability that is no wrong answer."""


@dataclass(frozen=True)
class Photo:
    """An encoded image and its class."""

    content: bytes
    label: int


@dataclass
class Reply:
    """What came of one request."""

    photo: int
    status: int  # 0: the connection broke
    ms: float
    answer: dict[str, Any] = field(default_factory=dict)


async def ask(port: int, photo: Photo, number: int, query: str) -> Reply:
    """One request on a connection of its own."""
    start = time.perf_counter()
    head = (
        f"POST /predict?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(photo.content)}\r\nConnection: close\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head.encode() + photo.content)
            await writer.drain()
            said = await reader.read()
        finally:
            writer.close()
        top, _, body = said.partition(b"\r\n\r\n")
        return Reply(number, int(top.split()[1]), 1000 * (time.perf_counter() - start), json.loads(body))
    except (OSError, ValueError, IndexError):
        return Reply(number, 0, 1000 * (time.perf_counter() - start))


async def closed_loop(port: int, photos: Sequence[Photo], queries: Sequence[str], clients: int) -> list[Reply]:
    """Each client asks again when it has its answer, until every query was asked."""
    left, found = iter(enumerate(queries)), []

    async def client() -> None:
        for number, query in left:
            found.append(await ask(port, photos[number % len(photos)], number % len(photos), query))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def open_loop(port: int, photos: Sequence[Photo], query: str, rate: float, seconds: float) -> list[Reply]:
    """Requests at random times, so many a second."""
    rng, loop = random.Random(0), asyncio.get_running_loop()
    asked, when = [], loop.time()
    end = when + seconds
    while (when := when + rng.expovariate(rate)) < end:
        await asyncio.sleep(max(when - loop.time(), 0))
        number = rng.randrange(len(photos))
        asked.append(asyncio.create_task(ask(port, photos[number], number, query)))
    return list(await asyncio.gather(*asked))


async def wrong_answers(port: int, photos: Sequence[Photo], replies: Sequence[Reply]) -> int:
    """How many of some answers differ from those of the idle server."""
    answered = [reply for reply in replies if reply.status == 200]
    some = random.Random(1).sample(answered, min(CHECKED, len(answered)))
    wrong = 0
    for reply in some:
        idle = await ask(port, photos[reply.photo], reply.photo, f"size={reply.answer['size']}&top=1")
        said, known = reply.answer["predictions"][0], idle.answer["predictions"][0]
        wrong += abs(said["probability"] - known["probability"]) > NEAR
    return wrong


def described(photos: Sequence[Photo], replies: Sequence[Reply], deadline: float, seconds: float) -> dict[str, Any]:
    """The numbers of one load."""
    good = [reply for reply in replies if reply.status == 200]
    times = sorted(reply.ms for reply in good)
    right = sum(reply.answer["predictions"][0]["label"] == photos[reply.photo].label for reply in good)
    in_time = sum(ms <= deadline for ms in times)
    statuses = Counter(reply.status for reply in replies)
    return {
        "sent": len(replies),
        "rate": round(len(replies) / seconds, 1),
        "answered": len(good),
        "503": round(statuses[503] / len(replies), 4),
        "504": round(statuses[504] / len(replies), 4),
        "lost": statuses[0] + sum(count for status, count in statuses.items() if status not in (0, 200, 503, 504)),
        "p50 ms": round(statistics.median(times), 1) if times else None,
        "p99 ms": round(times[int(0.99 * (len(times) - 1))], 1) if times else None,
        "in time, of answers": round(in_time / max(len(good), 1), 4),
        "in time, of requests": round(in_time / len(replies), 4),
        "top-1 of answers": round(right / max(len(good), 1), 4),
        "sizes": dict(Counter(reply.answer["size"] for reply in good).most_common()),
        "reasons": dict(Counter(reply.answer["reason"] for reply in good).most_common()),
    }


@contextmanager
def server(run: Path, options: Sequence[str]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`anyres serve` on a free port; its port and process."""
    command = [sys.executable, "-m", "anyres", "serve", str(run), "--port", "0", "--drain-seconds", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(2)]
        print(*said, sep="", end="")
        yield int(said[1].split("http://127.0.0.1:")[1].split()[0]), process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def resident_mib(process: subprocess.Popen[str]) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def held_out(run: Path, data: str | None, split: str | None) -> list[Photo]:
    """The run's held-out images, encoded."""
    from anyres.runs.opened import DataSpec, open_run

    images = open_run(run).images(DataSpec(data, split))
    found = []
    for record in images.source.records[:: max(1, len(images.source.records) // MOST_IMAGES)]:
        source = record.source
        assert isinstance(record.target, int)
        if isinstance(source, Path):
            found.append(Photo(source.read_bytes(), record.target))
        else:
            found.append(Photo(source if isinstance(source, bytes) else source.read(), record.target))
    return found


async def measure(options: argparse.Namespace, photos: Sequence[Photo]) -> dict[str, Any]:
    found: dict[str, Any] = {"loads": []}
    with server(options.run, options.serve) as (port, process):
        about = json.loads(await _get(port, "/about"))
        best = f"size={about['usual']}"
        await closed_loop(port, photos, [best] * 50, 8)
        start = time.perf_counter()
        done = await closed_loop(port, photos, [best] * options.warm, 16)
        capacity = sum(reply.status == 200 for reply in done) / (time.perf_counter() - start)
        found |= {"best": about["usual"], "sizes": [row["size"] for row in about["sizes"]], "engine": about["engine"]}
        found["capacity"] = round(capacity, 1)
        print(f"{capacity:.1f} images/s at {about['usual']} px alone")
        for at in RATES:
            for name, size in (("fixed", best), ("chosen", "size=auto")):
                query = f"{size}&deadline_ms={options.deadline_ms:g}&top=1"
                replies = await open_loop(port, photos, query, at * capacity, options.seconds)
                row = described(photos, replies, options.deadline_ms, options.seconds)
                row |= {"load": at, "size": name, "wrong": await wrong_answers(port, photos, replies)}
                found["loads"].append(row)
                print(json.dumps(row))
    with server(options.run, options.serve) as (port, process):
        rng = random.Random(0)
        queries = [f"size={rng.randrange(32, 513)}&top=1" for _ in range(options.requests)]
        warm = max(1, len(queries) // 20)
        await closed_loop(port, photos, queries[:warm], 4)
        before = resident_mib(process)
        replies = await closed_loop(port, photos, queries, 4)
        after = resident_mib(process)
        statuses = Counter(reply.status for reply in replies)
        found["memory"] = {
            "requests": len(queries),
            "statuses": dict(statuses),
            "MiB before": round(before, 1),
            "MiB after": round(after, 1),
            "growth": round(after / before - 1, 4),
        }
        print(json.dumps(found["memory"]))
    return found


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    said = await reader.read()
    writer.close()
    return said.partition(b"\r\n\r\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--split")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--warm", type=int, default=400, help="requests by which the capacity is measured")
    parser.add_argument("--requests", type=int, default=10_000, help="of changing sizes, for the memory")
    parser.add_argument("serve", nargs="*", help="options of `anyres serve`, after --")
    options = parser.parse_args()
    photos = held_out(options.run, options.data, options.split)
    print(
        f"{len(photos)} held-out images, {sum(len(photo.content) for photo in photos) / len(photos) / 1e3:.0f} kB each"
    )
    found = asyncio.run(measure(options, photos))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {OUT}")


if __name__ == "__main__":
    main()
