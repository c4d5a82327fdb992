"""Every family through the whole river: trained at two sizes with scale consistency, scored, opened again."""

from pathlib import Path

import pytest

from tests.command import anyres
from tests.models.zoo import SMALL
from tests.pictures import make_folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("families") / "shapes", per_class=6)


@pytest.mark.parametrize("family", SMALL)
def test_a_family_trains_and_predicts(family: str, shapes: Path, tmp_path: Path) -> None:
    small, out = SMALL[family], tmp_path / "run"
    options = [f"model.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in small.options.items()]
    sizes = ("views.sizes=[48, 32]", "evaluate.sizes=[32, 48x40]")
    values = (*options, *sizes, "data.batch_size=8", "train.epochs=1", "data.workers=0", "objective.target=gap")
    answer = anyres("train", small.name, "--data", shapes, "--out", out, *values)
    assert answer.code == 0, answer.err
    image = next(shapes.rglob("*.png"), None) or next(shapes.rglob("*.jpg"))
    told = anyres("predict", out, image, "--size", "40")
    assert told.code == 0, told.err
    assert image.parent.name in told.out
