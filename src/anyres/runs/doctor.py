"""What this machine and this installation have, and what is missing for which verb."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from anyres.deploy.engines.backend import candidates
from anyres.flow import has_bf16, pick_device
from anyres.ops.processors import affinity, cpu_quota, processors
from anyres.runs.bounds import memory
from anyres.storage import cache_root, offline

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors", "typer", "rich")
LITTLE_DISK, LITTLE_SHARED = 2 * 10**9, 2**28
"""Bytes below which a folder's disk, and the memory that loaders share, are worth a sentence."""


@dataclass(frozen=True)
class Need:
    """What some use needs beside what is always installed."""

    use: str  # in a user's words
    modules: tuple[str, ...]  # import names
    mend: str  # what to do where one is missing

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


_DATA, _DEPLOY = "pip install '.[data]'", "pip install '.[deploy]'"
NEEDS = (
    Need("train, eval, curve, pick, predict", ("torch", "torchvision", "timm"), "pip install ."),
    Need("--data of parquet files, groceries", ("pyarrow",), _DATA),
    Need("--data hf:OWNER/NAME", ("datasets",), _DATA),
    Need("fetching groceries", ("pip",), _DATA),
    Need("TIFF of many bands", ("tifffile",), "pip install '.[tiff]'"),
    Need("--backend onnxruntime, export to ONNX", ("onnxruntime", "onnx", "onnxscript"), _DEPLOY),
    Need("--backend openvino", ("openvino",), _DEPLOY),
    Need("--backend openvino:int8", ("openvino", "nncf"), _DEPLOY),
    Need("look --method cam, gradients, occlusion", ("captum",), "pip install '.[maps]'"),
    Need("train.trackers=[wandb]", ("wandb",), "pip install '.[trackers]'"),
    Need("train.trackers=[mlflow]", ("mlflow",), "pip install '.[trackers]'"),
)
"""Every use of an optional library."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    part: str  # as "processors"
    said: str  # for people
    mend: str = ""  # what to do; empty where all is well


def examine_machine() -> list[Finding]:
    """Look at versions, devices, memory and caches. Nothing is fetched or written."""
    return [*_software(), *_devices(), *_memory(), *_folders()]


def examine_uses() -> list[Finding]:
    """Look for what each use needs beside what is always installed."""
    found = [(need, need.missing) for need in NEEDS]
    return [
        Finding(need.use, f"lacks {' and '.join(missing)}", need.mend) if missing else Finding(need.use, "ready")
        for need, missing in found
    ]


def _software() -> Iterator[Finding]:
    yield Finding("anyres", f"{_version('anyres')} in {Path(__file__).parents[1]}")
    yield Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}, {sys.executable}")
    yield Finding("libraries", ", ".join(f"{name} {_version(name)}" for name in LIBRARIES))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _devices() -> Iterator[Finding]:
    device = pick_device()
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            yield Finding("device", f"cuda:{i}, {found.name}, {found.total_memory / 1e9:.0f} GB")
    else:
        yield Finding("device", f"{device.type}: no CUDA device is seen by torch {torch.__version__}")
    quota = cpu_quota()
    limits = f"{affinity()} for this process, {f'a quota of {quota:g}' if quota else 'no quota'}"
    set_here = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        "processors",
        f"{limits}; torch uses {torch.get_num_threads()} threads"
        f"{f' (OMP_NUM_THREADS={set_here})' if set_here else ''}; "
        f"bf16 {'has' if has_bf16(torch.device('cpu')) else 'has no'} fast instructions",
        f"unset OMP_NUM_THREADS, or set it to {processors()}" if torch.get_num_threads() > processors() else "",
    )
    engines = ", ".join(map(str, candidates(device)))
    compiler = next((name for name in ("g++", "clang++", "cl") if shutil.which(name)), None)
    mend = "" if compiler or device.type == "cuda" else "install a C++ compiler (g++), or name another --backend"
    yield Finding("engines", f"{engines}; C++ compiler for inductor: {compiler or 'none'}", mend)


def _memory() -> Iterator[Finding]:
    yield Finding("memory", f"{memory() / 1e9:.1f} GB for this process")
    shared = Path("/dev/shm")
    if shared.is_dir():
        total = shutil.disk_usage(shared).total
        mend = "make it larger (docker run --shm-size=1g), or train with data.workers=0"
        yield Finding("shared memory", f"{total / 1e9:.1f} GB in {shared}", mend if total < LITTLE_SHARED else "")


def _folders() -> Iterator[Finding]:
    for part, folder in (("cache", cache_root()), ("here", Path.cwd())):
        place = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if part == "cache" else 0
        mend = "" if os.access(place, os.W_OK) else "it cannot be written: set ANYRES_CACHE, or go elsewhere"
        mend = mend or ("make room" if free < LITTLE_DISK else "")
        holds = f", holds {held / 1e6:.0f} MB" if held else ""
        yield Finding(part, f"{folder}{holds}, {free / 1e9:.0f} GB free", mend)
    yield Finding("network", "switched off (ANYRES_OFFLINE or HF_HUB_OFFLINE)" if offline() else "may be used")
