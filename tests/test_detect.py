"""Boxes and masks, by the command line: trained, scored in the pictures' own pixels, picked, asked, drawn, resumed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from faster_coco_eval.core.mask import decode as decode_mask
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from safetensors.torch import load_file

from anyres.config import UserError
from anyres.data.annotations.annotated import Rules
from anyres.data.annotations.tiles import tiles_of
from anyres.data.decode import decode
from anyres.data.drawn_sources import Drawn, open_scored, open_split
from anyres.data.sources import Source
from anyres.flow import Objects, Record, Rle, Size
from anyres.recipe import load_recipe
from anyres.runs.opened import build_model, open_run
from anyres.runs.predict import predict
from anyres.runs.train import train_run
from anyres.tasks import task_for
from tests.command import anyres, refused
from tests.runs import Run, differences, forget_the_end, listening
from tests.test_check import PADDLE, unpacked

CLASSES = ("block", "disc")
TINY = (
    "model.dims=[16,32,64,64]",
    "model.depths=[1,1,1,1]",
    "head.width=32",
    "head.hidden=128",
    "head.mask_convs=1",
    "head.anchors=[12,24,48,96,192]",
    "head.proposals=50",
    "head.taught=64",
    "views.sizes=[64]",
    "objective.views_per_step=null",
    "data.batch_size=4",
    "data.workers=0",
    "train.precision=fp32",
    "evaluate.sizes=[64,48x64]",
    "evaluate.batch_size=4",
)


def draw(root: Path, count: int = 6, masks: bool = True) -> Path:
    """Square pictures of two sizes in COCO's form, each with a red block and a blue disc, but for the last, which is
    empty; the first is val."""
    rng = np.random.default_rng(3)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        width = height = (80, 96)[i % 2]
        picture = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
        x, y = (int(rng.integers(2, 12)) for _ in range(2))
        block, disc = (x, y, width // 2 - 6, y + 44), (width // 2 + 3, height - 50 - y, width - x, height - y - 10)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        center, radii = np.add(disc[:2], disc[2:]) / 2, np.subtract(disc[2:], disc[:2]) / 2
        around = (center + radii * np.stack([np.cos(angles), np.sin(angles)], 1)).reshape(-1).tolist()
        x1, y1, x2, y2 = block
        if i < count - 1 or count == 1:
            ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(230, 90, 60))
            ImageDraw.Draw(picture).ellipse(disc, fill=(70, 110, 240))
            for number, (box, outline) in enumerate(((block, [x1, y1, x2, y1, x2, y2, x1, y2]), (disc, around)), 1):
                entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": i, "category_id": number, "iscrowd": 0}
                entry["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                annotations.append(entry | ({"segmentation": [outline]} if masks else {}))
        picture.save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"images/{i}.png", "width": width, "height": height})
    named = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    for split, chosen in (("val", images[:1]), ("train", images[1:])):
        some = [entry for entry in annotations if entry["image_id"] in {image["id"] for image in chosen}]
        document = {"images": chosen, "categories": named, "annotations": some}
        (root / f"instances_{split}.json").write_text(json.dumps(document))
    return root


class Detected(NamedTuple):
    """A finished run on drawn pictures, those, and its recipe's values."""

    folder: Path
    data: Path
    values: tuple[str, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Detected:
    root = tmp_path_factory.mktemp("detect")
    data = draw(root / "set")
    values = ("train.epochs=110", "train.eval_every=110", "train.checkpoint_every=102", "augment.crop_scale=[1,1]")
    values += (
        "augment.crop_ratio=[1,1]",
        "optim.lr=3e-3",
        "optim.weight_decay=0",
        "optim.warmup_epochs=3",
        "train.ema_decay=null",
        "augment.flip=0",
        "train.keep=last",
        "augment.brightness=0",
        "augment.contrast=0",
        "train.log_every=1",
    )
    values = (*TINY, *values, f"data.source={data}")
    answer = anyres("train", "detect/lungs", *values, "--out", root / "run")
    assert answer.code == 0, answer.err
    return Detected(root / "run", data, values)


def test_four_pictures_are_learnt_and_scored_in_their_own_pixels(run: Detected) -> None:
    answer = anyres("eval", run.folder, "--data", run.data, "--split", "train", "--json", "-", "--sizes", "64")
    assert answer.code == 0, answer.err
    (point,) = json.loads(answer.out)["points"]
    assert point["box_ap"] > 0.9
    assert point["mask_ap50"] > 0.9
    assert point["box_ap_low"] <= point["box_ap"] <= point["box_ap_high"]
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    heads = ("objectness", "proposals", "classes", "boxes", "masks")
    assert {f"{head}/64" for head in heads} == {key for key in steps[0] if "/" in key}
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][f"{head}/64"] for head in heads), rel=1e-4)


