"""A Ray cluster, for whatever runs on it: found or started, and its errors as one line."""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyres.config import UserError, first_line, need
from anyres.models.state_files import digest_of
from anyres.runs.opened import ModelSpec, TrainedModel, open_model


def everywhere(spec: ModelSpec) -> ModelSpec:
    """The same with full paths, for processes that run in other folders."""

    def full(what: str | Path | None) -> str | None:
        return None if what is None else str(Path(what).absolute()) if Path(what).exists() else str(what)

    return ModelSpec(full(spec.what) or spec.what, full(spec.weights), full(spec.classes))


def open_there(spec: ModelSpec, digest: str) -> TrainedModel:
    """``spec``'s model, in a process of the cluster. Raises UserError where its weights are not those of ``digest``."""
    trained = open_model(spec)
    if digest_of(trained.model.state_dict()) != digest:
        raise UserError(f"{spec.what} has other weights on the node {platform.node()}: copy the run there")
    return trained


@contextmanager
def cluster(address: str | None, purpose: str, *modules: str) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address``, or to one of this machine that ends with the work.

    ``purpose``: what needs it, for people; ``modules`` of Ray that it needs. Raises UserError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported
    ray = need("ray", extra="ray", purpose=purpose)
    for module in modules:
        need(module, extra="ray", purpose=purpose)
    if ray.is_initialized():  # by the program around
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    ours = {"include_dashboard": False} if address == "local" else {}
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **ours)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address} ({first_line(error)}): `ray start --head` starts one") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray sets its own
    try:
        for library in ("ray.data", "ray.serve"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is told in one line
        yield ray
    finally:
        ray.shutdown()


def reason_of(text: str) -> str:
    """Of an error with a worker's traceback, the line that says what went wrong there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it failed without a word"]
    told = re.compile(r"(\w+\.)*(UserError|Damaged|\w*OSError|FileNotFoundError|PermissionError): (.+)")
    said = [found[3] for line in lines if (found := told.match(line))]
    return (said[-1] if said else lines[0]).rstrip(".")
