"""Three separately augmented views of 500 x 375 JPEGs: anyres' loader against Pillow, torchvision and timm.

    python benchmarks/loader.py                                  # three minutes; writes benchmarks/results/loader.json
    python benchmarks/loader.py --seconds 2 --rounds 2 --out /tmp/loader.json

Views of 224, 160 and 128 pixels with crop, flip, RandAugment m9-mstd0.5-inc1 and boxes of noise (0.25), on two worker
processes. The peer decodes each image once with Pillow and hands it to three of ``timm.data.create_transform``, then
torch's DataLoader collates. Two comparisons, each of like with like, in turns (A B A B), workers' start left out:

* ``floats``: what the model is fed, normalised and with its boxes. Peer: in the workers; ours: in the main process.
* ``bytes``: uint8 batches for a device to normalize. Peer: ``use_prefetcher=True``, as timm's own training does.

``dct``: the same on 1000 x 750 JPEGs, with ``data.dct=true`` in ours. The photographs are the built-in set's. timm asks
Pillow to keep 0 bits in 2 % of its posterisings, which Pillow 13 refuses: the peer makes these pictures black, as ours.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import PIL
import timm
import torch
import torchvision
from PIL import Image, ImageOps
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, RandomSampler

from anyres.data.augment_config import AugmentConfig
from anyres.data.builtin import load
from anyres.data.cache import DecodedImages
from anyres.data.erasing import erase
from anyres.data.loader import LoaderOptions, Steps, train_batches
from anyres.data.loader_profile import measure_loading
from anyres.data.mix import normalize
from anyres.data.sources import open_source
from anyres.data.targets import reader_of
from anyres.data.views_config import ViewsConfig

SIZES = (224, 160, 128)
BATCH, WORKERS, WARM_UP = 32, 2, 4  # images, processes, batches that do not count
RAND_AUGMENT, ERASING = "rand-m9-mstd0.5-inc1", 0.25
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUT = Path(__file__).parent / "results" / "loader.json"


class PeerImages(Dataset):
    """One decoding by Pillow, then one of timm's transforms for each view."""

    def __init__(self, paths: list[Path], *, floats: bool) -> None:
        self.paths = paths
        made = functools.partial(
            create_transform,
            is_training=True,
            interpolation="bicubic",
            auto_augment=RAND_AUGMENT,
            re_prob=ERASING,
            re_mode="pixel",
            use_prefetcher=not floats,  # then bytes; normalising and erasing are the prefetcher's
        )
        self.transforms = [made(size) for size in SIZES]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[object]:
        image = Image.open(self.paths[i]).convert("RGB")
        return [transform(image) for transform in self.transforms]


def _blacken() -> None:
    """Pillow's posterize as it was before 13: 0 bits make a picture black."""
    real = ImageOps.posterize
    ImageOps.posterize = lambda image, bits: real(image, bits) if bits else Image.new("RGB", image.size)


def peer(folder: Path, *, floats: bool) -> Generator[int]:
    """Sizes of batches, for ever."""
    data = PeerImages(sorted(folder.rglob("*.jpg")), floats=floats)
    sampler = RandomSampler(data, replacement=True, num_samples=10**7)
    for views in DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS, persistent_workers=True):
        assert [v.shape[-1] for v in views] == [*SIZES]
        assert views[0].dtype == (torch.float32 if floats else torch.uint8)
        yield len(views[0])


def ours(folder: Path, *, floats: bool, dct: bool = False) -> Generator[int]:
    """Sizes of batches, for ever."""
    source = open_source(str(folder), "trainval")
    images = DecodedImages(source, None, 0.0, dct_side=max(SIZES) if dct else None, progress=False)
    how = AugmentConfig(rand_augment=RAND_AUGMENT, erasing=ERASING)
    steps, options = Steps(BATCH, seed=0, start=0, stop=10**6), LoaderOptions(WORKERS, reuse=True)
    views, reader = ViewsConfig(sizes=SIZES), reader_of(source)
    for batch in train_batches(images, source.records, reader, how, views, steps, options=options):
        if floats:
            batch = erase(normalize(batch, MEAN, STD, torch.device("cpu")), ERASING, 0, 0)  # noqa: PLW2901
        assert [v.shape[-1] for v in batch.views] == [*SIZES]
        assert batch.views[0].dtype == (torch.float32 if floats else torch.uint8)
        yield len(batch.views[0])


