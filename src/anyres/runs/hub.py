"""A finished run on the Hugging Face hub: what is sent, with a card, and in a form that timm reads where it can."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich import get_console

from anyres.config import UserError, first_line
from anyres.evaluation.curve_file import read_csv
from anyres.evaluation.scores_file import SCORES
from anyres.flow import SizeResult
from anyres.models.contract import Backbone
from anyres.models.fetch import guard_hub
from anyres.recipe import Recipe, dump_recipe
from anyres.runs.cascade import FILE as CASCADE
from anyres.runs.hub_card import dataset_id, write_card
from anyres.runs.inputs import crop_ratio, interpolation_of
from anyres.runs.opened import FACTS, RECIPE, WEIGHTS, TrainedModel, open_run
from anyres.runs.stderr import doing, show_log
from anyres.storage import as_path, offline, write_json, write_text
from anyres.tasks import known_metrics

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

log = logging.getLogger(__name__)
CONFIG = "config.json"
"""Where timm reads what a model is."""
SENT = ("curve.csv", "curve.png", SCORES, CASCADE)
"""Sent as they are, beside weights, recipe and facts; pictures of images and logs stay."""
CLOSE = 1e-4
"""How far a logit of timm's may be from ours, as a share of the largest."""


@dataclass(frozen=True)
class PushOptions:
    """How a run is published. ``licence``: an identifier such as apache-2.0 (None: the card names none). ``dataset``:
    the hub's id of the images it was scored on, for results beside the card. ``files``: exported files that go with
    it, and their certificates."""

    private: bool = False
    licence: str | None = None
    dataset: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """What was sent: the repository's ``name``, its ``address``, the names of its ``files``, and whether timm reads it
    without anyres."""

    name: str
    address: str
    files: tuple[str, ...]
    in_timm: bool


def push(run: str | Path, name: str, how: PushOptions = PushOptions(), folder: str | Path | None = None) -> Pushed:
    """Send a finished run to the hub as the repository ``name`` (``owner/name``, or a name of your own), with a card.

    ``folder``: write there what would be sent, and send nothing. The hub's token is the one of `hf auth login` or
    HF_TOKEN. Raises UserError where the run is unfinished or has no curve, or the hub does not take it.
    """
    show_log()
    trained = open_run(as_path(run))
    if folder is not None:
        place = as_path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{place} is there already: give --folder a new one")
        in_timm = write_repository(trained, name, place, how)
        return Pushed(name, str(place), _listed(place), in_timm)
    if offline():
        raise UserError("the hub is switched off: unset ANYRES_OFFLINE and HF_HUB_OFFLINE, or give --folder")
    guard_hub()
    with tempfile.TemporaryDirectory() as draft:
        in_timm = write_repository(trained, name, Path(draft), how)
        with doing(f"sending {name}"):
            full, address = _send(Path(draft), name, private=how.private)
        return Pushed(full, address, _listed(Path(draft)), in_timm)


def _listed(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def write_repository(trained: TrainedModel, name: str, folder: Path, how: PushOptions) -> bool:
    """Write what a repository holds; returns whether timm reads it. Raises UserError where the run has no curve, or a
    file is missing."""
    run = trained.folder
    assert run is not None
    if not (run / "curve.csv").is_file():
        raise UserError(f"{run} has no curve, which is what its card shows: `anyres curve {run}` measures one")
    curve = read_csv(run / "curve.csv", known_metrics())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / WEIGHTS, folder / WEIGHTS)
    for sent in SENT:
        if (run / sent).is_file():
            shutil.copyfile(run / sent, folder / sent)
    write_text(folder / RECIPE, dump_recipe(without_paths(trained.recipe)))
    write_json(folder / FACTS, _facts(trained))
    for path in how.files:
        _copy_exported(path, folder)
    with doing("asking timm for the same logits"):
        in_timm = write_timm_config(trained, folder)
    entries = eval_results(trained, curve, how.dataset)
    if entries:
        from huggingface_hub import eval_result_entries_to_yaml

        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        write_text(folder / ".eval_results" / "anyres.yaml", text)
    write_card(trained, curve, name, folder, how.licence, in_timm=in_timm)
    return in_timm


def without_paths(recipe: Recipe) -> Recipe:
    """A recipe as it may be published: of paths on this machine only the last name."""
    source = recipe.data.source
    shown = replace(recipe, data=replace(recipe.data, source=_last_name(source)), weights=_last_name(recipe.weights))
    teacher = recipe.objective.distillation
    kept = replace(
        teacher,
        teacher=_last_name(teacher.teacher),
        weights=_last_name(teacher.weights),
        classes=_last_name(teacher.classes),
    )
    return replace(shown, objective=replace(recipe.objective, distillation=kept))


def _last_name(source: str | None) -> str | None:
    """``photos`` of ``/home/me/photos``; what is no path stays, as ``hf:owner/name``."""
    if source is None or not (Path(source).is_absolute() or as_path(source).exists() or source.startswith((".", "~"))):
        return source
    return Path(source).name or source


def _facts(trained: TrainedModel) -> dict[str, Any]:
    """What ``run.json`` says, without the notes, which name files of this machine."""
    facts = {key: value for key, value in trained.facts.items() if key != "notes"}
    evaluation = dict(facts.get("evaluation") or {})
    evaluation.pop("notes", None)
    for key in ("weights", "data"):
        if isinstance(evaluation.get(key), str):
            evaluation[key] = _last_name(evaluation[key])
    return facts | ({"evaluation": evaluation} if evaluation else {})


