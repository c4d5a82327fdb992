"""Write a model as a file of one of the formats, checked before anyone sees it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from anyres.config import UserError, nearest
from anyres.deploy.engines.openvino import openvino_core
from anyres.deploy.export import certificate as checks
from anyres.deploy.export.certificate import Asked, Certificate, Count, Pictures, Referee, Wrong
from anyres.deploy.export.files import drafts, file_hash, graph_hash, save_graph
from anyres.deploy.export.graph import OUTPUT, fixed_graph, free_graph, program
from anyres.deploy.export.int8 import quantized
from anyres.deploy.export.runtimes import Unable, open_onnxruntime, open_openvino, open_torch
from anyres.deploy.export.subject import Subject
from anyres.deploy.export.web import check_web, write_web
from anyres.flow import Size
from anyres.models.state_files import digest_of
from anyres.models.weights import load_weights, save_weights

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

Format = Literal["onnx", "openvino", "executorch", "torch", "safetensors", "triton", "web"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "torch": ".pt2",
    "safetensors": ".safetensors",
    "triton": "",
    "web": "",
}
"""How the path ends that is named; "": it is a folder."""
FOLDERS = {"triton": "a Triton model repository", "web": "a page with all that it needs"}
"""What the formats are that are folders."""
CERTIFICATE = ".certificate.json"
"""What is added to the name of a file for that of its certificate."""
TOLD = "certificate.json"
"""The certificate in a folder."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    certificates: Mapping[str, Certificate]  # by the name of the file


def parse_format(text: str) -> Format:
    """Raises UserError for none of FORMATS."""
    for each in FORMATS:
        if text == each:
            return each
    raise UserError(f"--to {text} is none of {', '.join(FORMATS)}{nearest(text, FORMATS)}")


def write(subject: Subject, path: Path, to: Format, fixed: Sequence[Size] = ()) -> Exported:
    """Write ``subject`` at ``path``, with its certificate beside; with ``fixed`` sizes a further file for each.

    Raises UserError, and Wrong where a file does not answer as the model does; then nothing is left behind.
    """
    check_place(path, to, fixed)
    subject.referee.model.check_sizes([*subject.sizes, *fixed])
    runtime = check_web(subject) if to == "web" else {}
    home = path if to in FOLDERS else path.parent
    with drafts(home) as draft:
        place, told = _places(subject, draft, path, to)
        place.parent.mkdir(parents=True, exist_ok=True)
        made = {}
        if not (to == "executorch" and fixed):  # where free sides cannot be lowered, one size each is asked for
            made[place] = _WRITERS[to](subject, place, None)
        for size in fixed:
            other = _fixed_place(subject, place, to, size)
            other.parent.mkdir(parents=True, exist_ok=True)
            made[other] = _WRITERS[to](subject, other, size)
        if to == "triton":
            for each in made:
                write_triton_config(subject, each)
        if to == "web":
            write_web(subject, place, runtime)
        _write_beside(told, draft, made)
        files = tuple(sorted(home / each.relative_to(draft) for each in draft.rglob("*") if each.is_file()))
    return Exported(files, {str(each.relative_to(draft)): found for each, found in made.items()})


def _places(subject: Subject, draft: Path, path: Path, to: Format) -> tuple[Path, Path]:
    """Where, in the draft, the file and its certificate lie."""
    if to == "triton":
        return draft / _folder(subject) / "1" / "model.onnx", draft / _folder(subject) / TOLD
    if to == "web":
        return draft / "model.onnx", draft / TOLD
    return draft / path.name, draft / f"{path.name}{CERTIFICATE}"


def check_place(path: Path, to: Format, fixed: Sequence[Size] = ()) -> None:
    """Raises UserError where a file of this format cannot be written at ``path``, or has no ``fixed`` sizes."""
    suffix = SUFFIXES[to]
    if to in FOLDERS:
        if path.is_file():
            raise UserError(f"{path} is a file, and {FOLDERS[to]} is a folder: name another place")
    elif path.is_dir() or path.suffix != suffix:
        raise UserError(
            f"--out {path}: --to {to} writes a file that ends in {suffix}: name one, as {path.stem or 'model'}{suffix}"
        )
    if fixed and to in ("torch", "safetensors", "web"):
        raise UserError(f"--sizes makes fixed graphs of onnx, openvino, executorch, triton, not of {to}: leave it out")


def _folder(subject: Subject) -> str:
    """A model's folder in a repository: its name without what a path or an address would take for its own."""
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in subject.name)


def _fixed_place(subject: Subject, place: Path, to: Format, size: Size) -> Path:
    if to == "triton":
        return place.parents[2] / f"{_folder(subject)}_{size}" / "1" / "model.onnx"
    return place.with_name(f"{place.stem}.{size}{place.suffix}")


