"""The fast attention equals softmax attention written out, forward and backward."""

import torch

from anyres.ops.attention import attend


def test_equals_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "kv")
    slow = ((query @ key.transpose(2, 3)) * 4**-0.5).softmax(-1) @ value
    slow = torch.cat([slow[:, head] for head in range(3)], dim=2)
    fast = attend(query, key, value)
    torch.testing.assert_close(fast, slow)
    ours = torch.autograd.grad(fast.square().sum(), (query, key, value))
    theirs = torch.autograd.grad(slow.square().sum(), (query, key, value))
    torch.testing.assert_close(ours, theirs)
