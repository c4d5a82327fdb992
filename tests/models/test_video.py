"""Models of clips: any size and number of frames, inflated from image models, with and without the order of frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor, nn

import anyres
from anyres.config import UserError
from anyres.models.video import VideoModel, resample_time, sine_of_time

SMALL = {
    "resformer_nano": {"dim": 32, "depth": 2, "heads": 2},
    "deit_tiny_distilled_patch16_224": {"dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32},
    "deit_small_patch16_LS": {"dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32},
}


def clip_model(name: str = "resformer_nano", kind: str = "timesformer", **options: object) -> VideoModel:
    torch.manual_seed(0)
    made = anyres.create_task_model(f"video/{kind}_{name}", 5, backbone=SMALL[name], **options)
    assert isinstance(made, VideoModel)
    return made


def clips(frames: int, height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def stirred(model: VideoModel) -> VideoModel:
    """With time attention that does something, as after training."""
    for module in model.time.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resformer_base_has_the_calculated_number_of_parameters() -> None:
    with torch.device("meta"):
        whole = anyres.create_task_model("video/timesformer_resformer_base")
        plain = anyres.create_task_model("video/average_resformer_base")
        image = anyres.create_model("resformer_base", 400)
    assert count(plain) == count(image)
    assert count(whole) - count(plain) == 12 * 2_954_496 + 8 * 768
    assert round(count(whole) / 1e6, 1) == 121.4


@pytest.mark.parametrize("name", SMALL)
def test_an_inflated_model_answers_with_the_mean_over_frames(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    image = anyres.create_model(name, 5, **SMALL[name])
    for parameter in image.parameters():  # far from its beginning
        nn.init.normal_(parameter, std=0.1)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    x = clips(4, 33, 40)
    frames = torch.stack([image.eval()(x[:, :, i]) for i in range(4)])
    for kind in ("timesformer", "average"):
        made = stirred(clip_model(name, kind)).eval()
        anyres.load_weights(made, tmp_path / "image.pth")
        assert torch.allclose(made(x), frames.mean(0), atol=1e-5)
    other = stirred(clip_model(name))
    before = other.get_classifier().state_dict()
    said = anyres.load_weights(other, tmp_path / "image.pth", replace_head=True)
    assert said.new_classifier
    assert all(torch.equal(value, before[key]) for key, value in other.get_classifier().state_dict().items())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 17, 41), (9, 8, 64)])
def test_any_height_width_and_number_of_frames(name: str, shape: tuple[int, int, int]) -> None:
    model = stirred(clip_model(name))
    x = clips(*shape)
    logits = model(x)
    assert logits.shape == (2, 5)
    packed = x.transpose(1, 2).flatten(1, 2)  # (b, f * k, h, w), as batches carry clips
    assert torch.equal(model(packed), logits)
    features = model.forward_features(x)
    assert torch.equal(model.get_classifier()(model.forward_head(features, pre_logits=True)), logits)
    grid = -(-shape[1] // 8) * -(-shape[2] // 8)
    assert model.patch_tokens(features).shape == (2, shape[0] * grid, 32)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_a_model_with_time_sees_the_order_of_frames() -> None:
    x = clips(4, 24, 24)
    with_time, without = stirred(clip_model()).eval(), clip_model(kind="average").eval()
    assert not torch.allclose(with_time(x), with_time(x.flip(2)), atol=1e-5)
    assert torch.allclose(without(x), without(x.flip(2)), atol=1e-6)
    unlearnt = clip_model().eval()
    assert torch.allclose(unlearnt(x), unlearnt(x.flip(2)), atol=1e-6)


def test_the_table_of_time_is_carried_to_other_numbers_of_frames(tmp_path: Path) -> None:
    table = sine_of_time(8, 6)
    assert resample_time(table, 8) is table
    ramp = torch.arange(8.0)[:, None]
    assert resample_time(ramp, 4).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    torch.save(stirred(clip_model()).state_dict(), tmp_path / "clips.pth")
    four = clip_model(frames=4)
    said = anyres.load_weights(four, tmp_path / "clips.pth")
    assert said.adapted == ("time_embed",)
    assert four.time_embed is not None
    assert torch.equal(four.time_embed, resample_time(sine_of_time(8, 32), 4))


def test_time_attention_is_in_the_layer_of_its_block() -> None:
    model = clip_model()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["time.0.attn.qkv.weight"] == layers["backbone.blocks.0.attn.qkv.weight"] == 1
    assert layers["time.1.fc.bias"] == layers["backbone.blocks.1.mlp.fc1.bias"] == 2
    assert layers["time_embed"] == layers["backbone.cls_token"] == 0
    assert {"time_embed", "backbone.cls_token"} <= model.no_weight_decay()
    assert model.time[0] in model.attention_modules()


def test_recomputed_blocks_have_the_same_gradients() -> None:
    found = []
    for recompute in (False, True):
        model = stirred(clip_model(kind="timesformer"))
        torch.manual_seed(5)
        stirred(model).set_grad_checkpointing(recompute)
        model(clips(3, 16, 16)).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(UserError, match="restv2_nano is no plain ViT"):
        anyres.create_task_model("video/timesformer_restv2_nano")
    with pytest.raises(UserError, match=r"takes clips \(b, 3, frames, h, w\) .*, not \(2, 4, 8, 8\)"):
        clip_model()(torch.zeros(2, 4, 8, 8))
    with pytest.raises(UserError, match="did you mean 'frames'"):
        anyres.create_task_model("video/average_resformer_nano", frams=4)
