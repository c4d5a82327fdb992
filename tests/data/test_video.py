"""Films: which frame is shown at a time, what is said of broken ones, and what clips are drawn of them."""

from __future__ import annotations

import struct
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.films import counting, film, numbers

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.clip_config import ClipConfig
from anyres.data.clips import Clip, Draw, decode_clip, with_clips
from anyres.data.decode import Unreadable
from anyres.data.pace import PACE
from anyres.data.sources import open_source, open_test_set
from anyres.data.video import BrokenFilm, FilmFacts, every_frame, facts, frames
from anyres.flow import Record, Size

FACTS = FilmFacts(10.0, 10.0, Size(32, 48))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_the_frame_at_a_time_is_the_last_that_has_begun(folder: Path, ending: str) -> None:
    path = counting(folder / f"plain.{ending}")
    times = [0.31, 0.0, 0.299, 0.3, 2.85, 0.05, 99.0, -1.0, 0.3]
    assert numbers(frames(path, times).pictures) == [3, 0, 2, 3, 28, 0, 29, 0, 3]
    known = facts(path)
    assert (known.rate, known.count, known.size) == (10.0, 30, Size(32, 48))
    assert frames(path.read_bytes(), [1.25]).pictures[0].tobytes() == frames(path, [1.25]).pictures[0].tobytes()


def test_frames_of_uneven_length_are_found_by_their_times(folder: Path) -> None:
    path = film(folder / "uneven.mp4", (0, 6, 12, 18), times=(0, 1, 7, 8))
    assert numbers(frames(path, [0.05, 0.15, 0.69, 0.7, 0.85]).pictures) == [0, 1, 1, 2, 3]


def test_a_film_whose_track_begins_late_counts_from_there(folder: Path) -> None:
    path = film(folder / "late.mkv", (0, 6, 12), times=(20, 21, 22))
    assert numbers(frames(path, [0.0, 0.1, 0.25]).pictures) == [0, 1, 2]
    begins, pictures = every_frame(path)
    assert begins == pytest.approx([0.0, 0.1, 0.2])
    assert numbers(pictures) == [0, 1, 2]


def test_seeking_changes_nothing(folder: Path) -> None:
    """14 s with a key frame each 1.2 s: far times are sought one by one, near ones decoded in one go."""
    path = counting(folder / "long.mp4", 140, size=(16, 16))
    _, whole = every_frame(path)
    for times in ([0.55, 7.35, 13.95], [13.05, 0.05], [6.2, 6.3, 6.4]):
        found = frames(path, times)
        assert found.note is None
        for time, picture in zip(times, found.pictures, strict=True):
            assert picture.tobytes() == whole[int(time * 10 + 1e-6)].tobytes()


