"""Checkpoints: folders ``step_000100`` written whole or not at all, verified when read.

Each holds ``model.safetensors``, ``ema.safetensors`` (when one is kept), of DINO's teacher ``teacher.safetensors`` (the
backbone) and ``teacher_head.safetensors`` (with the centre), ``optimizer.pt`` (read with ``weights_only=True``) and
``state.json`` with the progress and every file's SHA-256. The folder is filled under
another name and renamed at the end; the newest two are kept, and the best one scored; a damaged newest falls back to
the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anyres.config import UserError
from anyres.training.shard import (
    gather_full_state,
    gather_optimizer_state,
    load_full_state,
    load_optimizer_state,
)
from anyres.training.state import Progress, State

KEPT = 2


def save(run: Path, state: State, write: bool = True) -> Path:
    """Write ``run/step_NNNNNN`` atomically, drop all but the newest two and the best scored, and return the folder.

    Of a sharded model all processes must call this, to gather it, and the first one ``write``.
    """
    final = run / _name(state.progress.step)
    weights = {name: _flat(module) for name, module in state.modules.items()}
    optimizer = gather_optimizer_state(state.model, state.optimizer)
    if not write:
        return final
    draft = run / f".{final.name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, tensors in weights.items():
        save_file(tensors, draft / f"{name}.safetensors")
    torch.save(optimizer, draft / "optimizer.pt")
    digests = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
    text = json.dumps({"progress": dataclasses.asdict(state.progress), "sha256": digests}, indent=1)
    (draft / "state.json").write_text(text)
    for file in draft.iterdir():
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    _sync(run)
    for old in found(run)[KEPT:]:
        if old.name != _name(state.progress.best_step):
            shutil.rmtree(old)
    return final


def _name(step: int) -> str:
    return f"step_{step:06d}"


def found(run: Path) -> list[Path]:
    """The run's checkpoint folders, newest first."""
    return sorted((p for p in run.glob("step_*") if p.is_dir()), key=lambda p: int(p.name[5:]), reverse=True)


def restore(run: Path, state: State) -> list[str]:
    """Fill ``state`` from the newest sound checkpoint; returns what there is to say (damage, fallback).

    With no checkpoint at all the state is left alone. Raises UserError when checkpoints exist and all are damaged.
    """
    said: list[str] = []
    folders = found(run)
    for folder in folders:
        problem = _damage(folder)
        if problem is None:
            try:
                _load(folder, state)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:  # sound, but of another model
                raise UserError(
                    f"{folder} does not fit this model ({str(error).splitlines()[-1].strip()}): "
                    "have the classes of the data changed since? choose another --out"
                ) from error
            return said
        said.append(f"checkpoint {folder.name} is damaged ({problem}); falling back to the one before")
    if folders:
        raise UserError(f"every checkpoint in {run} is damaged ({said[0]}); delete the folder's step_* to start anew")
    return said


def _damage(folder: Path) -> str | None:
    try:
        digests: dict[str, str] = json.loads((folder / "state.json").read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json: {type(error).__name__}"
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != digest:
            return f"{name} differs from its recorded SHA-256"
    return None


def _load(folder: Path, state: State) -> None:
    for name, module in state.modules.items():
        load_full_state(module, partial(load_file, folder / f"{name}.safetensors"))

    def optimizer() -> dict[str, Any]:
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        return state

    load_optimizer_state(state.model, state.optimizer, optimizer)
    state.progress = Progress(**json.loads((folder / "state.json").read_text())["progress"])


def _flat(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.contiguous() for key, tensor in gather_full_state(module).items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