def _copy_exported(path: Path, folder: Path) -> None:
    """A file that `anyres export` wrote, with what lies beside it. Raises UserError where it is not there."""
    from anyres.deploy.export.write import CERTIFICATE

    beside = path.with_name(f"{path.name}{CERTIFICATE}")
    if not path.is_file() or not beside.is_file():
        raise UserError(f"--with {path}: there is no such file with its certificate: `anyres export` writes both")
    for each in (path, beside, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")):
        if each.is_file():
            shutil.copyfile(each, folder / each.name)


def eval_results(trained: TrainedModel, curve: Sequence[SizeResult], dataset: str | None) -> list[EvalResultEntry]:
    """What was measured, for the hub's own table of results; [] where nobody says which of the hub's data sets the
    images are of."""
    from huggingface_hub import EvalResultEntry

    measured = trained.facts.get("evaluation", {})
    if dataset is None:
        named = str(measured.get("data", ""))
        if not named.startswith("hf:"):
            return []
        dataset = dataset_id(named)
    said = f"{curve[0].n} images of the split {measured.get('split', 'test')}; 95 % interval "

    def notes(point: SizeResult) -> str:
        head = point.headline
        interval = f"{head.text(point.best.low)} to {head.text(point.best.high)}" if point.best.low >= 0 else "none"
        return f"{said}{interval}; {point.cost.macs / 1e6:.0f} M multiply-accumulates"

    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{point.headline.key}_at_{point.size}",
            value=round(point.headline.scale * point.best.value, 4),
            notes=notes(point),
        )
        for point in curve
    ]


def write_timm_config(trained: TrainedModel, folder: Path) -> bool:
    """Write ``config.json``, with which ``timm.create_model("local-dir:FOLDER")`` and ``hf-hub:`` build the model and
    read its weights; False, and no file, where timm does not know the model, or gives other logits."""
    config = timm_config(trained)
    if config is None:
        return False
    path = folder / CONFIG
    write_json(path, config)
    try:
        apart = _apart_in_timm(trained, folder)
    except Exception as error:  # whatever timm, which may be of any version, says of it
        apart, reason = float("inf"), first_line(error)
    else:
        reason = f"its logits are {apart:.1g} of the largest away"
    if apart <= CLOSE:
        return True
    path.unlink()
    log.warning("timm does not read this model as ours, and gets no %s: %s", CONFIG, reason)
    return False


def timm_config(trained: TrainedModel) -> dict[str, Any] | None:
    """What timm's ``config.json`` says; None where timm has no such model."""
    model, recipe = trained.model, trained.recipe
    if not isinstance(model, Backbone) or model.traits.timm is None:
        return None
    asked = model.traits.timm(model)
    if asked is None:
        return None
    architecture, arguments = asked
    cfg = model.pretrained_cfg
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "label_names": list(trained.classes),
        "pretrained_cfg": {
            "tag": "anyres",
            "custom_load": False,
            "input_size": list(cfg["input_size"]),
            "fixed_input_size": "img_size" in arguments and "dynamic_img_size" not in arguments,
            "interpolation": interpolation_of(recipe),
            "crop_pct": crop_ratio(recipe),
            "crop_mode": "squash" if recipe.evaluate.warp is True else "center",
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
            "num_classes": model.num_classes,
            "first_conv": cfg["first_conv"],
            "classifier": cfg["classifier"],
        },
    }


@torch.inference_mode()
def _apart_in_timm(trained: TrainedModel, folder: Path) -> float:
    """How far timm's logits are from ours on noise, as a share of the largest of ours."""
    import timm

    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if type(theirs).__module__.startswith("anyres"):
        raise UserError("timm has this name from anyres alone")
    shape = json.loads((folder / CONFIG).read_text())["pretrained_cfg"]["input_size"]
    pixels = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    device, ours = trained.device, trained.model
    expected, found = ours(pixels.to(device)).float().cpu(), theirs(pixels)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _send(folder: Path, name: str, *, private: bool) -> tuple[str, str]:
    """Make the repository and send the folder; its full name and address. Raises UserError for what the hub says."""
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

    if not get_console().is_terminal and not are_progress_bars_disabled():
        disable_progress_bars()
    api = HfApi(endpoint=constants.ENDPOINT, library_name="anyres")
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        sent = [CommitOperationAdd(path, folder / path) for path in _listed(folder)]
        api.create_commit(repository.repo_id, sent, commit_message="A run of anyres, with its curve")  # all at once
    except errors.HFValidationError as error:
        raise UserError(f"{name} is no name on the hub: write owner/name, of letters, digits, - _ .") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError("the hub wants to know who sends: run `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UserError("the hub does not know this token: run `hf auth login`, or set HF_TOKEN") from error
        if status == 403:
            raise UserError(f"the hub does not let this token write {name}: give a name of yours") from error
        raise UserError(f"{name}: the hub fails (status {status}); try again later") from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise UserError(f"{name} is not sent: the hub is not reached ({type(error).__name__}); try again") from error
    return repository.repo_id, str(repository.url)
