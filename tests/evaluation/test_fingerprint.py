import hashlib
import io
from importlib import resources
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image, features
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from anyres.evaluation.fingerprint import PICTURE, fingerprint
from anyres.flow import Size

SIZES = (Size(64, 64), Size(96, 48), Size(224, 224))


def picture() -> torch.Tensor:
    """The built-in picture, decoded by Pillow alone: (3, 180, 240)."""
    content = resources.files("anyres.evaluation").joinpath(PICTURE).read_bytes()
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1).contiguous()


def digits(view: torch.Tensor) -> str:
    return hashlib.sha256(bytes(view.contiguous().numpy())).hexdigest()[:12]


def test_the_hash_is_of_the_pixels_that_evaluation_sees() -> None:
    """Against torchvision's own Resize and CenterCrop, step by step."""
    found = fingerprint(SIZES, crop=0.875)
    for side in (64, 224):
        resized = F.resize(picture(), [int(side / 0.875)], InterpolationMode.BICUBIC, antialias=True)
        assert found.pixels[str(side)] == digits(F.center_crop(resized, [side, side]))
    warped = F.resize(picture(), [96, 48], InterpolationMode.BICUBIC, antialias=True)
    assert fingerprint(SIZES, warp=True).pixels["96x48"] == digits(warped)


def test_everything_that_changes_pixels_changes_the_hash() -> None:
    found = [
        fingerprint(SIZES, crop=0.875),
        fingerprint(SIZES, crop=1.0),
        fingerprint(SIZES, warp=True),
    ]
    for size in map(str, SIZES):
        assert len({one.pixels[size] for one in found}) == len(found)
    blurred = F.resize(picture(), [64, 64], InterpolationMode.BICUBIC, antialias=False)
    assert digits(blurred) != found[2].pixels["64"]
    assert fingerprint(SIZES) == fingerprint(SIZES)


def test_a_kept_picture_counts_where_it_has_pixels_enough() -> None:
    small, large = Size(64, 64), Size(224, 224)
    full, kept = fingerprint([small, large]), fingerprint([small, large], short_side=150)
    assert full.pixels["64"] != kept.pixels["64"]
    assert full.pixels["224"] == kept.pixels["224"]  # 256 pixels are needed: the file is decoded in full


def test_versions_are_those_of_this_machine() -> None:
    told = fingerprint(SIZES)
    assert told.versions["pillow"] == version("pillow") == Image.__version__
    assert told.versions["torch"] == version("torch")
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    assert told.versions["jpeg"].split() == ["libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg", jpeg]
    for part in (*told.versions.values(), *told.pixels.values(), "bicubic, antialiased", "96x48"):
        assert part in str(told)
