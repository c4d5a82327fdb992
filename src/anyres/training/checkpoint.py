"""Checkpoints: folders ``step_000100`` written whole or not at all, verified when read.

Each holds ``model.safetensors``, ``ema.safetensors`` (when one is kept), of DINO's teacher ``teacher.safetensors`` (the
backbone) and ``teacher_head.safetensors`` (with the centre), ``optimizer.pt`` (read with ``weights_only=True``) and
``state.json`` with the progress, every file's SHA-256 and its own. The folder is filled under
another name and renamed at the end; the newest two are kept, and the best one scored; a damaged newest falls back to
the one before. Their modes are what the process's umask makes of any new file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors.torch import load_file, save_file

from anyres.config import UserError, first_line
from anyres.storage import check_types, flush
from anyres.training.shard import (
    gather_full_state,
    gather_optimizer_state,
    load_full_state,
    load_optimizer_state,
)
from anyres.training.state import Progress, State, first_non_finite

KEPT = 2
STATE, OWN = "state.json", "state_sha256"
NAME = re.compile(r"step_\d{6,15}")
MOST_BYTES = 256 << 20
"""No ``state.json`` is larger."""
LARGEST = 1e300
"""No number of a run's progress comes near it; nan is not below it."""
COUNTS = {field.name: min(field.default, 0) for field in dataclasses.fields(Progress) if isinstance(field.default, int)}
"""The least that each count of a run's progress can be."""


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
    content = {"progress": dataclasses.asdict(state.progress), "sha256": digests}
    (draft / STATE).write_text(json.dumps({**content, OWN: _digest(content)}, indent=1), encoding="utf-8")
    mode = (draft / STATE).stat().st_mode & 0o777  # safetensors gives its files one that others cannot read
    for file in draft.iterdir():
        file.chmod(mode)
        flush(file)
    flush(draft)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    flush(run)
    for old in found(run)[KEPT:]:
        if old.name != _name(state.progress.best_step):
            shutil.rmtree(old)
    return final


def _name(step: int) -> str:
    return f"step_{step:06d}"


def found(run: Path) -> list[Path]:
    """The run's checkpoint folders, newest first; what is called otherwise, as ``step_backup``, is somebody else's."""
    folders = [p for p in run.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def remove_drafts(run: Path) -> None:
    """Remove the checkpoints that a killed process left unfinished."""
    for draft in run.glob(".step_*.partial"):
        if draft.is_dir() and not draft.is_symlink():
            shutil.rmtree(draft, ignore_errors=True)


def restore(run: Path, state: State) -> list[str]:
    """Fill ``state`` from the newest sound checkpoint; returns what there is to say (damage, fallback).

    With no checkpoint at all the state is left alone. Raises UserError when checkpoints exist and all are damaged.
    """
    said: list[str] = []
    misfit = ""
    folders = found(run)
    for folder in folders:
        try:
            progress = _sound(folder)
        except Damaged as damage:
            said.append(f"checkpoint {folder.name} is damaged ({damage}); falling back to the one before")
            continue
        try:
            _load(folder, state)
        except Exception as error:  # a file with the right digest: of another model, or never one that we wrote
            why = first_line(error) if isinstance(error, pickle.UnpicklingError) else _last_line(error)
            misfit = misfit or f"{folder} does not fit this model ({why})"
            said.append(f"checkpoint {folder.name} does not fit this model ({why}); falling back to the one before")
            continue
        ruined = first_non_finite(state) if state.replica is None else None
        if ruined is not None:  # written by an earlier version
            said.append(f"checkpoint {folder.name} holds weights that are not finite ({ruined}); falling back")
            continue
        state.progress = progress
        return said
    if misfit:
        raise UserError(f"{misfit}: have the classes of the data changed since? choose another --out")
    if folders:
        raise UserError(f"every checkpoint in {run} is damaged ({said[0]}); delete the folder's step_* to start anew")
    return said


def read_weights(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    """The weights called ``name`` in the checkpoint after ``step`` steps. Raises Damaged."""
    folder = run / _name(step)
    _, digests = _read(folder)
    file = folder / f"{name}.safetensors"
    if not file.is_file() or _sha256(file) != digests.get(file.name):
        raise Damaged(f"{file.name} is missing or differs from its recorded SHA-256")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def newest_progress(run: Path) -> Progress | None:
    """What the run's newest readable checkpoint says; None where there is none."""
    for folder in found(run):
        with contextlib.suppress(Damaged):
            return _read(folder)[0]
    return None


def knows_data(run: Path) -> bool:
    """Whether the run's newest readable checkpoint says what its images were; those of earlier versions do not."""
    progress = newest_progress(run)
    return progress is not None and bool(progress.data)


class Damaged(Exception):
    """A checkpoint is not what was written, and why."""


def _sound(folder: Path) -> Progress:
    """The progress of a checkpoint whose files are what was written. Raises Damaged."""
    progress, digests = _read(folder)
    for name, digest in digests.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise Damaged(f"{name} is missing")
        if _sha256(path) != digest:
            raise Damaged(f"{name} differs from its recorded SHA-256")
    return progress


def _read(folder: Path) -> tuple[Progress, dict[str, str]]:
    """The progress of a checkpoint and the digests of its files. Raises Damaged."""
    file = folder / STATE
    if not file.is_file():
        raise Damaged(f"{STATE} is missing")
    if file.stat().st_size > MOST_BYTES:
        raise Damaged(f"{STATE} is larger than {MOST_BYTES >> 20} MiB")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{STATE}: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise Damaged(f"{STATE} is no mapping")
    own = content.pop(OWN, None)  # checkpoints of earlier versions have none
    if content.keys() != {"progress", "sha256"} or own not in (None, _digest(content)):
        raise Damaged(f"{STATE} differs from its recorded SHA-256")
    progress = _progress(content["progress"])
    if progress.step != _step(folder):
        raise Damaged(f"{STATE} is of step {progress.step}")
    digests = content["sha256"]
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise Damaged(f"{STATE} has no digests")
    return progress, digests


def _progress(values: object) -> Progress:
    """The progress in a file. Raises Damaged for values of another type or out of their range."""
    if not isinstance(values, dict) or not values.keys() <= {field.name for field in dataclasses.fields(Progress)}:
        raise Damaged(f"{STATE} has other keys")
    try:
        check_types(values, get_type_hints(Progress))
    except ValueError as error:
        raise Damaged(f"{STATE}: {error}") from None
    for name, value in values.items():
        if isinstance(value, int | float) and not COUNTS.get(name, -LARGEST) <= value < LARGEST:
            raise Damaged(f"{STATE}: {name} is {str(value)[:40]!r}")
    return Progress(**values)


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of plain values, however they are spaced in their file."""
    text = json.dumps({key: content[key] for key in sorted(content)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _load(folder: Path, state: State) -> None:
    for name, module in state.modules.items():
        load_full_state(module, partial(load_file, folder / f"{name}.safetensors"))

    def optimizer() -> dict[str, Any]:
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        return state

    load_optimizer_state(state.model, state.optimizer, optimizer)


def _flat(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.contiguous() for key, tensor in gather_full_state(module).items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