def test_first_blocks_stay_as_they_were_and_later_layers_learn_faster(run: Detected, tmp_path: Path) -> None:
    values = (*run.values, f"weights={run.folder}", "train.epochs=2", "optim.warmup_epochs=0", "optim.layer_decay=0.5")
    answer = anyres("train", "detect/lungs", *values, "train.freeze_blocks=1", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    before, after = (load_file(folder / "model.safetensors") for folder in (run.folder, tmp_path / "run"))
    moved = {
        key.removeprefix("backbone.bottom_up."): (after[key] - before[key]).abs().mean()
        for key in after
        if key.startswith("backbone.bottom_up.") and after[key].is_floating_point()
    }
    assert all((distance == 0) == key.startswith(("stem.", "stage1.")) for key, distance in moved.items())
    assert 0 < 4 * moved["stage2.0.attn.q.weight"] < moved["stage4.0.attn.q.weight"]


def test_the_curve_has_ap_and_a_size_is_picked_by_it(run: Detected) -> None:
    rows = list(csv.DictReader((run.folder / "curve.csv").read_text().splitlines()))
    assert [(row["height"], row["width"]) for row in rows] == [("64", "64"), ("48", "64")]
    assert {"box_ap", "box_ap_low", "box_ap_high", "box_ap50", "mask_ap"} <= rows[0].keys()
    assert all(float(row["box_ap"]) <= float(row["box_ap50"]) for row in rows)
    picked = anyres("pick", run.folder, "--min-score", "0.05")
    assert picked.code == 0
    assert "box AP" in picked.out
    assert anyres("pick", run.folder, "--min-score", "1").code == 3


def test_predict_draws_an_overlay_and_tells_boxes(run: Detected, tmp_path: Path) -> None:
    picture = run.data / "images" / "1.png"
    answer = anyres("predict", run.folder, picture, "--draw", tmp_path / "drawn", "--json", "-", "--threshold", "0.3")
    assert answer.code == 0, answer.err
    objects = json.loads(answer.out)["images"][0]["objects"]
    truth = json.loads((run.data / "instances_train.json").read_text())["annotations"][:2]
    best = {each["name"]: each for each in reversed(objects)}
    assert set(best) == set(CLASSES)
    for entry in truth:
        x, y, wide, high = entry["bbox"]
        found = best[CLASSES[entry["category_id"] - 1]]
        assert found["box"] == pytest.approx([x, y, x + wide, y + high], abs=6)
        assert found["mask"]["size"] == [96, 96]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["1.overlay.png"]
    with Image.open(tmp_path / "drawn" / "1.overlay.png") as over:
        assert over.size == (96, 96)
    none = anyres("predict", run.folder, picture, "--json", "-", "--threshold", "1")
    assert json.loads(none.out)["images"][0]["objects"] == []


def test_a_large_picture_is_told_in_tiles_as_a_coco_dataset(run: Detected, tmp_path: Path) -> None:
    pictures = [Image.open(run.data / "images" / f"{i}.png") for i in (1, 3)]
    scene = Image.new("RGB", (192, 96))
    for place, each in enumerate(pictures):
        scene.paste(each, (96 * place, 0))
    scene.save(tmp_path / "scene.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = (tmp_path / "broken.png", tmp_path / "scene.png")
    answer = anyres(
        "predict", run.folder, *files, "--tile", "96", "--threshold", "0.5", "--json", tmp_path / "coco.json"
    )
    assert answer.code == 2  # for the file that is no picture
    with contextlib.redirect_stdout(io.StringIO()):
        said = COCO(str(tmp_path / "coco.json"))
    (image,) = [image for image in said.loadImgs(said.getImgIds()) if "error" not in image]
    assert (image["file_name"], image["width"], image["height"]) == (str(files[1]), 192, 96)
    found = said.loadAnns(said.getAnnIds(imgIds=[image["id"]]))
    truth = json.loads((run.data / "instances_train.json").read_text())["annotations"]
    for i in (1, 3):
        for entry in (entry for entry in truth if entry["image_id"] == i):
            x, y, wide, high = entry["bbox"]
            close = [
                one
                for one in found
                if one["category_id"] == entry["category_id"]
                and one["bbox"] == pytest.approx([x + 48 * (i - 1), y, wide, high], abs=8)
            ]
            assert len(close) == 1
            assert decode_mask(close[0]["segmentation"]).sum() == close[0]["area"]


def test_an_interrupted_run_continues_bit_for_bit(run: Detected, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    forget_the_end(tmp_path / "run")
    with listening() as said:
        train_run(load_recipe("detect/lungs", run.values), tmp_path / "run", report=False)
    assert "continuing from step 102 of 110" in said
    assert differences(run.folder, tmp_path / "run") == []


ODD = [(32, 32), (33, 64), (97, 163), (225, 193), (353, 640)]


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_any_size_is_answered_in_the_pictures_own_pixels(run: Detected, kind: str) -> None:
    """From one stride on, with remainders of one pixel, of a picture whose sides have nothing to do with the size."""
    trained = open_run(run.folder)
    if kind == "retinanet":
        head = {**trained.recipe.head, "kind": kind, "min_score": 0.0}
        trained = replace(trained, model=build_model(replace(trained.recipe, head=head), trained.task).eval())
    picture = torch.randint(0, 256, (3, 61, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for height, width in ODD:
        (answer,) = predict(trained, picture, size=Size(height, width), threshold=0.0)
        objects = answer.values["objects"]
        assert objects or kind == "mask_rcnn"
        assert all(0 <= x1 < x2 <= 150 and 0 <= y1 < y2 <= 61 for x1, y1, x2, y2 in (each["box"] for each in objects))


SCALES = ("head.kind=retinanet", "views.sizes=[65x33,48]", "objective.views_per_step=1", "train.epochs=3")


@pytest.mark.timeout(420)
def test_two_processes_learn_and_score_as_one(tmp_path: Path) -> None:
    """RetinaNet draws no samples, so the sums are the same; the one val picture is of one process alone."""
    data, made = draw(tmp_path / "set"), []
    for count in (1, 2):
        words = ("train", "detect/lungs", *TINY, "train.log_every=1", "train.eval_every=3", *SCALES)
        Run(data, tmp_path / str(count), "augment.crop_scale=[0.5,1]", processes=count, words=words).start().wait()
        lines = [json.loads(line) for line in (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()]
        made.append([(line["step"], line.get("loss", line.get("val/box_ap"))) for line in lines])
    assert [step for step, _ in made[0]] == [step for step, _ in made[1]] == [0, 1, 2, 2]
    assert [value for _, value in made[0]] == pytest.approx([value for _, value in made[1]], rel=1e-4)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """paddlelabel's pictures, beside their labels in each form; fetched and checked where they are not in the cache."""
    return unpacked(PADDLE.read(), tmp_path_factory.mktemp("samples"))


@pytest.mark.builtin
def test_photographs_with_wrong_sizes_are_named_and_the_others_learnt_from(samples: Path, tmp_path: Path) -> None:
    """The files of fruit say one size for pictures of four others, so that nothing says what is right; YOLO's shares
    say no size."""
    data = samples / "fruit" / "coco"
    line = "as train.json (photo image/2.jpeg): the file says 756x1008, the picture is 640x569"
    checked = anyres("check", data, "--task", "detect", "--quick", "--out", tmp_path / "check")
    assert checked.code == 2
    assert line in checked.err
    words = ("detect/lungs", *TINY, "head.kind=retinanet", "train.epochs=1", "views.sizes=[65]", "evaluate.sizes=[64]")
    assert line in refused("train", *words, "--data", data, "--out", tmp_path / "none")
    answer = anyres("train", *words, "--data", samples / "fruit" / "yolo", "--out", tmp_path / "fruit")
    assert answer.code == 0, answer.err
    assert "box_ap" in (tmp_path / "fruit" / "curve.csv").read_text()
    values = (*words[1:], f"data.source={samples / 'bear' / 'coco'}")
    with listening() as said:
        train_run(load_recipe("detect/lungs", values), tmp_path / "bear", report=False)
    assert any("held-out box_ap" in line for line in said)


def test_negatives_are_kept_or_dropped_and_counted(tmp_path: Path) -> None:
    data = str(draw(tmp_path / "set", 6))
    kept = open_split(data, "train", wanted="boxes")
    full = open_split(data, "train", wanted="boxes", how=Drawn(Rules(drop_empty=True)))
    empty = {r.name for r in kept.records if isinstance(r.target, Objects) and not len(r.target)}
    assert empty == {"images/5.png"}
    assert {record.name for record in full.records} == {record.name for record in kept.records} - empty
    assert any("1 pictures without an object: kept as negatives" in note for note in kept.notes)
    scored = open_scored(data, "train", wanted="boxes", how=Drawn(Rules(drop_empty=True)))
    assert scored.records == kept.records


def test_tiles_cover_a_picture_and_have_its_pixels_and_objects(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (70, 101, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = np.zeros((70, 101), np.uint8)
    mask[20:60, 40:60] = 1
    boxes = np.array([[40, 20, 60, 60], [0, 0, 10, 10], [48, 0, 58, 10]], np.float32)
    target = Objects(boxes, np.array([1, 0, 0]), (Rle.of(mask), None, None), np.zeros(3, bool), Size(70, 101))
    tiles = tiles_of(Record(tmp_path / "a.png", target, "a.png"), 48)
    assert [tile.name for tile in tiles] == ["a.png [0:70, 0:50]", "a.png [0:70, 50:101]"]
    for tile, left, right in zip(tiles, (0, 50), (50, 101), strict=True):
        assert np.array_equal(decode(tile).image.permute(1, 2, 0).numpy(), pixels[:, left:right])
        assert isinstance(tile.target, Objects)
        assert isinstance(tile.target.shapes[0], Rle)
        assert np.array_equal(tile.target.shapes[0].mask(), mask[:, left:right])
    first, second = (tile.target for tile in tiles)
    assert first.boxes.tolist() == [[40, 20, 50, 60], [0, 0, 10, 10], [48, 0, 50, 10]]
    assert second.boxes.tolist() == [[0, 20, 10, 60], [0, 0, 8, 10]]
    assert (first.crowd.tolist(), second.crowd.tolist()) == ([False, False, True], [False, False])
    small = Record(tmp_path / "a.png", target, "a.png")
    assert tiles_of(small, 70) == (small,)


def test_classes_are_counted_by_name_and_sides_change_in_a_mirror(run: Detected, tmp_path: Path) -> None:
    task = task_for("detect", load_recipe("detect/lungs").objective, open_split(str(run.data), "train", wanted="boxes"))
    other = open_split(str(run.data), "train", wanted="boxes")
    swapped = Source(other.name, CLASSES[::-1], other.records, (), "train", "drawn")
    fitted = task.fit(swapped, ())
    assert fitted.classes == CLASSES
    for before, after in zip(other.records, fitted.records, strict=True):
        assert isinstance(before.target, Objects)
        assert isinstance(after.target, Objects)
        assert after.target.classes.tolist() == [1 - label for label in before.target.classes.tolist()]
    with pytest.raises(UserError, match="a class 'blok', which the model does not know; did you mean 'block'"):
        task.fit(Source(other.name, ("blok",), (), (), "train", "drawn"), ())


WRONG = [
    (["objective.consistency=smooth_l1"], "set objective.consistency=none"),
    (["mix.mixup=0.8"], "no classes to mix"),
    (["train.trainable=head"], "set train.trainable=all"),
    (["head.widht=3"], "did you mean 'width'"),
    (["head.width=wide"], "head.width: Input should be a valid integer"),
    (["head.num_classes=3"], "decided by the annotations: leave it out"),
    (["head.kind=maskrcnn"], "head.kind: Input should be 'mask_rcnn', 'faster_rcnn'"),
    (["head.anchors=[8,16]"], "anchors are five sides"),
    (["data.max_faulty=2"], "is a share: 0 to 1"),
    (["data.tile=0"], "data.tile=0 must be"),
]


@pytest.mark.parametrize(("values", "line"), WRONG)
def test_what_has_no_meaning_for_objects_is_refused_at_once(values: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("detect/lungs", values)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_line(run: Detected, tmp_path: Path) -> None:
    again = ("train", "detect/lungs", *TINY, "--out", tmp_path / "run")
    assert "takes images of 32 px and more a side, not 24x24 px" in refused(
        *again, "--data", run.data, "views.sizes=[24]"
    )
    assert "takes images of 32 px and more a side" in refused("eval", run.folder, "--sizes", "16")
    assert "was trained for task=detect" in refused("bench", "model", run.folder, "--sizes", "64")
    assert "--cascade" in refused("predict", run.folder, run.data / "images" / "0.png", "--cascade")
    plain = draw(tmp_path / "plain", 4, masks=False)
    assert "set head.kind=faster_rcnn" in refused(*again, "--data", plain)
    for split, line in (("train", "there is no object to learn"), ("val", "nothing in the val split to score by")):
        data = draw(tmp_path / split, 4)
        document = json.loads((data / f"instances_{split}.json").read_text())
        (data / f"instances_{split}.json").write_text(json.dumps(document | {"annotations": []}))
        assert line in refused(*again, "--data", data)
