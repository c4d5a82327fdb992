"""What a report shows of a detector: its classes, precision and recall, what was taken for what, truth and answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from anyres.evaluation.box_confusion import BACKGROUND, box_confusion
from anyres.evaluation.coco import ClassRow, CocoScores
from anyres.evaluation.page import PageTable, Section
from anyres.evaluation.plots.heatmap import heat_map
from anyres.evaluation.plots.object_sizes import object_sizes_png
from anyres.evaluation.plots.objects import truth_and_answer
from anyres.evaluation.plots.precision_recall import precision_recall_png
from anyres.flow import Size, SizeResult

SHOWN = 6  # pictures, those answered worst
NBSP, DASH = "\N{NO-BREAK SPACE}", "\N{EN DASH}"


def detection_sections(
    scores: CocoScores, classes: Sequence[str], size: Size, pixels: Callable[[int], Tensor]
) -> list[Section]:
    """Each class's figures, precision against recall, the confusion, and truth beside answer of the pictures answered
    worst. ``pixels``: of a picture by its position, uint8 (c, h, w)."""
    rows = scores.worst(classes, 20)
    masked = scores.masks is not None
    columns = ["class", "objects", f"box AP{NBSP}%", "AP50", *(["mask AP"] if masked else [])]
    columns += ["small", "medium", "large", f"precision{NBSP}%", f"recall{NBSP}%"]
    table = PageTable("The classes, the worst first", columns, [_cells(row, masked) for row in rows])
    sure = f"{100 * scores.best_score:.0f}{NBSP}%"
    lead = (
        "All in pixels of the pictures, whatever size the model saw. Precision and recall are of boxes with a score of "
        f"{sure} or more, where F1 is highest on these pictures; a box is right where it overlaps its object by half."
    )
    curves = precision_recall_png(scores.boxes, classes), precision_recall_png(scores.boxes, classes, dark=True)
    alt = "Precision against recall, a line for each class."
    made = [Section(f"Class by class, at {size} px", lead, (table,), curves, alt, anchor="classes")]
    confused = box_confusion(scores, classes)
    names, _ = confused.matrix()
    other = "other" if BACKGROUND in names else BACKGROUND  # nothing was found where nothing is
    light, dark = heat_map(confused, other=other), heat_map(confused, dark=True, other=other)
    if light and dark:
        lead = (
            f"Boxes of {sure} or more. In the row of background, what was found where nothing is; in its column, "
            "objects that were not found."
        )
        alt = "A row for each class, colored where its objects went."
        made.append(Section(f"Taken for what, at {size} px", lead, (), (light, dark), alt, anchor="confusion"))
    worst = np.argsort([scores.of_picture(place) for place in range(scores.n)], kind="stable")[:SHOWN].tolist()
    panels = [(pixels(int(scores.index[i])), scores.truths[i], scores.found[i].above(scores.best_score)) for i in worst]
    drawn = truth_and_answer(panels, classes)
    told = ", ".join(f"{100 * scores.of_picture(i):.0f}" for i in worst)
    lead = f"The {len(worst)} pictures answered worst: truth, answer. Their F1, from the left and the top: {told} %."
    alt = "Pictures with the true objects, and beside them with those answered."
    made.append(Section(f"Truth and answer, at {size} px", lead, (), (drawn, drawn), alt, anchor="pictures"))
    return made


def object_size_sections(points: Sequence[SizeResult]) -> list[Section]:
    """Box AP by the size of objects, over all sizes measured; [] where there is nothing to compare."""
    light, dark = object_sizes_png(points), object_sizes_png(points, dark=True)
    if light is None or dark is None:
        return []
    lead = "Small objects are what more pixels are paid for. Sizes of objects are those in the picture, as COCO has it."
    alt = "Box AP against image size, a line each for small, medium and large objects."
    return [Section("Small and large objects", lead, (), (light, dark), alt, anchor="object_sizes")]


def _cells(row: ClassRow, masked: bool) -> list[str]:
    shares = [row.box_ap, row.box_ap50, *([row.mask_ap] if masked else [])]
    shares += [row.small, row.medium, row.large, row.precision, row.recall]
    return [row.name, f"{row.objects:,}", *(DASH if math.isnan(share) else f"{100 * share:.1f}" for share in shares)]
