"""torchvision's classifiers as backbones of ours: ``create_model("torchvision:resnet18", num_classes=10)``.

The wrapper's parameters, buffers and children are those of torchvision's model, so names and state dicts are
torchvision's own; the transforms of its published weights decide mean, deviation, crop and interpolation. Its feature
is what the last linear layer sees, the pooled vector: there are no patch tokens but this one, and no intermediates.
Vision transformers and MaxViT take one size, which ``img_size`` chooses; the others any. Auxiliary classifiers
(GoogLeNet, Inception) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torchvision import models

from anyres.config import UserError, config, first_line, nearest
from anyres.models.contract import Backbone, Traits, check_pool, timm_cfg
from anyres.models.external import Size, attention_in, contract_fault, share_members, size_fault
from anyres.models.fetch import fetch
from anyres.models.state_files import read_state
from anyres.ops.head import new_head

PREFIX = "torchvision:"
AUXILIARY = ("aux", "AuxLogits")
"""How the names of auxiliary classifiers begin."""


@config
class TorchvisionConfig:
    """Which classifier of torchvision's, and what it is built with."""

    name: str
    """torchvision's name, as ``resnet18``."""
    img_size: int | None = None
    """Side in pixels that its tables are made for, where it has any; None: its own."""
    in_chans: int = 3
    """Channels of an image."""
    num_classes: int = 1000
    """Classes; 0: no classifier."""

    def __post_init__(self) -> None:
        if self.in_chans < 1 or self.num_classes < 0:
            raise UserError(f"{PREFIX}{self.name}: in_chans must be 1 or more, num_classes 0 or more")


