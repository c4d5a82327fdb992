import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyres.evaluation.speed import FEWEST_RUNS, WARM_UP, latency, macs
from anyres.flow import Size

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Pixels as tokens: a 3 -> 12 projection, two heads of width six attending to all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # b n 3
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)  # b g n d
        return F.scaled_dot_product_attention(q, k, v)


def test_convolutions_and_matrix_products_are_counted_exactly() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.GELU())
    assert macs(model, Size(10, 14)) == 5 * 7 * 8 * (27 + 9)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 81))
    assert macs(head, Size(10, 14)) == 3 * 81


def test_attention_is_counted() -> None:
    n = 6 * 5
    assert macs(Attention(), Size(6, 5)) == n * 3 * 36 + 2 * (2 * n * n * 6)


def test_torchs_fused_encoder_layer_does_not_hide_its_products() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Linear(3, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.lift(x.flatten(2).transpose(1, 2)))

    n = 4 * 7
    assert macs(Encoder().eval(), Size(4, 7)) == n * 3 * 16 + n * 16 * (48 + 16 + 64) + 2 * n * n * 16


def test_counting_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert macs(model, Size(8, 8)) == 8 * 8 * 3 * 4
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


class Sleeper(nn.Module):
    """Slow in its warm-up, then 4 ms a run; says how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(x.shape), self.training, torch.is_inference_mode_enabled()))
        time.sleep(0.1 if len(self.calls) <= WARM_UP else 0.004)
        return x


def test_latency_is_the_median_without_the_warm_up() -> None:
    model = Sleeper().train()
    result = latency(model, Size(8, 12), CPU, batch=2, budget_s=0.2)
    assert 4 <= result.p10 <= result.median_ms <= result.p90
    assert result.median_ms < 50
    assert result.runs >= FEWEST_RUNS
    assert len(model.calls) == WARM_UP + result.runs
    assert set(model.calls) == {((2, 3, 8, 12), False, True)}
    assert model.training
    assert result.images_per_s == pytest.approx(2000 / result.median_ms)


def test_a_budget_of_nothing_still_measures() -> None:
    assert latency(nn.Identity(), Size(4, 4), CPU, budget_s=0.0).runs == FEWEST_RUNS
