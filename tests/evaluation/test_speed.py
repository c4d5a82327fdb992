import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from anyres.evaluation.speed import (
    FEWEST_CALLS,
    THROUGHPUT_BATCH,
    WARM_UP,
    Timing,
    macs,
    measure_costs,
    measure_costs_of,
    share_of_others,
    time_in_turn,
)
from anyres.flow import Size
from anyres.ops.processors import processors

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
    """Takes 4 ms a run; says how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(x.shape), self.training, torch.is_inference_mode_enabled()))
        time.sleep(0.004)
        return x


def test_sizes_are_timed_in_turn_in_one_window() -> None:
    """No size has all its rounds before the next one has any."""
    model, sizes = Sleeper().train(), [Size(8, 12), Size(16, 16)]
    found = measure_costs(model, sizes, CPU, budget_s=0.1, rounds=3, channels=1)
    assert list(found) == sizes
    assert {call[1:] for call in model.calls} == {(False, True)}
    assert model.training
    shapes = [shape for shape, *_ in model.calls]
    turns = [shape for shape, before in zip(shapes[1:], shapes[:-1], strict=True) if shape != before]
    assert len(turns) >= 4 * 3  # two sizes of two batches, three rounds
    assert set(shapes) == {(b, 1, *size) for b in (1, THROUGHPUT_BATCH) for size in sizes}
    for cost in found.values():
        assert 4 <= cost.latency_low_ms <= cost.latency_ms <= cost.latency_high_ms < 50
        assert 0 < cost.images_per_s <= THROUGHPUT_BATCH / 0.004


def test_models_are_timed_in_turn() -> None:
    fast, slow = nn.Identity(), Sleeper()
    found = measure_costs_of({"fast": fast, "slow": slow}, [Size(4, 4)], CPU, budget_s=0.0)
    assert found["fast", Size(4, 4)].latency_ms < found["slow", Size(4, 4)].latency_ms


def test_a_timing_whose_rounds_differ_is_disturbed() -> None:
    """Something else ran in one of the rounds."""
    rounds = iter([0.001] * (WARM_UP + 1 + FEWEST_CALLS) + [0.02] * (1 + FEWEST_CALLS))
    slept = time_in_turn({"now and then": lambda: time.sleep(next(rounds))}, CPU, budget_s=0.0, rounds=2)
    assert slept["now and then"].disturbed
    assert not Timing((4.0, 4.4, 5.9)).disturbed
    assert Timing((4.0, 6.1)).disturbed


def test_programs_beside_this_one_are_noticed() -> None:
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(3 * processors())]
    try:
        time.sleep(0.2)
        assert 0.3 < share_of_others(0.5) < 1
    finally:
        for other in others:
            other.kill()
            other.wait()
