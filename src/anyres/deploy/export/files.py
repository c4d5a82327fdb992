"""Files that appear together or not at all, and what is written into them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.config import UserError
from anyres.storage import draft_beside, flush, refusal, remove_draft_folders

if TYPE_CHECKING:
    import onnx

EXTERNAL_FROM = 1_800_000_000
"""Bytes of weights from which they lie in a file of their own: a protocol buffer ends at 2 GB."""


@contextmanager
def drafts(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, for files to be written; afterwards they stand in ``folder``, at the places
    they have in the draft, each replaced at once. On any exception nothing of them is left.

    What killed processes left there is removed first. Raises OSError with the name of ``folder`` where the system
    refuses.
    """
    draft = draft_beside(folder / "export")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_draft_folders(folder, "export", _OPEN)
        _OPEN.add(draft)
        draft.mkdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): name another place") from None
    try:
        yield draft
        for path in sorted(each for each in draft.rglob("*") if each.is_file()):
            flush(path)
            place = folder / path.relative_to(draft)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    except UserError:
        raise
    except Exception as error:
        number = refusal(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _OPEN.discard(draft)


_OPEN: set[Path] = set()
"""Drafts that this process is writing, perhaps in several threads."""


def file_hash(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_hash(graph: onnx.ModelProto) -> str:
    """SHA-256 of an ONNX graph with its weights, wherever they lie, without what is said of it."""
    made = hashlib.sha256()
    for part in (graph.opset_import, graph.graph.input, graph.graph.output, graph.graph.node):
        for each in part:
            made.update(each.SerializeToString(deterministic=True))
    for tensor in graph.graph.initializer:  # one by one: together they may be beyond what a protocol buffer holds
        made.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}".encode())
        values = tensor.float_data or tensor.int32_data or tensor.int64_data or tensor.double_data
        made.update(tensor.raw_data or repr(list(values)).encode())
    return made.hexdigest()


def save_graph(graph: onnx.ModelProto, path: Path, said: Mapping[str, Any]) -> None:
    """Write an ONNX graph, with ``said`` as JSON text by key in its metadata."""
    import onnx
    from onnx import helper

    helper.set_model_props(graph, {key: json.dumps(value) for key, value in said.items()})
    size = sum(len(each.raw_data) for each in graph.graph.initializer)
    if size < EXTERNAL_FROM:
        onnx.save(graph, path)
    else:
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # weights would be added at its end
        onnx.save(graph, path, save_as_external_data=True, location=data.name, size_threshold=1024)
        onnx.load_external_data_for_model(graph, str(path.parent))


def read_said(path: Path) -> dict[str, Any]:
    """What an exported ONNX file says of itself, by key."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    return {each.key: json.loads(each.value) for each in graph.metadata_props}
