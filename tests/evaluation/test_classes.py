import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyres.config import UserError
from anyres.data.sources import Source
from anyres.evaluation.classes import read_names, relabel
from anyres.evaluation.imagenet import imagenet_names
from anyres.flow import Record

FISH = (("n01440764", "tench"), ("n01443537", "goldfish"), ("n01484850", "great white shark"))
PLAIN = (("tench",), ("goldfish",), ("great, white shark",))


def source(*classes: str, targets: tuple[int, ...] = ()) -> Source:
    records = tuple(Record(b"", target, f"{i}.jpg") for i, target in enumerate(targets or range(len(classes))))
    return Source("shop", tuple(classes), records, (), "val")


FILES = {
    "plain.txt": ('tench\ngoldfish\n\n"great, white shark"\n', PLAIN),
    "bom.csv": ('\ufefftench\ngoldfish\n"great, white shark"', PLAIN),
    "two.csv": ("n01440764,tench\nn01443537, goldfish\nn01484850,great white shark\n", FISH),
    "index.csv": ('2,"great, white shark"\n0,tench\n1,goldfish\n', PLAIN),
    "list.json": (json.dumps(["tench", "goldfish", "great, white shark"]), PLAIN),
    "keras.json": (json.dumps({"1": FISH[1], "0": FISH[0], "2": FISH[2]}), FISH),
    "of_name.json": (json.dumps({"goldfish": 1, "great, white shark": 2, "tench": 0}), PLAIN),
}


@pytest.mark.parametrize("name", FILES)
def test_lists_of_names_as_people_have_them(name: str, tmp_path: Path) -> None:
    text, names = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "empty.txt": "\n",
        "gap.json": '{"0": "a", "2": "b"}',
        "twice.csv": "0,a\n0,b\n",
        "number.json": "[1, 2]",
        "word.json": '"a"',
        "broken.json": "[",
        "nameless.json": '[["a"], []]',
        "words.json": '{"a": "b"}',
    }.items(),
)
def test_files_that_are_no_list_of_names(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is no list of class names: "):
        read_names(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=f"{name} is no list of class names: "):
        read_names(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        read_names(tmp_path / "none.txt")


@given(st.permutations(range(6)), st.integers(1, 6))
def test_every_image_keeps_its_class(order: list[int], kept: int) -> None:
    """Whatever the order of the weights, and however few of their classes the data has."""
    own = tuple(sorted(f"class {i}" for i in order[:kept]))
    given = source(*own, targets=(*range(kept), -1))
    counted = relabel(given, tuple((f"class {i}",) for i in order))
    assert [counted.classes[r.target] for r in counted.records[:-1]] == list(own)
    assert counted.records[-1].target == -1
    assert len(counted.classes) == 6
    assert [r.name for r in counted.records] == [r.name for r in given.records]
    assert ("all 6 can be predicted" in " ".join(counted.notes)) == (kept < 6)


def test_any_name_of_a_class_fits_and_the_last_is_shown() -> None:
    for own in (("goldfish", "tench"), ("n01440764", "n01443537")):
        counted = relabel(source(*own), FISH)
        assert counted.classes == ("tench", "goldfish", "great white shark")
        assert sorted(r.target for r in counted.records) == [0, 1]


def test_without_names_the_sorted_classes_are_the_order_if_they_are_as_many() -> None:
    given = source("a", "b")
    assert relabel(given, ((), ())) is given
    with pytest.raises(UserError, match="shop has 2 classes and the weights 3: give --classes a file"):
        relabel(given, ((), (), ()))


def test_classes_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(UserError, match="'tenche' is not among the classes of the model; did you mean 'tench'"):
        relabel(source("goldfish", "tenche"), FISH)
    with pytest.raises(UserError, match="'crane' stands for several classes"):
        relabel(source("bird", "crane"), (("crane",), ("bird",), ("crane",)))
    with pytest.raises(UserError, match="two classes that are one"):
        relabel(source("n01440764", "tench"), FISH)


def test_imagenet_is_called_as_timm_calls_it() -> None:
    from timm.data import ImageNetInfo

    info, names = ImageNetInfo("imagenet-1k"), imagenet_names()
    assert [name[0] for name in names] == info.label_names()
    for name, words in zip(names, info.label_descriptions(), strict=True):
        assert set(words.split(", ")) <= set(name), name
    shown = [name[-1] for name in names]
    assert len(set(shown)) == 1000
    assert shown[0] == "tench"
    assert shown[134] == "crane (n02012849)"  # the bird: a machine is called so too
    ten = source("n01440764", "n02102040")
    assert [relabel(ten, names).records[i].target for i in (0, 1)] == [0, 217]