def write_onnx(subject: Subject, path: Path, size: Size | None) -> Certificate:
    """One ONNX file, certified by onnxruntime, and by OpenVINO where it can open it."""
    with subject.doing(f"writing {path.name} as ONNX"):
        graph = _graph(subject, size)
        hashes = {"graph": graph_hash(graph)}
        save_graph(graph, path, subject.said)
    found = certify_onnx(subject, path, size, hashes["graph"])
    if subject.int8:
        graph, found = in_int8(subject, graph, path, size, found)
    save_graph(graph, path, {**subject.said, "certificate": found.facts()})
    return found


def in_int8(
    subject: Subject, graph: onnx.ModelProto, path: Path, size: Size | None, before: Certificate
) -> tuple[onnx.ModelProto, Certificate]:
    """The file at ``path``, whose ``graph`` was certified, in int8; what that costs at each size. Raises Wrong."""
    calibration = subject.int8
    assert calibration is not None
    sizes = (size,) if size else calibration.sizes
    with subject.doing(f"writing {path.name} in int8"):
        small = quantized(graph, calibration.images, sizes)
        save_graph(small, path, subject.said)
    engines = {"onnxruntime": open_onnxruntime(path)}
    if "openvino" not in before.skipped:
        engines["openvino"] = open_openvino(path)
    counts = [
        _counted(subject, path.name, engine, ask, calibration.scored, size)
        for engine, ask in engines.items()
        for size in sizes
    ]
    checks.check_int8(path.name, counts)
    hashes = {**before.hashes, "graph": graph_hash(small)}
    scored = calibration.scored.source
    return small, replace(before, counts=tuple(counts), source=scored, hashes=hashes, precision="int8")


def _counted(subject: Subject, name: str, engine: str, ask: Asked, pictures: Pictures, size: Size) -> Count:
    with subject.doing(f"checking {name} in {engine} on images at {size} px"):
        return checks.count(engine, ask, subject.referee, pictures, size)


def certify_onnx(subject: Subject, path: Path, size: Size | None, graph: str) -> Certificate:
    """What onnxruntime and OpenVINO make of an ONNX file, whose graph has the SHA-256 ``graph``. Raises Wrong."""
    import onnx

    if graph_hash(onnx.load(path)) != graph:
        raise Wrong(f"{path.name} is not what was written (its SHA-256 differs): the disk fails, or someone changed it")
    engines: dict[str, Asked] = {"onnxruntime": open_onnxruntime(path)}
    skipped: dict[str, str] = {}
    try:
        engines["openvino"] = open_openvino(path)
        return _certify(subject, path.name, engines, size, {"graph": graph}, skipped)
    except Unable as error:
        if "OpenVINO" not in str(error):
            raise
        skipped["openvino"] = str(error)
        log.warning("%s; the file is certified for onnxruntime alone", error)
    return _certify(subject, path.name, {"onnxruntime": engines["onnxruntime"]}, size, {"graph": graph}, skipped)


def _graph(subject: Subject, size: Size | None) -> onnx.ModelProto:
    referee = subject.referee
    if size is None:
        return free_graph(referee.model, referee.how, referee.activation)
    return fixed_graph(referee.model, referee.how, referee.activation, size)


def write_openvino(subject: Subject, path: Path, size: Size | None) -> Certificate:
    """OpenVINO's own files (.xml and .bin), made from the ONNX file, in float32."""
    with subject.doing(f"writing {path.name} as ONNX"):
        graph = _graph(subject, size)
    return convert_to_openvino(subject, graph, path, size)


