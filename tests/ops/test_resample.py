"""Resampling: identity on its own grid, PIL's bicubic between grids, constant images keep their response."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.config import UserError
from anyres.ops.patch import PatchEmbed, pad_to_multiple
from anyres.ops.resample import axis_matrix, resample_bias, resample_mixing, resample_table

grids = st.tuples(st.integers(1, 20), st.integers(1, 20))


def interpolate(tokens: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The slow twin: (n, c) tokens through torch's antialiased bicubic.

    Lying on its side where the result is one column wide: there torch 2.15's CPU kernel repeats the first row.
    """
    maps = tokens.T.reshape(1, -1, *old)
    if new[1] == 1:
        maps = F.interpolate(maps.mT.contiguous(), new[::-1], mode="bicubic", antialias=True).mT
    else:
        maps = F.interpolate(maps, new, mode="bicubic", antialias=True)
    return maps.reshape(tokens.shape[1], -1).T


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_axis_matrix_is_torchs_antialiased_bicubic(old: int, new: int) -> None:
    matrix = axis_matrix(old, new, draw(1))
    reference = interpolate(torch.eye(old, dtype=torch.float64), (1, old), (1, new))
    torch.testing.assert_close(matrix, reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    if old == new:
        torch.testing.assert_close(matrix, torch.eye(old, dtype=torch.float64), rtol=0, atol=1e-15)


@settings(deadline=None)
@given(grids, grids)
def test_table_is_torchs_antialiased_bicubic(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = draw(old[0] * old[1], 5)
    torch.testing.assert_close(resample_table(table[None], old, new)[0], interpolate(table, old, new))


def test_equal_grids_give_the_tensor_itself() -> None:
    table, weight, bias = draw(1, 12, 3), draw(12, 12), draw(12)
    assert resample_table(table, (3, 4), (3, 4)) is table
    assert resample_mixing(weight, (3, 4), (3, 4)) is weight
    assert resample_table(bias[None, :, None], (3, 4), (3, 4)).data_ptr() == bias.data_ptr()
    torch.testing.assert_close(resample_bias(bias, (3, 4), (3, 4)), bias, rtol=0, atol=0)


@settings(deadline=None)
@given(grids, grids)
def test_mixing_goes_to_the_trained_grid_and_back(old: tuple[int, int], new: tuple[int, int]) -> None:
    weight, image = draw(old[0] * old[1], old[0] * old[1]), draw(new[0] * new[1], 2)
    carried = resample_mixing(weight, old, new)
    assert carried.shape == (len(image), len(image))
    if old != new:
        there_and_back = interpolate(weight @ interpolate(image, new, old), old, new)
        torch.testing.assert_close(carried @ image, there_and_back)


@settings(deadline=None)
@given(grids, grids)
def test_a_constant_image_keeps_its_response(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Exactly, also where rows sum to nothing; and where all rows have one sum, so have the carried ones."""
    weight = draw(old[0] * old[1], old[0] * old[1])
    response = resample_bias(weight.sum(1), old, new)
    torch.testing.assert_close(resample_mixing(weight, old, new).sum(1), response)
    softmaxed = resample_mixing(weight.softmax(1), old, new).sum(1)
    torch.testing.assert_close(softmaxed, torch.ones_like(softmaxed))


def test_height_and_width_are_not_confused() -> None:
    """A matrix that averages each row of tokens, carried to another grid, still averages rows."""
    rows = torch.arange(12) // 4
    weight = (rows[:, None] == rows[None, :]).double() / 4
    carried = resample_mixing(weight, (3, 4), (3, 7))
    rows = torch.arange(21) // 7
    assert carried[rows[:, None] != rows[None, :]].abs().max() < 1e-12
    torch.testing.assert_close(carried.sum(1), torch.ones(21, dtype=torch.float64))


def test_gradient_flows() -> None:
    weight = draw(6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: resample_mixing(w, (2, 3), (4, 2)), weight)


def test_half_precision_keeps_its_dtype() -> None:
    weight = draw(6, 6).bfloat16()
    carried = resample_mixing(weight, (2, 3), (4, 5))
    assert carried.dtype == torch.bfloat16
    torch.testing.assert_close(carried, resample_mixing(weight.float(), (2, 3), (4, 5)).bfloat16())


def test_wrong_grid_is_named() -> None:
    with pytest.raises(UserError, match="12 tokens does not lie on a grid of 3x5"):
        resample_mixing(draw(12, 12), (3, 5), (4, 5))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17))
def test_padding_adds_zeros_and_cuts_nothing(height: int, width: int, multiple: int) -> None:
    image = draw(1, 3, height, width)
    padded = pad_to_multiple(image, multiple)
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    assert padded.shape[2] - height < multiple
    assert padded.shape[3] - width < multiple
    torch.testing.assert_close(padded[:, :, :height, :width], image, rtol=0, atol=0)
    torch.testing.assert_close(padded.abs().sum(), image.abs().sum())
    if padded.shape == image.shape:
        assert padded is image


def test_patches_are_row_major() -> None:
    embed = PatchEmbed(in_chans=1, dim=1, patch_size=2)
    with torch.no_grad():
        embed.proj.weight.fill_(0.25)
        embed.proj.bias.zero_()
    tokens, grid = embed(torch.arange(15.0).reshape(1, 1, 3, 5))
    assert grid == (2, 3)
    assert tokens[0, :, 0].tolist() == [3.0, 5.0, 3.25, 5.25, 6.25, 3.5]
