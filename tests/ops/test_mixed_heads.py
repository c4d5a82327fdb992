"""ResT's attention as compilers are given it, with its keys in lanes, is the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.ops.mixed_heads import KEY_MULTIPLE, normed_padded, normed_plane, pad_keys


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """By all keys as they are, and by keys in lanes."""
    scores = query @ key.mT
    plain = normed_plane(scores if offset is None else scores + offset, value)
    return plain, normed_padded(query @ pad_keys(key).mT, value, offset)


@settings(max_examples=60, deadline=None)
@given(b=st.integers(1, 3), g=st.integers(1, 3), n=st.integers(1, 30), m=st.integers(1, 40), with_offset=st.booleans())
@example(b=1, g=2, n=9, m=49, with_offset=True)
@example(b=1, g=1, n=1, m=1, with_offset=False)
@example(b=2, g=2, n=5, m=2 * KEY_MULTIPLE, with_offset=False)
def test_keys_in_lanes(b: int, g: int, n: int, m: int, with_offset: bool) -> None:
    query, key, value = (drawn(b, g, size, 8, seed=seed) for seed, size in enumerate((n, m, m)))
    plain, lanes = both(query, key, value, drawn(b, g, 1, m, seed=3) if with_offset else None)
    assert pad_keys(key).shape[2] % KEY_MULTIPLE == 0
    torch.testing.assert_close(lanes, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spread", [1e-2, 1.0])
def test_bf16_keeps_what_even_attention_tells(spread: float) -> None:
    """Of a fresh model's nearly even attention only the deviation from 1 / m counts, which is far below 1 / m."""
    query, key, value = (drawn(2, 2, size, 32, seed=seed) for seed, size in enumerate((196, 49, 49)))
    query = spread * query / 32**0.5
    truth = both(query, key, value, None)[0]
    narrow = both(*(part.bfloat16() for part in (query, key, value)), None)
    plain, lanes = ((found.double() - truth).norm() / truth.norm() for found in narrow)
    assert lanes <= 1.2 * plain + 1e-3
    assert lanes < 0.02
