import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anyres.evaluation.confusion import Confusion, confusion, write_tables
from anyres.evaluation.metrics import Scores, wilson
from anyres.evaluation.plots.heatmap import MOST_CLASSES, heat_map
from anyres.flow import Size
from anyres.tasks.classify import Classify

NAMES = ("ant", "bee", "cat", "dog")


def scores(pairs: list[tuple[int, int]]) -> Scores:
    """Images of the first class of each pair, taken for the second."""
    truth, taken = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    none = np.zeros(len(pairs), np.float32)
    return Scores(np.arange(len(pairs)), truth, taken, none, truth == taken, truth == taken, none)


def counted(pairs: list[tuple[int, int]]) -> Confusion:
    return confusion(scores(pairs), NAMES)


MIXED = [(0, 0)] * 8 + [(0, 1)] * 2 + [(1, 1)] * 3 + [(1, 0)] * 2 + [(3, 3)] * 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_it_is_the_matrix_that_a_loop_counts(pairs: list[tuple[int, int]]) -> None:
    dense = [[sum(pair == (t, p) for pair in pairs) for p in range(4)] for t in range(4)]
    found = counted(pairs)
    there = [t for t in range(4) if sum(dense[t])]
    names, matrix = found.matrix()
    assert names == tuple(NAMES[t] for t in there)
    other = [sum(dense[t][p] for p in range(4) if p not in there) for t in there]
    assert matrix[:, : len(there)].tolist() == [[dense[t][p] for p in there] for t in there]
    assert matrix[:, len(there) :].ravel().tolist() == (other if any(other) else [])
    assert [(c.name, c.n, c.correct) for c in found.per_class()] == [
        (NAMES[t], sum(dense[t]), dense[t][t]) for t in there
    ]
    assert sum(pair.count for pair in found.confused(99)) == sum(t != p for t, p in pairs)
    worst = [c.accuracy for c in found.worst(99)]
    assert worst == sorted(worst)
    assert 1.0 not in worst
    assert found.images.sum() == len(pairs)


def test_the_worst_come_first_with_their_intervals() -> None:
    found = counted(MIXED)
    assert [(c.name, c.accuracy) for c in found.worst()] == [("bee", 0.6), ("ant", 0.8)]
    assert (found.worst()[0].low, found.worst()[0].high) == wilson(3, 5)
    assert [(p.truth, p.taken_for, p.count, p.share) for p in found.confused()] == [
        ("bee", "ant", 2, 0.4),
        ("ant", "bee", 2, 0.2),
    ]
    assert Classify(NAMES).summary(scores(MIXED), Size(96, 64)) == [
        "worst classes at 96x64 px: bee 60.0 % of 5, ant 80.0 % of 10",
        "most often mistaken at 96x64 px: 2 bee for ant, 2 ant for bee",
    ]
    assert Classify(NAMES).summary(scores([(0, 0), (1, 1)]), Size(96, 96)) == []


def test_thousands_of_classes_need_no_square_of_memory() -> None:
    names = tuple(map(str, range(2_000_000)))
    found = confusion(scores([(1_999_999, 5), (7, 7)]), names)
    assert [(c.name, c.correct) for c in found.per_class()] == [("7", 1), ("1999999", 0)]
    assert found.matrix()[1].tolist() == [[1, 0, 0], [0, 0, 1]], "taken for a class without images: other"


def test_tables_hold_what_happened(tmp_path: Path) -> None:
    paths = write_tables({Size(96, 96): counted(MIXED), Size(64, 32): counted([(2, 3)])}, tmp_path / "new")
    assert [path.name for path in paths] == ["per_class.csv", "confusion.csv"]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size"], row["class"], row["n"], row["correct"]) for row in rows] == [
        ("96", "ant", "10", "8"),
        ("96", "bee", "5", "3"),
        ("96", "dog", "4", "4"),
        ("64x32", "cat", "1", "0"),
    ]
    assert [float(rows[0][key]) for key in ("accuracy", "low", "high")] == [0.8, *wilson(8, 10)]
    assert paths[1].read_text().splitlines() == [
        "size,class,taken_for,count",
        *("96,ant,ant,8", "96,ant,bee,2", "96,bee,ant,2", "96,bee,bee,3", "96,dog,dog,4", "64x32,cat,dog,1"),
    ]
    assert not list((tmp_path / "new").glob("*.part"))


@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_is_coloured_where_images_went(dark: bool) -> None:
    """Each cell's colour, found by its hue: as often as entries of the matrix are above nought."""
    drawn = heat_map(counted([(0, 0)] * 9 + [(1, 1)] * 9), dark=dark)
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    full = (np.abs(pixels - np.array([0x5A, 0xB4, 0xF0] if dark else [0, 0x67, 0xA8])).sum(-1)) < 12
    cell = (0.46 * 150) ** 2
    assert 1.7 * cell < full.sum() < 2.05 * cell
    rows, columns = np.nonzero(full)
    upper = rows < np.median(rows)
    assert columns[upper].mean() < columns[~upper].mean(), "the diagonal runs from the upper left"


def test_too_many_classes_have_no_picture() -> None:
    names = tuple(f"class number {i} with a long name" for i in range(MOST_CLASSES + 1))
    few = scores([(i, i) for i in range(MOST_CLASSES)] + [(0, MOST_CLASSES)])
    assert heat_map(confusion(few, names), "title") is not None
    assert heat_map(confusion(scores([(i, i) for i in range(MOST_CLASSES + 1)]), names)) is None