def images_per_s(start: Callable[[], Generator[int]], seconds: float) -> float:
    """Of a fresh loader, after its first batches."""
    batches = start()
    for _ in itertools.islice(batches, WARM_UP):
        pass
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        count += next(batches)
    batches.close()
    return count / spent


def compare(a: Callable[[], Generator[int]], b: Callable[[], Generator[int]], seconds: float, rounds: int) -> dict:
    """Images/s of peer and ours in turns; the ratio of each round, their median and spread."""
    pairs = [(images_per_s(a, seconds), images_per_s(b, seconds)) for _ in range(rounds)]
    ratios = sorted(second / first for first, second in pairs)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(ratios[0], 2),
        "ratio_max": round(ratios[-1], 2),
        "peer_images_per_s": round(statistics.median(first for first, _ in pairs)),
        "anyres_images_per_s": round(statistics.median(second for _, second in pairs)),
        "rounds": [[round(first), round(second)] for first, second in pairs],
    }


def stages(folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds for an image on one processor: of our stages, and of decoding alone, the floor of any loader."""
    source = open_source(str(folder), "trainval")
    images = DecodedImages(source, None, 0.0, progress=False)
    how = AugmentConfig(rand_augment=RAND_AUGMENT)
    measured = measure_loading(images, how, ViewsConfig(sizes=SIZES), batch_size=BATCH, workers=0, seconds=3.0)
    files = [record.source.read_bytes() for record in source.records[:100] if isinstance(record.source, Path)]
    decoders = {
        "pillow": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
        "torchvision": lambda data: torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)),
    }
    floor = {}
    for name, decode in decoders.items():
        start = time.thread_time()
        for data in files:
            decode(data)
        floor[name] = round(1e3 * (time.thread_time() - start) / len(files), 3)
    return {"stages_ms": {k: round(v, 3) for k, v in measured.milliseconds.items()}, "decode_alone_ms": floor}


def write_photographs(folder: Path, width: int, height: int, count: int) -> int:
    """Photographs of the built-in set at one size, quality 90, in two classes; the mean number of their bytes."""
    total = 0
    for i, row in enumerate(load()[:count]):
        path = folder / f"class{i % 2}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = Image.open(io.BytesIO(row.image)).convert("RGB")
        photograph.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        total += path.stat().st_size
    return total // count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each loader in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)  # of the main process: two workers fill two processors
    _blacken()
    load_before = os.getloadavg()[0]  # far above 0: others were at work, and the figures say less
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        sizes = {"500x375": write_photographs(small, 500, 375, given.images)}
        sizes["1000x750"] = write_photographs(large, 1000, 750, given.images // 4)
        rows = {
            "floats": (functools.partial(peer, small, floats=True), functools.partial(ours, small, floats=True)),
            "bytes": (functools.partial(peer, small, floats=False), functools.partial(ours, small, floats=False)),
            "dct": (functools.partial(peer, large, floats=True), functools.partial(ours, large, floats=True, dct=True)),
        }
        floor, done = stages(small), {}
        for what, (a, b) in rows.items():
            done[what] = compare(a, b, given.seconds, given.rounds)
            print(what, done[what], flush=True)
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors",
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, timm, PIL)},
        "views": list(SIZES),
        "batch": BATCH,
        "workers": WORKERS,
        "jpeg_bytes": sizes,
        "load_average_before": round(load_before, 1),
        **floor,
        **done,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
