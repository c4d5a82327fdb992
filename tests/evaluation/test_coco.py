"""COCO's average precision against pycocotools, its interval, classes, pictures, confusion, and several processes."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core.mask import decode
from jaxtyping import Float32
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from anyres.config import UserError
from anyres.data.annotations.targets import OwnObjectReader
from anyres.data.fit import fit_view
from anyres.data.geometry import whole
from anyres.evaluation.average_precision import AREAS, Matched, match
from anyres.evaluation.box_confusion import box_confusion
from anyres.evaluation.coco import CocoScores, PictureFacts, score_detections, write_class_table
from anyres.evaluation.confusion import write_confusions
from anyres.evaluation.detections import Detections, Truth, detections_of, placed
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.ragged import Picture, gather_pictures
from anyres.flow import Batch, Geometry, Objects, Polygons, Rle, Size
from anyres.tasks.detect import Detect
from tests.runs import SERVER, free_port

CPU = EvalSettings(torch.device("cpu"))
SIZE = Size(150, 160)


def boxes(rng: np.random.Generator, n: int, most: float = 120) -> Float32[np.ndarray, "n 4"]:
    corner, sides = rng.uniform(0, 30, (n, 2)), rng.uniform(3, most, (n, 2))
    return np.concatenate([corner, corner + sides], 1).astype(np.float32).clip(0, 149)


def masks(rng: np.random.Generator, n: int) -> tuple[Rle, ...]:
    return tuple(Rle.of(rng.random((12, 10)) < rng.uniform(0.3, 0.9)) for _ in range(n))


def a_set(
    rng: np.random.Generator, pictures: int, classes: int, many: int = 8, outlines: bool = False, ties: bool = True
) -> tuple[list[Truth], list[Detections]]:
    """Random objects, a fifth of them crowds, and detections, some near an object, with ``ties`` among the scores."""
    truths, found = [], []
    for i in range(pictures):
        there, said = (int(rng.integers(0, most)) if i else int(rng.integers(0, 2)) for most in (6, many))
        box = boxes(rng, there)
        near = box + rng.normal(0, 3, box.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        every = np.concatenate([near, boxes(rng, said)])
        kinds = rng.integers(0, classes, there)
        areas = (box[:, 2:] - box[:, :2]).prod(1).astype(np.float64)
        drawn, answered = masks(rng, there) if outlines else None, masks(rng, len(every)) if outlines else None
        size = Size(12, 10) if outlines else SIZE
        truths.append(Truth(box, kinds, rng.random(there) < 0.2, areas, drawn, size))
        scores = (rng.integers(1, 12, len(every)) / 16 if ties else rng.random(len(every))).astype(np.float32)
        said_kinds = np.concatenate([kinds, rng.integers(0, classes, said)])
        found.append(Detections(every, scores, said_kinds, answered))
    return truths, found


def oracle(
    truths: Sequence[Truth], found: Sequence[Detections], classes: int, kind: str = "bbox", most: int = 100
) -> Any:
    """pycocotools' precision (t, 101, k, 4)."""
    made = COCO()
    made.dataset = {
        "info": {},
        "images": [{"id": i, "height": t.of_size.height, "width": t.of_size.width} for i, t in enumerate(truths)],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": [],
    }
    results = []
    for i, (truth, said) in enumerate(zip(truths, found, strict=True)):
        for j in range(len(truth)):
            x1, y1, x2, y2 = truth.boxes[j].astype(float).tolist()
            made.dataset["annotations"].append(
                {
                    "id": len(made.dataset["annotations"]) + 1,
                    "image_id": i,
                    "category_id": int(truth.classes[j]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(truth.areas[j]),
                    "iscrowd": int(truth.crowd[j]),
                    **({"segmentation": runs(truth.masks[j])} if truth.masks else {}),
                }
            )
        for j in range(len(said)):
            x1, y1, x2, y2 = said.boxes[j].astype(float).tolist()
            place = {"segmentation": runs(said.masks[j])} if said.masks else {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            results.append(
                {"image_id": i, "category_id": int(said.classes[j]), "score": float(said.scores[j]), **place}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
        answered = made.loadRes(results) if results else COCO()
        if not results:
            answered.dataset = {**made.dataset, "annotations": []}
            answered.createIndex()
        evaluation = COCOeval(made, answered, kind)
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 2]


def runs(mask: Rle) -> dict[str, Any]:
    made: dict[str, Any] = coco_masks.encode(np.asfortranarray(mask.mask()))
    return made


def differences(matched: Matched, expected: Any) -> float:
    """The largest between AP as we and as pycocotools' summary works it out, over areas, overlaps and classes."""
    pairs = []
    for area in range(4):
        for overlap, chosen in ((None, slice(None)), (0.5, slice(0, 1)), (0.75, slice(5, 6))):
            values = expected[chosen, :, :, area]
            known = values[values > -1]
            pairs.append((matched.ap(AREAS[area], overlap), known.mean() if known.size else math.nan))
            each = [v.mean() if (v := values[:, :, c]).min() > -1 else math.nan for c in range(values.shape[2])]
            pairs += list(zip(matched.per_class(AREAS[area], overlap).tolist(), each, strict=True))
    assert all(math.isnan(a) == math.isnan(b) for a, b in pairs), pairs
    return max((abs(a - b) for a, b in pairs if not math.isnan(a)), default=0.0)


def test_ap_is_pycocotools_on_200_random_sets() -> None:
    rng = np.random.default_rng(7)
    worst, some = 0.0, 0
    for number in range(200):
        kind, most = ("segm", 100) if number % 10 == 9 else ("bbox", 200 if number % 50 == 3 else 100)
        pictures, many = (1, 230) if number % 50 == 3 else (1, 130) if number % 50 == 13 else (2, 7)
        classes = 1 if many > 100 else 3
        truths, found = a_set(rng, pictures + 1, classes, many, kind == "segm")
        if number % 25 == 0:
            found = [each.part(np.zeros(0, np.int64)) for each in found]
        expected = oracle(truths, found, classes, kind, most)
        some += bool((expected > 0).any())
        worst = max(worst, differences(match(truths, found, classes, kind, most), expected))  # type: ignore[arg-type]
    assert worst < 1e-9
    assert some > 150


def test_an_interval_resamples_pictures_and_accumulates_again() -> None:
    rng = np.random.default_rng(1)
    truths, found = a_set(rng, 9, 2, ties=False)
    matched = match(truths, found, 2)
    times = rng.multinomial(9, np.full(9, 1 / 9), 4)
    drawn = matched.drawn(times)
    for row, ours in zip(times, drawn, strict=True):
        repeated = np.repeat(np.arange(9), row)
        expected = oracle([truths[i] for i in repeated], [found[i] for i in repeated], 2)[..., 0]
        known = expected.min(1) > -1
        assert np.abs(ours[known] - expected.mean(1)[known]).max() < 1e-12
        assert np.isnan(ours[~known]).all()
    low, high = matched.interval()
    assert low < matched.ap() < high
    assert (low, high) == match(truths, found, 2).interval()
    assert matched.interval(0.5) != (low, high)


def one(box: Sequence[float], kind: int = 0, crowd: bool = False, shape: Any = None) -> Objects:
    return Objects(np.array([box], np.float32), np.array([kind]), (shape,), np.array([crowd]), Size(40, 60))


class Says(nn.Module):
    """Answers what it was told, picture after picture."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        assert not self.training
        return [self.answers.pop(0) for _ in x]


def answer(box: Sequence[float], score: float = 0.9, kind: int = 0) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([box]), "scores": torch.tensor([score]), "labels": torch.tensor([kind])}


def batch_of(*objects: Objects, size: Size = Size(32, 32), first: int = 0) -> Batch:
    """Pictures of 40 x 60 px shown whole and unstretched, at about half their size, above a black edge."""
    view = fit_view(whole(torch.zeros(3, 40, 60, dtype=torch.uint8)), size)
    reader = OwnObjectReader()
    targets = reader.collate([[reader.view(each, view.geometry)] for each in objects])
    index = torch.arange(first, first + len(objects))
    return Batch((view.pixels[None].float().expand(len(objects), -1, -1, -1),), targets, index)


def test_a_detector_is_scored_in_the_pixels_of_the_picture() -> None:
    scale = 32 / 60
    beyond = {  # the second box lies in the black edge below the picture
        "boxes": torch.tensor([[6 * scale, 3 * scale, 30 * scale, 21 * scale], [2.0, 25.0, 8.0, 31.0]]),
        "scores": torch.tensor([0.6, 0.9]),
        "labels": torch.tensor([1, 1]),
    }
    model = Says([beyond, answer([0.0, 0.0, 9.0, 9.0], 0.3)]).train()
    scores = score_detections(model, [batch_of(one([6, 3, 30, 21], 1), one([50, 30, 60, 40]))], CPU, 2)
    assert model.training
    assert np.abs(scores.found[0].boxes - [[6, 3, 30, 21]]).max() < 0.4  # 40 px become 21 1/3, of which 21 are shown
    made = scores.estimates()
    assert made["box_ap50"].value == pytest.approx(0.5)  # all of one class, nothing of the other
    assert "mask_ap" not in made
    assert made["box_ap_small"].value == pytest.approx(0.5)
    assert math.isnan(made["box_ap_large"].value)
    assert scores.best_score == pytest.approx(0.6)
    assert scores.facts == (PictureFacts(1, 1, 1), PictureFacts(1, 0, 0))
    assert [scores.of_picture(i) for i in (0, 1)] == [1.0, 0.0]


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="no image to score"):
        score_detections(Says([]), [], CPU, 2)
    with pytest.raises(UserError, match="no object to score"):
        score_detections(Says([answer([0, 0, 1, 1])]), [batch_of(one([6, 3, 30, 21], crowd=True))], CPU, 2)
    broken = answer([0, 0, math.nan, 1])
    with pytest.raises(UserError, match="not finite for 1 images, the first at position 4"):
        score_detections(Says([broken]), [batch_of(one([6, 3, 30, 21]), first=4)], CPU, 2)


def test_masks_come_back_to_the_picture_and_are_scored() -> None:
    triangle = Polygons((np.array([[4, 4], [56, 4], [4, 36]], np.float32),))
    truth = Truth.of(one([4, 4, 56, 36], shape=triangle), masks=True)
    assert truth.masks is not None
    assert truth.areas[0] == truth.masks[0].mask().sum() == pytest.approx(52 * 32 / 2, rel=0.06)
    small = torch.nn.functional.interpolate(torch.from_numpy(truth.masks[0].mask())[None, None].float(), (80, 120))
    said = answer([8.0, 8.0, 112.0, 72.0]) | {"masks": torch.nn.functional.pad(small, (0, 0, 0, 40))}
    batch = batch_of(one([4, 4, 56, 36], shape=triangle), size=Size(120, 120))
    scores = score_detections(Says([said]), [batch], CPU, 1, masks=True)
    found = scores.found[0].masks
    assert found is not None
    assert found[0].of_size == Size(40, 60)
    assert (found[0].mask() == truth.masks[0].mask()).all()
    assert scores.estimates()["mask_ap"].value == 1
    entry = scores.found[0].coco("photo", [7])[0]
    assert entry["category_id"] == 7
    assert (decode(entry["segmentation"]) == truth.masks[0].mask()).all()


def test_a_part_of_a_mask_has_the_runs_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    for share in (0.0, 0.3, 0.9, 1.0):
        for top, left, height, width in ((0, 0, 12, 9), (0, 3, 12, 4), (2, 1, 5, 6), (7, 8, 5, 1)):
            part = rng.random((height, width)) < share
            full = np.zeros((12, 9), bool)
            full[top : top + height, left : left + width] = part
            made = placed(part, top, left, Size(12, 9))
            assert (made.mask() == full).all()
            assert made.counts.tolist() == Rle.of(full).counts.tolist()


def test_an_empty_answer_is_no_detection() -> None:
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    made = detections_of(
        none | {"masks": torch.zeros(0, 1, 8, 8)}, Geometry(Size(8, 8), (0.0, 0.0, 8.0, 8.0), Size(8, 8))
    )
    assert len(made) == 0
    assert made.masks == ()
    assert made.coco(0) == []


def some_scores() -> CocoScores:
    """Two classes: one object right, one of another class, one not found, one box in a crowd, one in the void."""
    there = np.array([[0, 0, 20, 20], [30, 30, 50, 50], [60, 60, 90, 90], [100, 100, 140, 140]], np.float32)
    truth = Truth(there, np.array([0, 1, 1, 0]), np.array([0, 0, 0, 1], bool), np.full(4, 400.0), None, SIZE)
    said = np.array([[0, 0, 20, 19], [30, 30, 50, 50], [110, 110, 120, 120], [0, 60, 20, 80]], np.float32)
    found = Detections(said, np.array([0.5, 0.9, 0.8, 0.7], np.float32), np.array([0, 0, 0, 1]))
    nothing = Truth(there[:0], np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), None, SIZE)
    return CocoScores(np.array([3, 5]), (truth, nothing), (found, found.part(np.zeros(0, np.int64))), 3)


def test_the_confusion_has_background(tmp_path: Path) -> None:
    scores = some_scores()
    assert scores.best_score == pytest.approx(0.5)
    names, counts = box_confusion(scores, ("cat", "dog", "emu")).matrix()
    assert names == ("cat", "dog", "background")
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    path = write_confusions({Size(64, 64): box_confusion(scores, ("cat", "dog", "emu"))}, tmp_path)
    assert path.read_text().splitlines()[1:] == [
        "64,cat,cat,1",
        "64,dog,cat,1",
        "64,dog,background,1",
        "64,background,dog,1",
    ]
    assert [tuple(fact) for fact in scores.facts] == [(3, 3, 1), (0, 0, 0)]
    assert scores.of_picture(1) == 1


def test_classes_have_a_table(tmp_path: Path) -> None:
    scores = some_scores()
    path = write_class_table({Size(64, 64): scores}, ("cat", "dog", "emu"), tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["class"], row["objects"], row["recall"]) for row in rows] == [("cat", "1", "1.0"), ("dog", "2", "0.0")]
    assert float(rows[0]["precision"]) == 0.5
    assert float(rows[0]["box_ap50"]) == pytest.approx(0.5)
    written = Detect(classes=("cat", "dog", "emu")).write_tables({Size(64, 64): scores}, "", tmp_path)
    assert [file.name for file in written] == ["per_class.csv", "confusion.csv"]
    assert [row.name for row in scores.worst(("cat", "dog", "emu"))] == ["dog", "cat"]


def _ranked(rank: int, port: int, out: Path) -> None:
    """One of two processes: the first has three pictures, the other one of them again and, without boxes, a fourth."""
    import os
    from functools import partial

    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    from accelerate import Accelerator

    from anyres.training.parallel import gather_uneven

    accelerator = Accelerator(cpu=True)
    how = EvalSettings(torch.device("cpu"), gather=partial(gather_uneven, accelerator))
    own = pictures()[:3] if rank == 0 else [pictures()[0], pictures()[3]]
    torch.save([described(picture) for picture in gather_pictures(own, how)], out / f"{rank}.pt")
    accelerator.end_training()


def pictures() -> list[Picture]:
    truths, found = a_set(np.random.default_rng(5), 3, 2, outlines=True)
    empty = np.zeros(0, np.int64)
    nothing = truths[0].boxes[:0]
    truths.append(Truth(nothing, empty, empty.astype(bool), empty.astype(float), (), Size(5, 7)))
    found.append(found[0].part(empty))
    return [Picture(place, *both) for place, both in enumerate(zip(truths, found, strict=True))]


def described(picture: Picture) -> str:
    """Every number of a picture."""
    said = [picture.place, picture.truth.of_size]
    for each in (picture.truth, picture.found):
        for name, value in vars(each).items():
            plain = [mask.plain() for mask in value] if name == "masks" else np.asarray(value).tolist()
            said.append((name, plain))  # type: ignore[arg-type]
    return repr(said)


def test_two_processes_bring_their_pictures_together(tmp_path: Path) -> None:
    port = free_port()
    processes = [SERVER.Process(target=_ranked, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = list(map(described, pictures()))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [expected, expected]


def test_one_process_keeps_every_picture_once() -> None:
    own = pictures()
    assert list(map(described, gather_pictures([*own[1:], *own[:2]], CPU))) == list(map(described, own))
