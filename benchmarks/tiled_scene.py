"""A detector's AP on whole large pictures: seen at once, and in overlapping tiles of several sides.

    python benchmarks/tiled_scene.py runs/trees --data trees --split test --tiles 200,300,400 --sizes 256

A row for each size: box AP, its interval, AP50, the boxes told, and seconds a picture on this machine (one run, so
roughly).
0 among the tiles is the picture at once. `data.tile` of the recipe, which cuts pictures into pictures, is not used.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from anyres.data.decode import decode
from anyres.data.drawn_sources import open_scored
from anyres.data.sources import Source
from anyres.evaluation.coco import CocoScores, Detections, Truth
from anyres.evaluation.detections import detections_of
from anyres.evaluation.joined import merged
from anyres.flow import Objects, Record, Size, parse_sizes
from anyres.runs.opened import TrainedModel, open_model
from anyres.runs.tiles import tile_outputs


def found_on(model: TrainedModel, record: Record, size: Size, tile: int) -> Detections:
    """What the model finds on one picture, in tiles, or at once where ``tile`` is 0."""
    picture = decode(record, channels=3).image
    parts = tile_outputs(model, picture, size, tile or max(picture.shape[-2:]))
    return merged((detections_of(output, geometry), geometry) for output, geometry in parts)


def row(model: TrainedModel, source: Source, size: Size, tile: int) -> dict[str, Any]:
    """Scores in per cent on the pictures of ``source``, cut into tiles of this side or seen at once (0)."""
    targets = [record.target for record in source.records]
    truths = tuple(Truth.of(target) for target in targets if isinstance(target, Objects))
    start = time.perf_counter()
    found = tuple(found_on(model, record, size, tile) for record in source.records)
    seconds = (time.perf_counter() - start) / len(found)
    most = max(100, *map(len, found))
    scores = CocoScores(np.arange(len(found)), truths, found, len(model.task.classes), most).estimates()
    made: dict[str, Any] = {
        "tile": tile or "whole",
        "size": str(size),
        **{key: round(100 * scores[key].value, 1) for key in ("box_ap", "box_ap50")},
        "boxes": sum(map(len, found)),
        "seconds a picture": round(seconds, 2),
    }
    if len(found) > 1:
        made["box_ap interval"] = [round(100 * end, 1) for end in (scores["box_ap"].low, scores["box_ap"].high)]
    return made


def source_of(model: TrainedModel, data: str, split: str) -> Source:
    """Whole annotated pictures, with the model's classes."""
    return model.task.fit(open_scored(data, split, usual="test", wanted=model.task.wanted), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--tiles", default="0,400")
    parser.add_argument("--sizes", default="", help="what tiles are shown at; the recipe's sizes if not given")
    given = parser.parse_args()
    model = open_model(given.model)
    source = source_of(model, given.data, given.split)
    sizes = parse_sizes(given.sizes.split(",")) if given.sizes else model.recipe.views.parsed
    print(f"{len(source.records)} pictures of {source.name}, by {model.name}")
    for tile in map(int, given.tiles.split(",")):
        for size in sizes:
            print(row(model, source, size, tile), flush=True)


if __name__ == "__main__":
    main()
