"""Teachers: opened from anywhere, seeing views in their own way, answering in the student's classes; and pupils."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from anyres.config import UserError
from anyres.flow import Size
from anyres.models import create_model
from anyres.recipe import Recipe, load_recipe
from anyres.runs.opened import open_run
from anyres.runs.teacher import Teacher, build_teacher, match_classes, open_teacher
from tests.command import anyres, refused
from tests.conftest import TinyRun

KEY = "objective.distillation"
CPU = torch.device("cpu")
CLASSES = ("disc", "square", "stripes")


def recipe(teacher: str, *changes: str) -> Recipe:
    lesson = (f"{KEY}.kind=hard", f"{KEY}.teacher={teacher}")
    return load_recipe("nano", [*lesson, "views.sizes=[48, 32]", "train.precision=fp32", *changes])


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of timm's with three classes, an input of its own and a normalisation of its own."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("timm") / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    return file


def test_a_run_teaches_in_its_own_classes(tiny_run: TinyRun) -> None:
    made = build_teacher(recipe(str(tiny_run.folder)), ("stripes", "disc"), CPU)
    assert made is not None
    view = torch.randn(2, 3, 48, 40)
    trained = open_run(tiny_run.folder)
    with torch.no_grad():
        logits = trained.model.cpu()(view)
    torch.testing.assert_close(made(view), logits[:, [2, 0]])  # by name: disc, square, stripes
    assert not any(p.requires_grad for p in made.model.parameters())
    assert not made.model.training
    assert not made(view.requires_grad_()).requires_grad
    assert "as it is" in made.summary()


def test_a_model_of_timms_sees_its_own_size_and_normalisation(timm_file: Path) -> None:
    changes = [f"{KEY}.weights={timm_file}", f"{KEY}.size=own", "data.mean=[0.4, 0.5, 0.6]", "data.std=[0.2, 0.3, 0.4]"]
    made = build_teacher(recipe("test_resnet", *changes), CLASSES, CPU)
    assert made is not None
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    cfg = model.pretrained_cfg
    assert made.own == cfg["input_size"][1:] != (48, 48)
    image = torch.rand(2, 3, 48, 48)

    def normal(mean: object, std: object) -> torch.Tensor:
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    theirs = torch.nn.functional.interpolate(
        normal(cfg["mean"], cfg["std"]), size=cfg["input_size"][1:], mode="bicubic", antialias=True
    )
    with torch.no_grad():
        expected = model(theirs)
    torch.testing.assert_close(made(normal([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])), expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_torchvisions(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    model = shufflenet_v2_x0_5(num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "shuffle.pth")
    changes = [f"{KEY}.weights={tmp_path / 'shuffle.pth'}"]
    made = build_teacher(recipe("torchvision:shufflenet_v2_x0_5", *changes), CLASSES, CPU)
    assert made is not None
    view = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made(view), model(view))
    with pytest.raises(UserError, match="did you mean 'shufflenet_v2_x0_5'"):
        open_teacher("torchvision:shufflenet_v2_x05", None)


def test_a_file_of_ours_with_its_models_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("restv2_nano", 3).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    made = build_teacher(recipe("restv2_nano", f"{KEY}.weights={tmp_path / 'w.safetensors'}"), CLASSES, CPU)
    assert made is not None
    view = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(made(view), model(view))


def test_imagenets_classes_are_known_by_wordnet_id_and_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.create_model", lambda name, **_: timm.models.create_model("test_resnet"))
    found = open_teacher("resnet18", None)
    assert len(found.names) == 1000
    assert match_classes(["n01443537", "tench"], found, None) == [[1], [0]]


def named(names: tuple[tuple[str, ...], ...]) -> Teacher:
    return Teacher("big", torch.nn.Identity(), (0.0,) * 3, (1.0,) * 3, Size(32, 32), names)


NAMED = named((("cat", "felis"), ("dog",), ("wolf",), ("crane",), ("crane",)))


@pytest.mark.parametrize(
    ("student", "file", "expected"),
    [
        (("dog", "cat"), None, [[1], [0]]),
        (("wolf", "felis"), None, [[2], [0]]),
        (("canine", "cat"), "student,teacher\ncanine,dog\ncanine,wolf\n1,0\n", [[1, 2], [0]]),
        (("bird", "cat"), "teacher,student\n3,bird\n4,0\nfelis,cat\n", [[3, 4], [0]]),
        (("horse",), None, "'horse' is none of the 5 classes of big: set objective.distillation.classes"),
        (("crane",), None, "'crane' stands for several of the 5 classes"),
        (("bird",), "student,teacher\nbird,crane\n", "line 2: 'crane' stands for several of the teacher's 5 classes"),
        (("bird",), "student,teacher\nbird,5\n", "line 2: '5' is none of the teacher's 5 classes"),
        (("bird",), "student,teacher\nbrid,3\n", "line 2: 'brid' is none of the student's 1 classes"),
        (("bird", "cat"), "student,teacher\ncat,0\n", "has no line for 'bird'"),
        (("bird",), "a,b\nbird,3\n", "line 2: '' is none of the student's 1 classes"),
    ],
)
def test_classes_are_matched_by_name_or_by_a_file(
    student: tuple[str, ...], file: str | None, expected: object, tmp_path: Path
) -> None:
    path = tmp_path / "classes.csv"
    if file is not None:
        path.write_text(file)
    if isinstance(expected, str):
        with pytest.raises(UserError) as caught:
            match_classes(student, NAMED, path if file else None)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert match_classes(student, NAMED, path if file else None) == expected


def test_several_of_the_teachers_classes_are_any_of_them(timm_file: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("student,teacher\nround,0\nedgy,1\nedgy,2\n")
    changes = (f"{KEY}.weights={timm_file}", f"{KEY}.classes={tmp_path / 'classes.csv'}")
    made = build_teacher(recipe("test_resnet", *changes), ("round", "edgy"), CPU)
    plain = build_teacher(recipe("test_resnet", changes[0]), CLASSES, CPU)
    assert made is not None
    assert plain is not None
    view = torch.randn(2, 3, 48, 48)
    p = plain(view).softmax(-1)
    torch.testing.assert_close(made(view).softmax(-1), torch.stack([p[:, 0], p[:, 1] + p[:, 2]], 1))


@pytest.mark.parametrize(
    ("teacher", "classes", "line"),
    [
        ("regnety160", 3, "objective.distillation.teacher=regnety160 is no run folder, no model of ours or of timm's"),
        ("test_resnet", 4, "test_resnet has 3 classes and the images 4: set objective.distillation.classes"),
        ("test_vit", 3, "objective.distillation.weights"),
        ("vit_tiny", 3, "does not fit this model"),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_line(teacher: str, classes: int, line: str, timm_file: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_teacher(recipe(teacher, f"{KEY}.weights={timm_file}"), tuple("abcd"[:classes]), CPU)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_one_size_wants_to_see_it(tmp_path: Path) -> None:
    file = tmp_path / "mlp.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("gmlp_ti16_224", num_classes=3).state_dict(), file)
    with pytest.raises(UserError, match=r"cannot see a view of 48 px .*objective.distillation.size=own"):
        build_teacher(recipe("gmlp_ti16_224", f"{KEY}.weights={file}"), CLASSES, CPU)
    made = build_teacher(recipe("gmlp_ti16_224", f"{KEY}.weights={file}", f"{KEY}.size=own"), CLASSES, CPU)
    assert made is not None
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert f"at {made.own} px" in made.summary()


def test_a_vision_transformer_of_timms_sees_every_view(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), file)
    made = build_teacher(recipe("timm:test_vit", f"{KEY}.weights={file}"), CLASSES, CPU)
    assert made is not None
    assert made(torch.randn(2, 3, 32, 48)).shape == (2, 3)


def test_what_is_not_in_the_cache_is_not_fetched_where_that_is_forbidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("regnety_160", "torchvision:regnet_y_16gf"):
        with pytest.raises(UserError, match=name) as caught:
            open_teacher(name, None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("distilled", "hard"), ("resmlp_nano", "hard"), ("resmlp_nano", "soft")])
def test_a_pupil_learns_from_a_run(tiny_run: TinyRun, tmp_path: Path, name: str, kind: str) -> None:
    small = ("model.dim=32", "model.depth=2", "model.heads=2", "model.patch_size=8", "model.img_size=32")
    model = ("deit_tiny_distilled", *small) if name == "distilled" else (name,)
    values = ("views.sizes=[48, 32]", "data.batch_size=8", "train.epochs=1", "train.log_every=1", "evaluate.sizes=[32]")
    mixing = ("mix.mixup=0.8", "mix.smoothing=0.1", "objective.consistency=smooth_l1")
    lesson = (f"{KEY}.kind={kind}", f"{KEY}.teacher={tiny_run.folder}", f"{KEY}.alpha=0.3")
    out = tmp_path / "pupil"
    answer = anyres("train", *model, "--data", tiny_run.data, "--out", out, *values, *mixing, *lesson)
    assert answer.code == 0, answer.err
    assert f"taught by {tiny_run.folder}, 1.70 M parameters" in answer.err
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            views = [0.7 * line[f"ce/{s}"] + 0.3 * line[f"distillation/{s}"] for s in (48, 32)]
            assert line["loss"] == pytest.approx((sum(views) + line["consistency/32"]) / 2, rel=1e-5)
    assert anyres("eval", out).code == 0


def test_a_teacher_that_cannot_be_had_leaves_no_run_behind(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "pupil"
    values = (f"{KEY}.kind=hard", f"{KEY}.teacher={tmp_path / 'nowhere'}")
    line = refused("train", "restv2_nano", "--data", tiny_run.data, "--out", out, *values)
    assert "nowhere is no run folder" in line
    assert not out.exists()