def test_a_turned_film_is_upright(folder: Path) -> None:
    path = film(folder / "turned.mp4", (30, 30), size=(16, 48))
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd") + 4
    place = data.index(struct.pack(">3i", 65536, 0, 0), box)  # the matrix that changes nothing
    data[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    decoded = decode_clip(Record(Clip(bytes(data), how=ClipConfig(frames=2)), 0, "turned"), 8)
    assert decoded.image.shape == (6, 24, 8)
    assert decoded.geometry is not None
    assert decoded.geometry.source == Size(48, 16)


def test_broken_films_are_one_line_each(folder: Path) -> None:
    whole = counting(folder / "whole.mp4").read_bytes()
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    broken = {
        "empty.mp4": (b"", "the file is empty"),
        "text.mp4": (b"no film at all\n" * 40, "no film that can be read"),
        "cut.mp4": (whole[: len(whole) // 2], "no film that can be read"),
        "sound.mp4": ((folder / "sound.wav").read_bytes(), "it has no pictures"),
    }
    for name, (content, reason) in broken.items():
        (folder / name).write_bytes(content)
        for source in (folder / name, content):
            with pytest.raises(Unreadable) as caught:
                decode_clip(Record(Clip(source), 0, name))
            assert (caught.value.name, caught.value.reason) == (name, reason)
    with pytest.raises(Unreadable, match="No such file"):
        decode_clip(Record(Clip(folder / "none.mp4"), 0, "none.mp4"))


def test_a_film_that_ends_early_says_so(folder: Path) -> None:
    whole = counting(folder / "end.mkv", 40, key_every=4).read_bytes()
    (folder / "early.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    found = frames(folder / "early.mkv", [0.5, 3.9])
    assert numbers(found.pictures)[0] == 5
    assert found.note is not None
    assert found.note.endswith("of 4.00 s: its last frame stands for the rest")


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_clips_are_drawn_by_seed_epoch_and_index(sampling: str) -> None:
    clip = Clip(b"", how=ClipConfig(frames=5, sampling=sampling, stride=4))  # type: ignore[arg-type]
    first = clip.times(FACTS, Draw(1, 2, 3))
    assert first == clip.times(FACTS, Draw(1, 2, 3))
    others = [clip.times(FACTS, draw) for draw in (Draw(2, 2, 3), Draw(1, 3, 3), Draw(1, 2, 4))]
    assert all(first != other for other in others)
    for times in (first, *others):
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] < 10
    assert clip.times(FACTS) == clip.times(FACTS, None)


def test_uniform_clips_take_one_frame_of_each_part() -> None:
    clip = Clip(b"", start=2.0, stop=7.0, how=ClipConfig(frames=5))
    assert clip.times(FACTS) == [2.5, 3.5, 4.5, 5.5, 6.5]
    for epoch in range(5):
        assert [int(time) for time in clip.times(FACTS, Draw(0, epoch, 0))] == [2, 3, 4, 5, 6]


def test_dense_clips_keep_their_stride_and_short_films_their_last_frame() -> None:
    how = ClipConfig(frames=4, sampling="dense", stride=5)
    assert np.diff(Clip(b"", how=how).times(FACTS, Draw(0, 0, 0))) == pytest.approx(0.5)
    assert Clip(b"", how=how).times(FACTS)[0] == pytest.approx(4.2 + 0.05)  # (10 - 1.6) / 2
    short = FilmFacts(1.0, 10.0, Size(32, 48))
    assert Clip(b"", how=how).times(short) == pytest.approx([0.05, 0.55, 0.95, 0.95])
    paced = Clip(b"", start=3.0, pace=2, backwards=True, how=how)
    assert paced.times(FACTS, Draw(0, 0, 0)) == paced.times(FACTS) == pytest.approx([3.65, 3.45, 3.25, 3.05])


@pytest.fixture(scope="module")
def classes(folder: Path) -> Path:
    root = folder / "classes"
    for split, count in (("train", 3), ("val", 1)):
        for name, size in (("cat", (32, 48)), ("dog", (40, 30))):
            for i in range(count):
                counting(root / split / name / f"{i}.mp4", 20 + i, size=size)
    (root / "train" / "dog" / "2.mp4").write_bytes(b"")
    (root / "train" / "dog" / "notes.txt").write_text("no film")
    (root / "train" / "bird").mkdir()
    return root


def test_folders_of_classes_are_read(classes: Path) -> None:
    train, val = (open_source(str(classes), split, wanted="clips") for split in ("train", "val"))
    assert (train.classes, len(train.records), len(val.records)) == (("cat", "dog"), 6, 2)
    assert [record.name for record in val.records] == ["val/cat/0.mp4", "val/dog/0.mp4"]
    assert train.notes == ("class 'bird' has no films: left out",)
    flat = open_test_set(str(classes / "train"), None, wanted="clips")
    assert (flat.split, len(flat.records)) == ("all", 6)


def test_what_is_kept_and_what_is_asked_for_is_the_same(classes: Path) -> None:
    source = open_source(str(classes), "train", wanted="clips")
    source = source.__class__(**{**vars(source), "records": with_clips(source.records, ClipConfig(frames=3))})
    kept = DecodedImages(source, 24, channels=9, progress=False)
    asked = DecodedImages(source, 24, 0.0, channels=9)
    assert (kept.cached, asked.cached) == (True, False)
    assert kept.decode_warnings() == {"train/dog/2.mp4": "unreadable (the file is empty): left out"}
    for i in range(5):
        assert torch.equal(kept[i].image, asked[i].image)
        assert kept[i].image.shape == (9, 24, 36) if i < 3 else (9, 32, 24)
        assert kept.full(i).image.shape == (9, 32, 48) if i < 3 else (9, 40, 30)
    draws = [asked.drawn(0, Draw(0, epoch, 0)).image for epoch in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_table_names_films_and_parts_of_them(folder: Path) -> None:
    counting(folder / "table" / "a.mp4")
    rows = ("path,label,split,start,stop", "a.mp4,one,train,0,1", "a.mp4,two,train,1.5,", "a.mp4,one,val,2,3")
    table = folder / "table" / "films.csv"
    table.write_text("\n".join((*rows, "b.mp4,two,val,,")))
    source = open_source(str(table), "train", wanted="clips")
    assert [record.name for record in source.records] == ["a.mp4 0 to 1 s", "a.mp4 1.5 to its end s"]
    assert [note for note in source.notes if "b.mp4" in note] == [
        f"{table}:5: there is no film {folder / 'table' / 'b.mp4'}: left out"
    ]
    record = with_clips(source.records, ClipConfig(frames=2))[1]
    pixels = decode_clip(record).image.float().mean((1, 2))[::3]
    assert (pixels / 6).round().tolist() == [18, 26]  # 1.5 s to 3 s
    wrong = {
        "a.mp4,,train,,": "the column 'label' is empty or missing",
        "a.mp4,one,best,,": "the split 'best' is none of train, val, test",
        "a.mp4,one,train,x,": "start 'x' must be seconds from 0 on",
        "a.mp4,one,train,2,1": "start 2 is not before stop 1",
        "a.mp4,one,train,0,1": "a.mp4 0 to 1 s stands twice",
    }
    for row, line in wrong.items():
        table.write_text("\n".join((*rows, row)))
        with pytest.raises(UserError) as caught:
            open_source(str(table), "train", wanted="clips")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_kinetics_table_finds_films_by_their_ids(folder: Path) -> None:
    root = folder / "kinetics"
    counting(root / "train" / "run" / "abc_000010_000012.mp4")
    counting(root / "d-_f.mp4")
    lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
    lines += ["running,abc,10,12,train,0", '"jump, high",d-_f,1,2,train,0']
    lines += [f"running,gone{i},0,10,train,0" for i in range(22)]
    (root / "k.csv").write_text("\n".join(lines))
    source = open_source(str(root / "k.csv"), "trainval", wanted="clips")
    assert source.classes == ("jump, high", "running")
    clips = {record.name: record.source for record in source.records}
    assert isinstance(clips["abc_000010_000012"], Clip)
    assert (clips["abc_000010_000012"].start, clips["abc_000010_000012"].stop) == (0.0, None)
    cut = clips["d-_f_000001_000002"]
    assert isinstance(cut, Clip)
    assert (cut.start, cut.stop) == (1.0, 2.0)
    assert "k.csv:4: there is no film gone0_000000_000010.mp4 or gone0.mp4" in source.notes[0]
    assert source.notes[20] == "... 22 films in all are not there"


def test_pace_holds_the_last_quarter_out_and_pairs_directions() -> None:
    for name, count in zip(PACE, (8, 4, 2), strict=True):
        parts = {split: open_source(name, split, wanted="clips") for split in ("train", "val")}
        assert {split: len(source.records) for split, source in parts.items()} == {"train": 384, "val": 48}
        for source in parts.values():
            shares = Counter(record.target for record in source.records)
            assert set(shares.values()) == {len(source.records) // count}
    assert parts["val"].classes == ("forward", "backward")
    last: dict[object, float] = {}
    for record in parts["train"].records:
        assert isinstance(record.source, Clip)
        last[record.source.film] = max(last.get(record.source.film, 0.0), record.source.stop or 0.0)
    for record in parts["val"].records:
        assert isinstance(record.source, Clip)
        assert record.source.start >= last[record.source.film] - 1e-9
    some = [record for record in parts["val"].records if record.name.startswith("carphone_pristine")]
    there, back = with_clips(some[:2], ClipConfig())
    pixels = [decode_clip(record, 48).image for record in (there, back)]
    assert (there.target, back.target) == (0, 1)
    turned = pixels[1].unflatten(0, (8, 3)).flip(0).flatten(0, 1)
    assert torch.equal(pixels[0], turned)
    assert not torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], _sought(there))


def _sought(record: Record) -> torch.Tensor:
    """The record's clip by seeking, where ``decode_clip`` takes it from the whole film."""
    clip = record.source
    assert isinstance(clip, Clip)
    pictures = frames(clip.film, clip.times(facts(clip.film)), 48).pictures
    return torch.from_numpy(np.concatenate(pictures, axis=2)).permute(2, 0, 1)


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="at most as many"):
        with_clips(open_source("pace", "val", wanted="clips").records, ClipConfig(frames=9))
    with pytest.raises(UserError, match=r"pace is of films: train task=video on it"):
        open_source("pace", "train")
    with pytest.raises(UserError, match="did you mean 'pace'"):
        open_source("pase", "train", wanted="clips")
    with pytest.raises(BrokenFilm):
        facts(b"")
    (folder / "bad.csv").write_text("label,youtube_id,start\n")
    with pytest.raises(UserError, match="no column 'time_start'"):
        open_source(str(folder / "bad.csv"), "train", wanted="clips")
