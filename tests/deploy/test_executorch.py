"""Programs of ExecuTorch: free sides where they can be lowered, one size elsewhere, and one line where neither can."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from anyres.config import UserError
from anyres.deploy.export.write import write
from anyres.flow import Size
from anyres.models import create_model
from tests.command import refused
from tests.deploy.conftest import Files
from tests.models.zoo import stirred

pytestmark = pytest.mark.usefixtures("unchecked_types")
INSTALLED = importlib.util.find_spec("executorch") is not None


@pytest.mark.skipif(INSTALLED, reason="executorch is installed")
def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    said = refused("export", "resmlp_nano", "--to", "executorch", "--out", tmp_path / "a.pte")
    assert said.endswith("run pip install 'anyres[edge]'")


@pytest.mark.skipif(not INSTALLED, reason="executorch is not installed")
def test_free_sides_or_one_size(files: Files, tmp_path: Path) -> None:
    model = stirred(create_model("resformer_nano", 3, depth=1))
    subject = replace(files.subject, referee=replace(files.subject.referee, model=model))
    made = write(subject, tmp_path / "mine.pte", "executorch")
    assert {each.name for each in made.files} == {"mine.pte", "mine.json", "mine.pte.certificate.json"}
    checks = made.certificates["mine.pte"].checks
    assert {each.engine for each in checks} == {"executorch"}
    assert {"48", "33", "97x210"} <= {each.size for each in checks}
    assert json.loads((tmp_path / "mine.json").read_text())["classes"] == ["disc", "square", "stripes"]

    with pytest.raises(UserError, match=r"cannot lower .* for every size: give --sizes for programs of one size each"):
        write(files.subject, tmp_path / "other.pte", "executorch")  # DeiT
    made = write(files.subject, tmp_path / "other.pte", "executorch", [Size(48, 48), Size(40, 56)])
    names = {"other.48.pte", "other.48.json", "other.40x56.pte", "other.40x56.json", "other.pte.certificate.json"}
    assert {each.name for each in made.files} == names
