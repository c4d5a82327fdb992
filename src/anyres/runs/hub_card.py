"""The card of a run on the hub: its curve, how to use it, what it was trained on, what its certificates say."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from anyres.config import printable
from anyres.flow import Cost, SizeResult
from anyres.models.index import known_weights
from anyres.runs.inputs import describe_preprocessing
from anyres.runs.kept import kept_in
from anyres.runs.opened import TrainedModel

log = logging.getLogger(__name__)
PIPELINES = {
    "classify": "image-classification",
    "multilabel": "image-classification",
    "unlabelled": "image-feature-extraction",
    "video": "video-classification",
    "segment": "image-segmentation",
    "detect": "object-detection",
}
"""Task -> what the hub calls it."""
MOST_CLASSES = 30


def write_card(
    trained: TrainedModel, curve: Sequence[SizeResult], name: str, folder: Path, licence: str | None, *, in_timm: bool
) -> None:
    """Write ``README.md``, a card as huggingface_hub reads it, for the repository ``name`` whose files lie in
    ``folder``."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=licence.lower() if licence else None,
        library_name="timm" if in_timm else "anyres",
        pipeline_tag=PIPELINES.get(trained.task.name),
        datasets=[dataset_id(source)] if (source := trained.recipe.data.source or "").startswith("hf:") else None,
        tags=["anyres", "any-resolution", *(["timm"] if in_timm else [])],
    )
    text = "\n".join(_lines(trained, curve, name, folder, licence, in_timm))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def dataset_id(source: str) -> str:
    """``owner/name`` of ``hf:owner/name:config``."""
    return source.removeprefix("hf:").partition(":")[0].partition("@")[0]


def _lines(
    trained: TrainedModel, curve: Sequence[SizeResult], name: str, folder: Path, licence: str | None, in_timm: bool
) -> Iterator[str]:
    best = max(curve, key=lambda result: result.quality)
    head = best.headline
    yield f"# {_plain(name.rpartition('/')[2])}"
    yield ""
    sizes = ", ".join(str(point.size) for point in curve)
    yield (
        f"{_plain(trained.name)}, trained with anyres to be used at any image size. Measured at {sizes} px; best "
        f"{head.name} {head.text(best.best.value)} at {best.size} px."
    )
    yield from ("", "## What each size gives and costs", "")
    yield from _curve(curve)
    yield from ("", "![The curve](curve.png)" if (folder / "curve.png").is_file() else "")
    yield from ("", "## Use", "", "```bash", f"anyres predict hf:{name} photo.jpg --size {best.size}", "```")
    yield from ("", "```python", "import anyres", "", f'model = anyres.load("hf:{name}")', "```")
    if in_timm:
        yield from ("", "timm reads it without anyres; its logits are the same at the size of its table:", "")
        yield from (
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("hf-hub:{name}", pretrained=True)',
            "```",
        )
    yield from _certificates(folder)
    yield from _training(trained)
    yield from _data(trained, curve)
    yield from _licence(trained, licence)


def _curve(curve: Sequence[SizeResult]) -> Iterator[str]:
    """The curve as a table."""
    head = curve[0].headline
    unit = f" {head.unit}" if head.unit else ""
    yield f"| size, px | {head.name}{unit} | 95 % interval | ms an image | multiply-accumulates |"
    yield "|---|---|---|---|---|"
    for point in curve:
        value, low, high = (f"{head.scale * each:.4g}" for each in point.best)
        interval = "" if math.isnan(point.best.low) else f"{low} to {high}"
        yield f"| {point.size} | {value} | {interval} | {_latency(point.cost)} | {point.cost.macs / 1e6:,.0f} M |"


def _latency(cost: Cost) -> str:
    if not math.isfinite(cost.latency_ms):
        return ""
    return f"{cost.latency_ms:.3g}" + (" (disturbed)" if cost.disturbed else "")


def _certificates(folder: Path) -> Iterator[str]:
    """What the certificates of exported files say, one row for each file."""
    rows = []
    for path in sorted(folder.glob("*.certificate.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["certificates"]
            for file, one in found.items():
                worst = max(check["probability"] for check in one["checks"])
                sizes = ", ".join(dict.fromkeys(check["size"] for check in one["checks"]))
                same, images = (sum(count[key] for count in one["counts"]) for key in ("same", "images"))
                rows.append(f"| `{_plain(file)}` | {sizes} | {worst:.1g} | {same} of {images} |")
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is no certificate (%s): the card goes without it", path.name, type(error).__name__)
    if rows:
        yield from ("", "## Exported files", "", "Checked against the model when they were written:", "")
        yield "| file | sizes tried, px | largest difference of a probability | same first class |"
        yield "|---|---|---|---|"
        yield from rows


def _training(trained: TrainedModel) -> Iterator[str]:
    recipe, facts = trained.recipe, trained.facts
    yield from ("", "## Training", "")
    yield f"- model: `{json.dumps(recipe.model)}`"
    yield f"- views: {', '.join(map(str, recipe.views.sizes))} px"
    yield f"- objective: {recipe.objective.chosen}; {recipe.train.epochs} epochs; seed {recipe.train.seed}"
    if kept := kept_in(facts):
        yield f"- weights kept: those {kept.sentence(trained.task.metrics[0])}"
    if {"steps", "pixels", "seconds"} <= facts.keys():
        yield f"- {facts['steps']:,} steps, {facts['pixels'] / 1e9:.2f} G pixels, {facts['seconds']:,.0f} s"
    yield f"- preprocessing: {describe_preprocessing(recipe)}"
    yield "- every setting: `recipe.yaml`"


def _data(trained: TrainedModel, curve: Sequence[SizeResult]) -> Iterator[str]:
    measured = trained.facts.get("evaluation", {})
    classes = trained.classes
    yield from ("", "## Data", "")
    source = trained.recipe.data.source or "not named"
    yield f"- trained on: {_shown(source)}"
    split, scored = measured.get("split", "test"), str(measured.get("data", source))
    yield f"- scored on: {curve[0].n} images of the {split} split of {_shown(scored)}"
    if classes:
        listed = ", ".join(map(_plain, classes[:MOST_CLASSES])) + (", ..." if len(classes) > MOST_CLASSES else "")
        yield f"- {len(classes)} classes: {listed}"
    yield "- intervals cover the choice of test images, not that of the training seed"


def _licence(trained: TrainedModel, licence: str | None) -> Iterator[str]:
    yield from ("", "## Licence", "")
    yield _plain(licence) if licence else "None was named."
    start = trained.recipe.weights
    row = next((row for row in known_weights() if row.name == start), None)
    if start:
        of = f", whose licence is {row.licence}" if row and row.licence else ""
        yield f"It started from the weights {_plain(Path(start).name)}{of}."


def _shown(source: str) -> str:
    """A set of images by its name, of a path the last one."""
    return _plain(source if source.startswith("hf:") else Path(source).name or source)


def _plain(text: str) -> str:
    """A name as Markdown shows it, and nothing else."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|!" else sign for sign in printable(str(text), 200))