def convert_to_openvino(subject: Subject, graph: onnx.ModelProto, path: Path, size: Size | None) -> Certificate:
    """OpenVINO's own files of an ONNX graph, certified. Raises Wrong, and Unable where OpenVINO cannot read it."""
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    source = path.parent / ".onnx" / "model.onnx"
    source.parent.mkdir(exist_ok=True)
    with subject.doing(f"converting {path.name} for OpenVINO"):
        save_graph(graph, source, {})
        try:
            model = openvino_core().read_model(source)
        except Exception as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1].lstrip("- ")
            raise Unable(f"OpenVINO cannot read {subject.name}: {last}: try --to onnx") from None
        openvino.save_model(model, path, compress_to_fp16=False)
    hashes = {"weights": file_hash(path.with_suffix(".bin"))}
    found = _certify(subject, path.name, {"openvino": open_openvino(path)}, size, hashes, {})
    for key, value in {**subject.said, "certificate": found.facts()}.items():
        model.set_rt_info(json.dumps(value), ["anyres", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    if file_hash(path.with_suffix(".bin")) != hashes["weights"]:
        raise Wrong(f"{path.name} changed while its certificate was written into it: the disk fails")
    del model  # it reads the ONNX file in place
    shutil.rmtree(source.parent)
    return found


def write_executorch(subject: Subject, path: Path, size: Size | None) -> Certificate:
    """A program of ExecuTorch (.pte), and a JSON file with all that is said of it."""
    from anyres.deploy.export import executorch

    with subject.doing(f"lowering {path.name} for ExecuTorch"):
        path.write_bytes(executorch.program(subject.referee, size, subject.said))
    asked = replace(subject, sizes=(size,) if size else executorch.tried(subject.sizes))
    engines = {"executorch": executorch.open_executorch(path, subject.referee)}
    try:
        found = _certify(asked, path.name, engines, size, {"program": file_hash(path)}, {})
    except Unable as error:
        raise Unable(f"{error}: try {'--to onnx' if size else '--sizes for one size each, or --to onnx'}") from None
    told = {**subject.said, "certificate": found.facts()}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    return found


def write_torch(subject: Subject, path: Path, size: Size | None) -> Certificate:
    """A program of torch.export (.pt2), with what is said of it beside it in the archive."""
    assert size is None
    referee = subject.referee
    with subject.doing(f"writing {path.name} for PyTorch"):
        made = program(referee.model, referee.how, referee.activation)
        torch.export.save(made, path)
    found = _certify(subject, path.name, {"torch": open_torch(path)}, size, {}, {})
    said = {key: json.dumps(value) for key, value in {**subject.said, "certificate": found.facts()}.items()}
    torch.export.save(made, path, extra_files=said)
    return found


def write_safetensors(subject: Subject, path: Path, size: Size | None) -> Certificate:
    """Weights alone, as a run keeps them, and a JSON file with all that is said of them."""
    import copy

    assert size is None
    model = subject.referee.model
    save_weights(model, path, {"anyres": json.dumps(subject.about)})
    again = copy.deepcopy(model)
    with torch.no_grad():
        for each in again.parameters():
            each.zero_()
    load_weights(again, path)
    told = Referee(again, subject.referee.how, subject.referee.activation)
    found = _certify(subject, path.name, {"eager": told.ask}, size, {"weights": file_hash(path)}, {})
    said = {**subject.said, "about": dict(subject.about), "certificate": found.facts()}
    path.with_suffix(".json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    return found


_WRITERS = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "executorch": write_executorch,
    "torch": write_torch,
    "safetensors": write_safetensors,
    "triton": write_onnx,
    "web": write_onnx,
}


def _certify(
    subject: Subject,
    name: str,
    engines: Mapping[str, Asked],
    size: Size | None,
    hashes: Mapping[str, str],
    skipped: Mapping[str, str],
) -> Certificate:
    """Every engine on every trial, then on real images at the usual size. Raises Wrong, and Unable."""
    referee, sizes = subject.referee, (size,) if size else subject.sizes
    with subject.doing(f"asking the model itself at {len(sizes)} sizes"):
        given = checks.trials(referee, subject.pictures, sizes)
    found, counts = [], []
    for engine, ask in engines.items():
        with subject.doing(f"checking {name} in {engine}"):
            found += checks.check(name, engine, ask, given, referee.activation)
        counts.append(_counted(subject, name, engine, ask, subject.pictures, sizes[0]))
    bounds = {
        "probability": checks.PROBABILITY,
        "logit": checks.LOGIT,
        "logit, share of motion": checks.OF_MOTION,
    }
    made = {"model": digest_of(referee.model.state_dict()), **hashes}
    return Certificate(
        bounds, tuple(found), tuple(counts), subject.pictures.source, dict(skipped), made, _versions(engines)
    )


def _versions(engines: Mapping[str, Asked]) -> dict[str, str]:
    found = {}
    for package in ("anyres", "torch", "onnx", *engines):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # eager is none
    return found


def _write_beside(path: Path, draft: Path, made: Mapping[Path, Certificate]) -> None:
    """The certificates as JSON, with the SHA-256 of every file."""
    files = sorted(each for each in draft.rglob("*") if each.is_file())
    values = {
        "files": {str(each.relative_to(draft)): {"sha256": file_hash(each)} for each in files},
        "certificates": {str(each.relative_to(draft)): found.facts() for each, found in made.items()},
    }
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def write_triton_config(subject: Subject, place: Path) -> None:
    """The configuration of one model of a Triton model repository, and the names of its classes."""
    import onnx

    graph = onnx.load(place, load_external_data=False).graph
    classes = list(subject.said["classes"])
    channels = len(subject.referee.how.mean)
    inputs = [f'  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, -1, {channels} ] }}']
    if len(graph.input) > 1:
        inputs.append('  { name: "size" data_type: TYPE_INT64 dims: [ 2 ] }')
    count = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    label = ' label_filename: "labels.txt"' if classes else ""
    folder = place.parents[1]
    text = [
        "# image: uint8 pixels (batch, height, width, channels); size: height and width that the model sees, in pixels",
        f'name: "{folder.name}"',
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 0",  # the first dimension of image is the batch
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        f'  {{ name: "{OUTPUT[subject.referee.activation]}" data_type: TYPE_FP32 dims: [ -1, {count} ]{label} }}',
        "]",
    ]
    (folder / "config.pbtxt").write_text("\n".join(text) + "\n", encoding="utf-8")
    if classes:
        (folder / "labels.txt").write_text("".join(f"{' '.join(name.split())}\n" for name in classes), encoding="utf-8")
