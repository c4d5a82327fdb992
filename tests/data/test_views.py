from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from anyres.config import UserError
from anyres.data.augment import resize
from anyres.data.augment_config import AugmentConfig
from anyres.data.views import eval_view, make_views
from anyres.data.views_config import ViewGroup, ViewsConfig
from anyres.flow import Size

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (7, 9, 3), np.uint8)).resize((130, 90), Image.Resampling.BICUBIC)
)
IMAGE = torch.from_numpy(SMOOTH.copy()).permute(2, 0, 1).contiguous()
PLAIN = AugmentConfig()


def test_sizes_are_sorted_not_asserted() -> None:
    views = ViewsConfig(sizes=(64, "96x160", "128"))
    assert views.sizes == ("128", "96x160", "64")
    assert views.parsed == (Size(128, 128), Size(96, 160), Size(64, 64))
    with pytest.raises(UserError, match=r"views\.sizes is empty"):
        ViewsConfig(sizes=())
    with pytest.raises(UserError, match="size 'big'"):
        ViewsConfig(sizes=("big",))


def test_separate_views_are_independent_crops_and_do_not_depend_on_each_other() -> None:
    three = make_views(IMAGE, PLAIN, ViewsConfig(sizes=("48", "48", "32x40")), 1, 2, 3)
    assert [tuple(v.shape) for v in three] == [(3, 48, 48), (3, 48, 48), (3, 32, 40)]
    assert not torch.equal(three[0], three[1])
    one = make_views(IMAGE, PLAIN, ViewsConfig(sizes=("48",)), 1, 2, 3)
    assert torch.equal(one[0], three[0])


def test_shared_views_are_the_largest_resized_without_antialiasing() -> None:
    large, small = make_views(IMAGE, PLAIN, ViewsConfig(sizes=("64", "40"), share=True), 1, 2, 3)
    expected = torch.nn.functional.interpolate(large[None].double(), size=(40, 40), mode="bicubic", antialias=False)[0]
    assert (small.double() - expected.clamp(0, 255)).abs().max() <= 0.501
    assert torch.equal(large, make_views(IMAGE, PLAIN, ViewsConfig(sizes=("64",)), 1, 2, 3)[0])


MULTI_CROP = (  # DINO's ten views, small
    ViewGroup(size=16, count=8, crop_scale=(0.05, 0.4), blur=0.5),
    ViewGroup(size=32, blur=1.0),
    ViewGroup(size=32, blur=0.1, solarize=0.2),
)
DINO = AugmentConfig(
    crop_scale=(0.4, 1.0), brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2
)


def test_groups_of_views_have_their_own_crops_and_colours() -> None:
    views = ViewsConfig(groups=MULTI_CROP)
    assert views.sizes == ("32", "32", *["16"] * 8)
    assert views.summary == "2 x 32, 8 x 16"
    assert ViewsConfig(sizes=(16, 32, "32", *[16] * 7), groups=MULTI_CROP) == views  # as a recipe that is read back
    plan = views.plan(DINO)
    assert [(how.blur, how.solarize, how.crop_scale) for _, how in plan] == [
        (1.0, 0.0, (0.4, 1.0)),
        (0.1, 0.2, (0.4, 1.0)),
        *[(0.5, 0.0, (0.05, 0.4))] * 8,
    ]
    assert all((how.grayscale, how.jitter, how.hue) == (0.2, 0.8, 0.1) for _, how in plan)
    made = make_views(IMAGE, DINO, views, 1, 2, 3)
    assert [tuple(view.shape) for view in made] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 8
    assert len({view.numpy().tobytes() for view in made}) == 10
    again = make_views(IMAGE, DINO, views, 1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_a_group_that_changes_nothing_is_a_size() -> None:
    """So multi-crop is an extension: the views of ``sizes`` and of as many plain groups are the same bytes."""
    how = AugmentConfig(brightness=0.4, crop_scale=(0.3, 0.9))
    sizes = make_views(IMAGE, how, ViewsConfig(sizes=(40, 24, 24)), 1, 2, 3)
    plain = (ViewGroup(size=24, count=2), ViewGroup(size=40, crop_scale=(0.3, 0.9)))
    groups = make_views(IMAGE, how, ViewsConfig(groups=plain), 1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(sizes, groups, strict=True))


def test_local_views_show_less_than_global_ones() -> None:
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).contiguous()
    how = AugmentConfig(crop_scale=(0.4, 1.0), crop_ratio=(1.0, 1.0))
    views = ViewsConfig(groups=(ViewGroup(size=48, count=2), ViewGroup(size=48, count=2, crop_scale=(0.05, 0.4))))
    for index in range(20):
        made = [view.float() for view in make_views(ramp, how, views, 0, 0, index)]
        shares = [float(((v[0].max() - v[0].min()) / 199) ** 2) for v in made]
        assert min(shares[:2]) > 0.35
        assert max(shares[2:]) < 0.45


