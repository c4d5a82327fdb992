from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from anyres.data.augment import mix_seed, seeded
from anyres.data.erasing import Box, draw_boxes, erase, paint, paint_each
from anyres.data.mix import draw_box, mix, mix_rng, normalize, smooth_one_hot
from anyres.data.mix_config import MixConfig
from anyres.flow import Batch, Labels

K = 4
BOTH = MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1)


def views(b: int = 5) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(b, 3, h, w, generator=g) for h, w in ((24, 36), (16, 24), (7, 11)))


def copied(some: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Views are mixed in place."""
    return tuple(view.clone() for view in some)


def one_hot(target: torch.Tensor, s: float) -> np.ndarray:
    hot = np.full((len(target), K), s / K)
    hot[np.arange(len(target)), target.numpy()] = 1 - s + s / K
    return hot


TARGET = torch.tensor([0, 1, 2, 3, 0])


def test_smoothing_alone_leaves_the_images() -> None:
    v = views()
    mixed, soft = mix(copied(v), TARGET, K, MixConfig(smoothing=0.2), mix_rng(0, 0))
    assert all(torch.equal(a, b) for a, b in zip(v, mixed, strict=True))
    np.testing.assert_allclose(soft.numpy(), one_hot(TARGET, 0.2), atol=1e-7)
    np.testing.assert_allclose(smooth_one_hot(TARGET, K, 0.0).sum(1), 1)


@pytest.mark.parametrize("b", [1, 4, 5])
def test_mixup_blends_with_the_reversed_batch(b: int) -> None:
    v, target = views(b), TARGET[:b]
    mixed, soft = mix(copied(v), target, K, MixConfig(mixup=0.8, smoothing=0.1), mix_rng(1, 2))
    rng = mix_rng(1, 2)
    rng.random()  # whether to mix
    lam = rng.beta(0.8, 0.8)
    for before, after in zip(v, mixed, strict=True):
        x = before.numpy()
        np.testing.assert_allclose(after.numpy(), lam * x + (1 - lam) * x[::-1], atol=1e-6)
    hot = one_hot(target, 0.1)
    np.testing.assert_allclose(soft.numpy(), lam * hot + (1 - lam) * hot[::-1], atol=1e-6)


@pytest.mark.parametrize("step", range(12))
def test_cutmix_box_is_drawn_at_the_largest_view_and_scaled_by_each_axis(step: int) -> None:
    v = views()
    mixed, soft = mix(copied(v), TARGET, K, MixConfig(cutmix=1.0), mix_rng(1, step))
    rng = mix_rng(1, step)
    rng.random()
    lam = rng.beta(1.0, 1.0)
    side = np.sqrt(1 - lam)
    y, x = rng.integers(24), rng.integers(36)
    half_h, half_w = int(24 * side) // 2, int(36 * side) // 2
    top, bottom = np.clip([y - half_h, y + half_h], 0, 24)
    left, right = np.clip([x - half_w, x + half_w], 0, 36)
    for before, after in zip(v, mixed, strict=True):
        h, w = before.shape[-2:]
        ys, xs = np.mgrid[:h, :w]
        inside = (ys >= int(top * h / 24)) & (ys < int(bottom * h / 24))
        inside &= (xs >= int(left * w / 36)) & (xs < int(right * w / 36))
        np.testing.assert_array_equal(after.numpy(), np.where(inside, before.numpy()[::-1], before.numpy()))
    share = 1 - (bottom - top) * (right - left) / (24 * 36)
    hot = one_hot(TARGET, 0.0)
    np.testing.assert_allclose(soft.numpy(), share * hot + (1 - share) * hot[::-1], atol=1e-6)


def test_boxes_have_the_area_of_their_lambda_unless_clipped() -> None:
    rng = np.random.default_rng(0)
    for lam in (0.0, 0.3, 0.99, 1.0):
        for _ in range(50):
            top, bottom, left, right = draw_box(100, 200, lam, rng)
            assert 0 <= top <= bottom <= 100
            assert 0 <= left <= right <= 200
            assert (bottom - top) * (right - left) <= (1 - lam) * 100 * 200 + 1e-9
    assert draw_box(1, 1, 0.5, rng) in {(0, 0, 0, 0)}


def test_prob_and_switch_are_shares_of_batches() -> None:
    v = (torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 32, 32).contiguous(),)
    how = replace(BOTH, prob=0.5, switch=0.25)
    kinds = {"none": 0, "cut": 0, "up": 0}
    for step in range(600):
        (image,), _ = mix(copied(v), TARGET[:2], K, how, mix_rng(7, step))
        values = len(image[0].unique())
        kinds["none" if torch.equal(image, v[0]) else "cut" if values == 2 else "up"] += 1
    assert 250 < kinds["none"] < 360
    assert 45 < kinds["cut"] < 105


def test_the_draw_is_shared_or_each_view_has_its_own() -> None:
    same = views()[:1] * 2
    mixed, soft = mix(copied(same), TARGET, K, BOTH, mix_rng(3, 1))
    assert torch.equal(mixed[0], mixed[1])
    assert soft.shape == (5, K)
    mixed, soft = mix(copied(same), TARGET, K, replace(BOTH, share=False), mix_rng(3, 1))
    assert not torch.equal(mixed[0], mixed[1])
    assert soft.shape == (2, 5, K)
    assert not torch.equal(soft[0], soft[1])
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)


def test_the_generator_depends_on_seed_step_and_rank() -> None:
    assert len({mix_rng(*n).random() for n in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 4
    assert mix_rng(5, 6, 7).random() == mix_rng(5, 6, 7).random()


def test_normalise() -> None:
    raw = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    batch = Batch((raw, raw[..., :2]), Labels(torch.tensor([0, 1])), torch.tensor([5, 9]))
    done = normalize(batch, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.device("cpu"))
    expected = (raw.numpy() / 255 - np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / np.array(
        [0.229, 0.224, 0.225]
    ).reshape(3, 1, 1)
    assert done.views[0].dtype == torch.float32
    np.testing.assert_allclose(done.views[0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(done.views[1].numpy(), expected[..., :2], atol=1e-6)
    assert raw.dtype == torch.uint8
    assert done.index.tolist() == [5, 9]


def blank(index: list[int]) -> Batch:
    n = len(index)
    sizes = (40, 20)
    return Batch(
        tuple(torch.full((n, 3, s, s), 9.0) for s in sizes),
        Labels(torch.zeros(n, dtype=torch.int64)),
        torch.tensor(index),
    )


def test_erasing_depends_on_seed_epoch_index_and_view_only() -> None:
    state = torch.get_rng_state()
    both = erase(blank([3, 4]), 1.0, 0, 0)
    alone = erase(blank([4]), 1.0, 0, 0)
    assert all(torch.equal(a[1], b[0]) for a, b in zip(both.views, alone.views, strict=True))
    assert not torch.equal(erase(blank([4]), 1.0, 0, 1).views[0], alone.views[0])
    assert not torch.equal(erase(blank([4]), 1.0, 1, 0).views[0], alone.views[0])
    assert torch.equal(state, torch.get_rng_state())


def test_erased_boxes_are_noise_of_the_right_area_and_frequency() -> None:
    n = 400
    done = erase(blank(list(range(n))), 0.25, 0, 0)
    changed = (done.views[0] != 9).any(1).view(n, -1).float().mean(1)  # share of the pixels of each image
    hit = changed > 0
    assert 70 < int(hit.sum()) < 130
    assert changed[hit].min() > 0.015
    assert changed[hit].max() < 0.36
    noise = done.views[0][done.views[0] != 9]
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(hit, (done.views[1] != 9).any(1).view(n, -1).any(1))  # views decide by themselves
    untouched = erase(blank([1, 2]), 0.0, 0, 0)
    assert (untouched.views[0] == 9).all()


def timms(batch: Batch, probability: float, seed: int, epoch: int) -> None:
    """Image by image, as timm erases it, under the seeds of ``draw_boxes``."""
    box = RandomErasing(probability=1.0, max_area=1 / 3, mode="pixel", device="cpu")
    for i, view in enumerate(batch.views):
        for image, index in zip(view, batch.index.tolist(), strict=True):
            if mix_seed(seed, epoch, index, i, 2) < probability * 2**63:
                with seeded(seed, epoch, index, i, 1):
                    box(image)


def test_boxes_and_noise_are_timms_bit_for_bit() -> None:
    ours, theirs = blank(list(range(60))), blank(list(range(60)))
    odd = torch.full((60, 3, 3, 70), 9.0)  # many boxes do not fit, and many have few pixels
    ours, theirs = (Batch((*each.views, odd.clone()), each.targets, each.index) for each in (ours, theirs))
    erase(ours, 0.6, 3, 2)
    timms(theirs, 0.6, 3, 2)
    for view, same in zip(ours.views, theirs.views, strict=True):
        assert torch.equal(view, same)
        assert 10 < int((view != 9).flatten(1).any(1).sum()) < 50


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_painting_at_once_is_painting_box_by_box(layout: torch.memory_format) -> None:
    batch = blank(list(range(30)))
    for i, view in enumerate(batch.views):
        boxes = [*draw_boxes(batch, i, 0.7, 0, 0), Box(29, 3, 4, 0, 5, 1)]  # the last has no pixels
        once, each = (view.clone().to(memory_format=layout) for _ in range(2))
        paint(once, boxes)
        paint_each(each, boxes)
        assert torch.equal(once, each)
        assert (once != 9).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_given_the_same_views() -> None:
    raw = tuple(torch.randint(256, (6, 3, side, side), dtype=torch.uint8) for side in (24, 9))
    made = []
    for device in map(torch.device, ("cpu", "cuda")):
        batch = normalize(Batch(raw, Labels(torch.arange(6) % K), torch.arange(6)), (0.4,) * 3, (0.2,) * 3, device)
        batch = erase(batch, 0.7, 0, 0)
        made.append(mix(batch.views, batch.targets.of(0), K, BOTH, mix_rng(1, 1)))
    for a, b in zip((*made[0][0], made[0][1]), (*made[1][0], made[1][1]), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-6)


def test_what_is_done_a_few_images_at_a_time_is_what_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tuple(torch.randint(256, (7, 3, side, side), dtype=torch.uint8) for side in (24, 9))
    made = []
    for cache in (1 << 18, 1, 4000):
        monkeypatch.setattr("anyres.data.mix.IN_CACHE", cache)
        batch = normalize(Batch(raw, Labels(TARGET), torch.arange(7)), (0.4,) * 3, (0.2,) * 3, torch.device("cpu"))
        made.append(mix(batch.views, torch.arange(7) % K, K, MixConfig(mixup=0.8), mix_rng(1, 1))[0])
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("options", [{"mixup": -1.0}, {"prob": 1.5}, {"switch": -0.1}, {"smoothing": 2.0}])
def test_options_that_cannot_be_meant(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="mix"):
        MixConfig(**options)
    assert BOTH.on
    assert not MixConfig().on