class Torchvision(Backbone):
    """Image (b, k, h, w) -> logits (b, num_classes). See the module's docstring."""

    traits = Traits()
    torchvision: nn.Module
    """torchvision's model, whose members are this module's."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        share_members(self, "torchvision", build(config))
        self.config = config
        self.pretrained_cfg = preprocessing(config)
        self.num_classes = config.num_classes
        self.num_features = _layers(config.name).features
        self.feature_info = []
        self.tried: dict[tuple[Size, bool], str] = {}
        """What was wrong with each size that was tried, in evaluation and in training; empty: nothing."""

    def train(self, mode: bool = True) -> Torchvision:
        super().train(mode)
        self.torchvision.training = mode
        return self

    def init_weights(self) -> None:
        """As torchvision draws them."""
        self.load_state_dict(build(self.config).state_dict())

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        """Image -> logits."""
        logits: Tensor = self.torchvision(x)
        return logits

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c"]:
        """Image -> what the classifier sees."""
        seen: list[Tensor] = []
        watch = self.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.torchvision(x)
        finally:
            watch.remove()
        return seen[0]

    def forward_head(self, x: Float[Tensor, "b c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Pooled vector -> logits, or itself with ``pre_logits``."""
        return x if pre_logits else self.get_classifier()(x)

    def patch_tokens(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b 1 c"]:
        """The pooled vector as the only token."""
        return x[:, None]

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, c) -> logits (b, k)."""
        return self.get_submodule(_layers(self.config.name).head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh linear layer of ``num_classes`` (0: none)."""
        check_pool(global_pool, "", self.name)
        like = next(self.parameters())
        self.torchvision.set_submodule(_layers(self.config.name).head, new_head(self.num_features, num_classes, like))
        self.num_classes = num_classes
        self.config = replace(self.config, num_classes=num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: the parts in the order in which torchvision names them; the head last."""
        parts = _layers(self.config.name).parts
        patterns = [rf"^{re.escape(part)}(?:\.|$)" for part in parts]
        return {"stem": patterns[0], "blocks": [(pattern, (i,)) for i, pattern in enumerate(patterns[1:])]}

    def attention_modules(self) -> list[nn.Module]:
        """See ``external.attention_in``."""
        return attention_in(self)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's own names, without auxiliary classifiers."""
        return {key: tensor for key, tensor in state.items() if not key.startswith(AUXILIARY)}

    def pretrained_state(self) -> dict[str, Tensor]:
        """The weights that torchvision publishes as its best. Raises UserError."""
        known = _weights(self.config.name)
        return read_state(fetch(known.url))

    def check_sizes(self, sizes: Iterable[Size], *, training: bool = False) -> None:
        """See ``Backbone``. A size is tried with an empty image, once."""
        for size in dict.fromkeys((height, width) for height, width in sizes):
            key = (size, training)
            if key not in self.tried:
                fault = size_fault(self, self.name, size)
                self.tried[key] = fault or (contract_fault(self, self.name, size) if training else "")
            if self.tried[key]:
                raise UserError(self.tried[key])

    @property
    def name(self) -> str:
        """With its prefix."""
        return f"{PREFIX}{self.config.name}"


class _Layers:
    """What a model consists of: its head, the vector that the head sees, its first convolution, its parts in order."""

    def __init__(self, model: nn.Module, name: str) -> None:
        linears = {key: each for key, each in model.named_modules() if isinstance(each, nn.Linear)}
        linears = {key: each for key, each in linears.items() if not key.startswith(AUXILIARY)}
        convolutions = [key for key, each in model.named_modules() if isinstance(each, nn.Conv2d)]
        if not linears:
            raise UserError(f"{PREFIX}{name} has no linear classifier: it cannot be used here")
        self.head, last = list(linears.items())[-1]
        self.features = last.in_features
        self.first_conv = convolutions[0]
        names = [key for key, _ in model.named_parameters() if not key.startswith((*AUXILIARY, self.head))]
        self.parts = list(dict.fromkeys(map(part_of, names)))


def part_of(parameter: str) -> str:
    """The part of a model to which a parameter belongs: ``layer1.0``, ``encoder.layers.encoder_layer_3``, ``conv1``."""
    numbered = re.match(r"(.*?\d+(?:\.\d+)?)\.", parameter)
    return numbered[1] if numbered else re.sub(r"\.(weight|bias)$", "", parameter)


@cache
def _layers(name: str) -> _Layers:
    with torch.random.fork_rng(devices=[]):  # what a seed gives does not depend on what was asked before
        return _Layers(_make(TorchvisionConfig(name=name)), name)


def build(config: TorchvisionConfig) -> nn.Module:
    """torchvision's model. Raises UserError with torchvision's reason in one line."""
    layers, made = _layers(config.name), _make(config)
    if not config.num_classes:
        made.set_submodule(layers.head, nn.Identity())
    if config.in_chans != 3:
        first = made.get_submodule(layers.first_conv)
        assert isinstance(first, nn.Conv2d)
        first.weight = nn.Parameter(adapt_input_conv(config.in_chans, first.weight.detach()))
        first.in_channels = config.in_chans
    return made


def _make(config: TorchvisionConfig) -> nn.Module:
    inception = {"aux_logits": False, "transform_input": config.in_chans == 3, "init_weights": True}
    sizes: list[dict[str, Any]] = [{}]
    if config.img_size is not None and config.img_size != _side(config.name):
        sizes = [{"image_size": config.img_size}, {"input_size": (config.img_size, config.img_size)}]
    for size in sizes:
        for options in (inception, {}):
            try:
                made: nn.Module = models.get_model(
                    config.name, weights=None, num_classes=config.num_classes or 1, **options, **size
                )
                return made
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
            except ValueError as error:
                raise UserError(f"{PREFIX}{config.name}: {first_line(error)}") from None
    raise UserError(f"{PREFIX}{config.name} has no option 'img_size'")


def _weights(name: str) -> Any:
    """torchvision's default weights. Raises UserError naming the nearest classifiers."""
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"{PREFIX}{name} is no classifier of torchvision's{nearest(name, known)}")
    return models.get_model_weights(name).DEFAULT


def _side(name: str) -> int:
    return int(_weights(name).transforms().crop_size[0])


def preprocessing(config: TorchvisionConfig) -> dict[str, Any]:
    """timm's pretrained_cfg, from the transforms of torchvision's weights."""
    preset, layers = _weights(config.name).transforms(), _layers(config.name)
    side, short = config.img_size or preset.crop_size[0], preset.resize_size[0]
    cfg = timm_cfg(
        config.num_classes,
        (config.in_chans, side, side),
        min(1.0, preset.crop_size[0] / short),
        layers.first_conv,
        layers.head,
    )
    return cfg | {
        "mean": tuple(map(float, preset.mean)),
        "std": tuple(map(float, preset.std)),
        "interpolation": preset.interpolation.value,
    }


class _Variants(Mapping[str, TorchvisionConfig]):
    """``torchvision:NAME`` -> its configuration, for every classifier of torchvision's."""

    def __getitem__(self, name: str) -> TorchvisionConfig:
        known = name.removeprefix(PREFIX)
        return TorchvisionConfig(name=known, num_classes=len(_weights(known).meta["categories"]))

    def __iter__(self) -> Iterator[str]:
        return (f"{PREFIX}{name}" for name in models.list_models(module=models))

    def __len__(self) -> int:
        return len(models.list_models(module=models))


Config, Model = TorchvisionConfig, Torchvision
VARIANTS = _Variants()