def test_groups_that_cannot_be_meant() -> None:
    with pytest.raises(UserError, match=r"views\.sizes=\[64\] and views\.groups both give sizes"):
        ViewsConfig(sizes=(64,), groups=MULTI_CROP)
    with pytest.raises(UserError, match=r"views\.share=true"):
        ViewsConfig(share=True, groups=MULTI_CROP)
    with pytest.raises(ValueError, match="count 0 of the views at 32"):
        ViewGroup(size=32, count=0)
    with pytest.raises(UserError, match="size 'big'"):
        ViewGroup(size="big")
    with pytest.raises(ValueError, match="three_augment does grayscale, blur or solarize itself"):
        ViewsConfig(groups=MULTI_CROP).plan(AugmentConfig(three_augment=True))


@pytest.mark.parametrize("how", [PLAIN, AugmentConfig(crop="padded"), AugmentConfig(crop="simple"), DINO])
@pytest.mark.parametrize("share", [False, True])
def test_a_view_of_one_pixel_is_a_mean_colour(how: AugmentConfig, share: bool) -> None:
    for image in (IMAGE, IMAGE[:, :1, :1], IMAGE[:, :1, :9]):
        for sizes in (("4", "1"), ("1x3", "2x1"), ("1",)):
            views = make_views(image, how, ViewsConfig(sizes=sizes, share=share), 1, 2, 3)
            assert [Size(*view.shape[1:]) for view in views] == list(ViewsConfig(sizes=sizes).parsed)
    flat = torch.full((3, 40, 50), 77, dtype=torch.uint8)
    assert make_views(flat, PLAIN, ViewsConfig(sizes=("1",)), 1, 2, 3)[0].flatten().tolist() == [77, 77, 77]


@pytest.mark.parametrize("crop", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("side", [32, 48, 96, 112])
@pytest.mark.parametrize("turn", [False, True])
def test_a_square_is_resize_and_centre_crop(side: int, crop: float, turn: bool) -> None:
    """Against torchvision on PIL images: the published evaluation transform."""
    array = SMOOTH.transpose(1, 0, 2) if turn else SMOOTH
    pipeline = transforms.Compose(
        [
            transforms.Resize(int(side / crop), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
        ]
    )
    expected = np.asarray(pipeline(Image.fromarray(array))).astype(int)
    image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    got = eval_view(image, Size(side, side), crop).permute(1, 2, 0).numpy().astype(int)
    error = np.abs(got - expected)
    assert error.max() <= 2
    assert error.mean() < 0.02


@pytest.mark.parametrize("turn", [True, False])  # h, w, c in memory, as a decoder's, or c, h, w
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(24, 24), (17, 40), (96, 64), (31, 45)])
def test_bytes_are_resized_as_torchvision_does_bit_for_bit(size: tuple[int, int], channels: int, turn: bool) -> None:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (31, 45, channels), np.uint8)).permute(2, 0, 1)
    image = values if turn else values.contiguous()
    mine = resize(image, Size(*size))
    theirs = v2.functional.resize(image, list(size), transforms.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(mine, theirs)
    assert channels == 1 or mine.stride() == theirs.stride()  # of one channel both mean the same


def test_published_resize_sides() -> None:
    """The short side before the crop; seen here as the one column that an unresized image would lose."""
    known = {
        96: 109,
        112: 128,
        128: 146,
        160: 182,
        192: 219,
        224: 256,
        288: 329,
        384: 438,
        448: 512,
        512: 585,
        640: 731,
    }
    for side, short in known.items():
        ramp = torch.linspace(0, 255, short).round().to(torch.uint8).expand(3, short, short).contiguous()
        left = round((short - side) / 2)
        assert torch.equal(eval_view(ramp, Size(side, side), 0.875), ramp[:, :side, left : left + side])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(1, 70), st.floats(0.3, 1.0), st.booleans()
)
def test_any_image_gives_any_size(h: int, w: int, height: int, width: int, crop: float, warp: bool) -> None:
    image = torch.full((3, h, w), 77, dtype=torch.uint8)
    view = eval_view(image, Size(height, width), crop, warp)
    assert view.shape == (3, height, width)
    assert view.dtype == torch.uint8
    assert (view == 77).all()  # no border enters: the image covers the view


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 20_000)])
def test_a_line_does_not_fill_the_memory(shape: tuple[int, int]) -> None:
    assert eval_view(torch.zeros(3, *shape, dtype=torch.uint8), Size(64, 48)).shape == (3, 64, 48)


def test_warp_shows_the_whole_image() -> None:
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 20, 200).contiguous()
    view = eval_view(ramp, Size(32, 32), warp=True)
    assert view[0, 0, 0] < 5
    assert view[0, 0, -1] > 194


@pytest.mark.parametrize("crop", [0.0, -1.0, 1.1])
def test_a_crop_that_is_no_share(crop: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        eval_view(IMAGE, Size(8, 8), crop)
