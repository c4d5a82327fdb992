"""Pictures that are not square keep their shape where boxes and maps are scored, and places are the picture's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anyres.data.cache import DecodedImages
from anyres.data.drawn_sources import open_scored
from anyres.data.sources import Source
from anyres.evaluation.coco import CocoScores, score_detections
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.joined import shown_part
from anyres.evaluation.miou import score_maps
from anyres.flow import Batch, Geometry, Size
from anyres.models.contract import Network
from anyres.recipe import Recipe, load_recipe
from anyres.runs.inputs import describe_preprocessing, scored_batches
from anyres.runs.opened import TrainedModel
from anyres.runs.predict import predict
from anyres.tasks import task_for

CPU = torch.device("cpu")
HOW = EvalSettings(CPU)
WIDE, TALL = (96, 64), (48, 96)  # width, height
BLOCKS = {"0.png": (WIDE, (12, 16, 72, 48)), "1.png": (TALL, (9, 24, 33, 84))}
"""Pictures of other shapes than any view, and the red block on each: x1 y1 x2 y2."""
ABOUT = 2.5  # px of the picture: one of the smallest view


class FindsRed(Network):
    """A detector that needs no training: the box around what is red in the view, and its mask."""

    has_masks = True
    num_classes = 1

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [self.of(image) for image in x]

    def of(self, image: Tensor) -> dict[str, Tensor]:
        red = image[0] > image[1] + 1
        rows, columns = red.any(1).nonzero()[:, 0], red.any(0).nonzero()[:, 0]
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        height, width = image.shape[-2:]
        corner = box.new_tensor([width - 4, height - 4, width, height])  # in the black, if there is any
        boxes, masks = torch.stack([box, corner]), torch.stack([red, ~red])[:, None].float()
        return {"boxes": boxes, "scores": box.new_tensor([0.9, 0.8]), "labels": torch.tensor([0, 0]), "masks": masks}

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


class SaysRed(Network):
    """A segmenter alike."""

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        red = (x[:, :1] - x[:, 1:2]).clamp(-3, 3) - 1
        return torch.cat([-red, red], 1)

    def get_classifier(self) -> nn.Module:
        return nn.Identity()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures beside their boxes (COCO) and their maps."""
    root = tmp_path_factory.mktemp("fitted")
    images, annotations = [], []
    for folder in ("boxes/images", "maps/images", "maps/masks"):
        (root / folder).mkdir(parents=True)
    for i, (name, ((width, height), (x1, y1, x2, y2))) in enumerate(BLOCKS.items()):
        pixels = np.full((height, width, 3), 90, np.uint8)
        pixels[y1:y2, x1:x2] = (250, 20, 20)
        mask = np.zeros((height, width), np.uint8)
        mask[y1:y2, x1:x2] = 1
        for folder in ("boxes", "maps"):
            Image.fromarray(pixels).save(root / folder / "images" / name)
        Image.fromarray(mask).save(root / "maps" / "masks" / name)
        images.append({"id": i, "file_name": f"images/{name}", "width": width, "height": height})
        outline = [x1, y1, x2, y1, x2, y2, x1, y2]
        entry = {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": [outline]}
        annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    document = {"images": images, "categories": [{"id": 1, "name": "block"}], "annotations": annotations}
    (root / "boxes" / "instances_train.json").write_text(json.dumps(document))
    (root / "maps" / "classes.txt").write_text("other\nblock")
    return root


def folder_of(drawn: Path, task: str) -> Path:
    return drawn / ("boxes" if task == "detect" else "maps")


def source_of(drawn: Path, task: str) -> Source:
    """All pictures."""
    return open_scored(str(folder_of(drawn, task)), None, wanted="boxes" if task == "detect" else "maps")


def recipe_of(task: str, data: Path, *values: str) -> Recipe:
    return load_recipe(f"{task}/lungs", ("data.workers=0", f"data.source={data}", "evaluate.batch_size=2", *values))


def scored(drawn: Path, task: str, size: Size, *values: str) -> tuple[Any, list[Batch]]:
    """The scores of all pictures at ``size`` by the pipeline of evaluation, and the batches that were shown."""
    recipe = recipe_of(task, folder_of(drawn, task), *values)
    source = source_of(drawn, task)
    learnt = task_for(task, recipe.objective, source)
    batches = list(scored_batches(recipe, learnt.scoring(), DecodedImages(source, None), size, CPU))
    batches = [replace(batch, views=tuple(view.clone() for view in batch.views)) for batch in batches]
    judge: Callable[..., Any] = partial(score_detections, masks=True) if task == "detect" else score_maps
    model: nn.Module = FindsRed() if task == "detect" else SaysRed()
    return judge(model, batches, HOW, len(source.classes)), batches


@pytest.mark.parametrize("size", [Size(48, 48), Size(48, 64), Size(64, 41)])
def test_boxes_are_scored_in_a_view_of_the_pictures_shape(drawn: Path, size: Size) -> None:
    scores, (batch,) = scored(drawn, "detect", size, "evaluate.warp=false")
    assert isinstance(scores, CocoScores)
    for view, found, (name, ((width, height), block)) in zip(batch.views[0], scores.found, BLOCKS.items(), strict=True):
        scale = min(size.height / height, size.width / width)
        rows, columns = round(height * scale), round(width * scale)
        shown = (view != view[:, -1:, -1:]).any(0)  # the last pixel is black
        assert shown[: rows - 1, : columns - 1].all(), name
        assert not shown[rows:].any()
        assert not shown[:, columns:].any()
        assert len(found) == 1, "what was found in the black is no answer"
        x1, y1, x2, y2 = block
        assert found.boxes[0].tolist() == pytest.approx([x1, y1, x2, y2], abs=ABOUT)
        in_view = FindsRed().of(view)["boxes"][0].tolist()
        assert in_view == pytest.approx([side * scale for side in block], abs=1)
    assert scores.boxes.ap(overlap=0.5) == pytest.approx(1)
    assert scores.masks is not None
    assert scores.masks.ap(overlap=0.5) == pytest.approx(1)


def test_a_recipe_that_warps_shows_what_it_showed(drawn: Path) -> None:
    scores, (batch,) = scored(drawn, "detect", Size(48, 48))
    for view, (_, ((width, height), block)) in zip(batch.views[0], BLOCKS.items(), strict=True):
        x, y = 48 / width, 48 / height
        x1, y1, x2, y2 = block
        assert FindsRed().of(view)["boxes"][0].tolist() == pytest.approx([x1 * x, y1 * y, x2 * x, y2 * y], abs=1)
    assert [len(found) for found in scores.found] == [2, 2]  # no black, so that the corner is a wrong answer


def test_warped_from_a_size_on(drawn: Path) -> None:
    for side, warped in ((47, False), (48, True)):
        scores, _ = scored(drawn, "detect", Size(side, side), "evaluate.warp=48")
        assert [len(found) for found in scores.found] == [1 + warped] * 2


@pytest.mark.parametrize("size", [Size(48, 48), Size(48, 64)])
def test_maps_are_scored_without_the_black(drawn: Path, size: Size) -> None:
    scores, _ = scored(drawn, "segment", size, "evaluate.warp=false")
    for said, ((width, height), (x1, y1, x2, y2)) in zip(scores.maps, BLOCKS.values(), strict=True):
        assert said.shape == (height, width)
        rows, columns = said.any(1).nonzero()[0], said.any(0).nonzero()[0]
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == pytest.approx([x1, y1, x2, y2], abs=ABOUT)
    assert scores.miou > 0.9


def test_logits_of_a_coarse_grid_are_cut_between_positions() -> None:
    """40 px of 64 are shown: five of eight positions, and half of one at 36."""
    ramp = torch.arange(8.0).expand(1, 8, 8)
    for rows in (40, 36):
        geometry = Geometry(Size(2 * rows, 128), (0.0, 0.0, 2 * 64.0, 128.0), Size(64, 64))
        cut, part = shown_part(ramp.transpose(1, 2), geometry)
        assert part == Geometry(Size(2 * rows, 128), (0.0, 0.0, 2.0 * rows, 128.0), Size(rows, 64))
        assert cut.shape == (1, rows, 64)
        assert cut[0, rows - 1, 0] == pytest.approx((rows - 0.5) / 8 - 0.5)


def test_objects_in_the_black_go_and_masks_end_with_the_picture() -> None:
    geometry = Geometry(Size(20, 40), (0.0, 0.0, 40.0, 40.0), Size(20, 20))  # shown in the upper ten rows
    said = {
        "boxes": torch.tensor([[2.0, 3.0, 8.0, 14.0], [0.0, 11.0, 5.0, 19.0]]),
        "scores": torch.tensor([0.4, 0.9]),
        "labels": torch.tensor([1, 0]),
        "masks": torch.ones(2, 1, 20, 20),
    }
    found, part = shown_part(said, geometry)
    assert part == Geometry(Size(20, 40), (0.0, 0.0, 20.0, 40.0), Size(10, 20))
    assert found["boxes"].tolist() == [[2, 3, 8, 10]]
    assert (found["scores"].tolist(), found["labels"].tolist()) == ([pytest.approx(0.4)], [1])
    assert found["masks"].shape == (1, 1, 10, 20)
    assert shown_part(said, part)[0] is said


@pytest.mark.parametrize(("task", "tile"), [("detect", None), ("segment", None), ("segment", 40)])
def test_answers_are_in_the_pictures_pixels(drawn: Path, task: str, tile: int | None) -> None:
    """Alone and in tiles; a picture of 48 x 96 px has tiles of 40 x 40."""
    folder, source = folder_of(drawn, task), source_of(drawn, task)
    recipe = recipe_of(task, folder, "evaluate.warp=false")
    model: Network = FindsRed() if task == "detect" else SaysRed()
    named = tuple((name,) for name in source.classes)
    learnt: Any = task_for(task, recipe.objective, source)
    trained = TrainedModel("red", None, "none", recipe, named, model, CPU, learnt)
    for name, ((width, height), (x1, y1, x2, y2)) in BLOCKS.items():
        (answer,) = predict(trained, folder / "images" / name, size="48x56", tile=tile)
        if task == "detect":
            (found,) = answer.values["objects"]
            assert found["box"] == pytest.approx([x1, y1, x2, y2], abs=ABOUT)
        else:
            shares = {each["name"]: each["share"] for each in answer.values["classes"]}
            assert shares["block"] == pytest.approx((x2 - x1) * (y2 - y1) / (width * height), abs=0.03)


def test_the_line_says_how_pictures_are_shown(drawn: Path) -> None:
    told = [
        describe_preprocessing(recipe_of("detect", drawn / "boxes", f"evaluate.warp={warp}"))
        for warp in ("false", "true", "100")
    ]
    assert told[0].startswith("as large as fits into the size, black beyond; ")
    assert told[1].startswith("warped to the size; ")
    assert told[2].startswith("as large as fits into the size, black beyond, from 100 px on warped to the size; ")
