"""Any model of timm's as a backbone of ours: ``create_model("timm:convnext_atto", num_classes=10)``.

The wrapper's parameters, buffers and children *are* those of timm's model, so names and state dicts are timm's own.
``pretrained_cfg`` is timm's too: it decides mean, deviation, crop and interpolation.

Which sizes a model takes is decided by what timm offers for it:

* ViT, EVA, Swin and others take ``dynamic_img_size``: every size, in training too; patches are padded where timm can.
* Where there is ``set_input_size`` alone (BEiT, MaxViT, CoAtNet) the model learns at one size, ``img_size``, and
  answers at every size that a copy of it can be set to.
* Convolutional networks take any size. The rest (Mixer, CaiT, LeViT) take one, ``img_size``; ``check_sizes`` says so.

There is no folded form: such a model is deployed as it is.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config, first_line, nearest
from anyres.models.contract import Backbone, Format, Traits
from anyres.models.external import Size, attention_in, contract_fault, empty_image, px_text, share_members, size_fault
from anyres.models.fetch import fetch
from anyres.models.state_files import readable
from anyres.ops.patch import pad_to_multiple
from anyres.storage import offline

PREFIX = "timm:"
ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"dynamic_img_size": True},
    {},
)
"""Options that make a model take any size, the best first: timm's constructors refuse what they do not know."""


@config
class TimmConfig:
    """Which model of timm's, and what it is built with."""

    name: str
    """timm's name, with the tag of its weights where one is meant, as ``convnext_tiny.in12k``."""
    img_size: int | tuple[int, int] | None = None
    """Pixels, a side or (height, width), that its tables are made for; None: those of its ``pretrained_cfg``."""
    in_chans: int = 3
    """Channels of an image."""
    num_classes: int = 1000
    """Classes; 0: no classifier."""
    drop_path: float = 0.0
    """Stochastic depth, timm's ``drop_path_rate``."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""

    def __post_init__(self) -> None:
        if self.in_chans < 1 or self.num_classes < 0:
            raise UserError(f"{PREFIX}{self.name}: in_chans must be 1 or more, num_classes 0 or more")
        if not (0 <= self.drop_path < 1 and 0 <= self.drop_rate < 1):
            raise UserError(f"{PREFIX}{self.name}: drop_path and drop_rate must lie in [0, 1)")

    @property
    def image(self) -> Size | None:
        """``img_size`` as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size


class Heads(nn.Module):
    """timm's one or two classifiers as one: pooled vector (b, c) -> logits (b, k), the mean where there are two.

    ``apart``: each of two heads has a pooled vector of its own, and these come side by side.
    """

    def __init__(self, heads: Sequence[nn.Module], apart: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.apart = apart

    def each(self, pooled: Float[Tensor, "b c"]) -> list[Float[Tensor, "b k"]]:
        """Every head's logits."""
        count = len(self.heads)
        parts = pooled.chunk(count, dim=1) if self.apart else [pooled] * count  # each (b, c / 2) or (b, c)
        return [self.one(head, part) for head, part in zip(self.heads, parts, strict=True)]

    def one(self, head: nn.Module, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """Some heads are 1x1 convolutions."""
        logits: Tensor = head(pooled[:, :, None, None]).flatten(1) if isinstance(head, nn.Conv2d) else head(pooled)
        return logits

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        return torch.stack(self.each(pooled)).mean(0)


def _in_timm(model: Timm) -> tuple[str, dict[str, Any]]:
    """How timm builds it: as it was built here."""
    config = model.config
    usual = tuple(_cfg(config.name).input_size[1:])
    size = {"img_size": config.image} if config.image not in (None, usual) else {}
    return config.name.partition(".")[0], {**model.options, **size, "in_chans": config.in_chans}


class Timm(Backbone):
    """Image (b, k, h, w) -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(rounds_up=False, timm=_in_timm)
    timm: nn.Module
    """timm's model, whose members are this module's."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        made, self.options = build(config)
        share_members(self, "timm", made)
        self.config = config
        self.pretrained_cfg = preprocessing(config)
        self.num_classes = config.num_classes
        # What this model of timm's can do; asked here and nowhere else.
        self.resizable = not self.options and hasattr(made, "set_input_size")
        self.maps_last = getattr(made, "output_fmt", "NCHW") == "NHWC"
        self.prefix_tokens = cast(int, getattr(made, "num_prefix_tokens", 0))
        self.two_heads = len(heads_of(made)) == 2
        self.apart = self.two_heads and self.prefix_tokens == 2
        width: Any = getattr(made, "head_hidden_size", made.num_features)  # MobileNets pool before their last layer
        self.num_features = width * (2 if self.apart else 1)
        self.feature_info = [dict(each) for each in getattr(made, "feature_info", [])]
        self.multiple = 1
        """Images are padded to this: the patch, of a model that ``fix_size`` has set to one size; else timm pads."""
        self.tried: dict[tuple[Size, bool], str] = {}
        """What was wrong with each size that was tried, in evaluation and in training; empty: nothing."""
        self.resized: dict[Size, tuple[list[Any], nn.Module]] = {}
        """The copy that was last set to another size, and of which values of the parameters it was made."""

    def train(self, mode: bool = True) -> Timm:
        super().train(mode)
        self.timm.training = mode
        self.resized.clear()
        return self

    def init_weights(self) -> None:
        """As timm draws them."""
        self.load_state_dict(build(self.config)[0].state_dict())

    def at_size(self, x: Tensor) -> Any:
        """The model that sees ``x``: timm's own, or in evaluation a copy that is set to another size."""
        size: Size = (x.shape[-2], x.shape[-1])
        if not self.resizable or self.training or size == self.native:
            return self.timm
        values = [(p.data_ptr(), p._version) for p in self.parameters()]
        known, model = self.resized.get(size, (None, self.timm))
        if known != values:
            model = copy.deepcopy(self.timm)
            set_size(model, size)
            self.resized = {size: (values, model)}
        return model

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        """Image -> logits."""
        x = pad_to_multiple(x, self.multiple)
        logits: Tensor = self.at_size(x)(x)
        return logits

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b ..."]:
        """Image -> timm's features: tokens (b, t, c), or maps (b, c, h, w) or (b, h, w, c)."""
        x = pad_to_multiple(x, self.multiple)
        features: Tensor = self.at_size(x).forward_features(x)
        return features

    def forward_head(self, x: Float[Tensor, "b ..."], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Features -> logits; with ``pre_logits`` the pooled vector (distilled DeiT: two side by side)."""
        if pre_logits and self.apart:
            return x[:, :2].flatten(1)  # (b, 2, c) -> (b, 2c)
        out: Tensor = self.timm.forward_head(x, pre_logits=pre_logits)  # type: ignore[operator]
        return out

    def heads(self, pooled: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """For a distillation objective: the logits of both heads. Raises UserError if there is one head only."""
        if not self.two_heads:
            raise UserError(f"{self.name} has one head: it has none for a teacher's answers")
        logits, taught = Heads(heads_of(self.timm), self.apart).each(pooled)
        return logits, taught

    def patch_tokens(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b n c"]:
        """Tokens without the special ones, or a map's positions in row-major order. Raises UserError without any."""
        if isinstance(x, Tensor) and x.ndim == 4:
            return x.flatten(1, 2) if self.maps_last else x.flatten(2).mT  # (b, h, w, c) or (b, c, h, w) -> (b, n, c)
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1] <= self.prefix_tokens:
            raise UserError(f"{self.name} has no patch tokens in its features: set objective.target=cls or logit")
        return x[:, self.prefix_tokens :]

    def forward_intermediates(
        self,
        x: Float[Tensor, "b k h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
        output_fmt: Format = "NCHW",
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's own, where it has them."""
        model = self.at_size(x)
        if not hasattr(model, "forward_intermediates"):
            return super().forward_intermediates(x)
        found: list[Tensor] | tuple[Tensor, list[Tensor]] = model.forward_intermediates(
            x, indices=indices, norm=norm, intermediates_only=intermediates_only, output_fmt=output_fmt
        )
        return found

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, num_features) -> logits (b, k)."""
        heads = heads_of(self.timm)
        plain = len(heads) == 1 and not isinstance(heads[0], nn.Conv2d)
        return heads[0] if plain else Heads(heads, self.apart)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier as timm makes it."""
        pool = {} if global_pool is None else {"global_pool": global_pool}
        try:
            self.timm.reset_classifier(num_classes, **pool)  # type: ignore[operator]
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"{self.name}: {first_line(error)}") from None
        self.num_classes = num_classes
        self.config = replace(self.config, num_classes=num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's own. Raises UserError where it has none."""
        if not hasattr(self.timm, "group_matcher"):
            return super().group_matcher(coarse)
        groups: dict[str, Any] = self.timm.group_matcher(coarse=coarse)  # type: ignore[operator]
        return groups

    def no_weight_decay(self) -> set[str]:
        """timm's own, where it names any."""
        return set(self.timm.no_weight_decay()) if hasattr(self.timm, "no_weight_decay") else set()  # type: ignore[operator]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's own. Raises UserError where it has none."""
        try:
            self.timm.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise UserError(f"{self.name}: {first_line(error)}: set train.grad_checkpointing=false") from None

    def attention_modules(self) -> list[nn.Module]:
        """See ``external.attention_in``."""
        return attention_in(self)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's own names and grid; a file of other names or of another grid goes through timm's filter, if it has
        one."""
        own = self.state_dict()
        if state.keys() == own.keys() and all(state[key].shape[2:] == own[key].shape[2:] for key in own):
            tables = [key for key in own if state[key].ndim == 3 and state[key].shape != own[key].shape]
            if not tables:
                return state
        filtered = vars(import_module(type(self.timm).__module__)).get("checkpoint_filter_fn")
        if filtered is None:
            return state
        try:
            return dict(filtered(dict(state), self.timm))
        except Exception:  # whatever a filter makes of a file that is no model of its family
            return state

    def pretrained_state(self) -> dict[str, Tensor]:
        """The weights that timm publishes, for this model's size and channels. Raises UserError."""
        published = replace(self.config, num_classes=_cfg(self.config.name).num_classes or 0)
        return build(published, pretrained=True)[0].state_dict()

    def check_sizes(self, sizes: Iterable[Size], *, training: bool = False) -> None:
        """See ``Backbone``. A size is tried with an empty image, once."""
        for size in dict.fromkeys((height, width) for height, width in sizes):
            key = (size, training)
            if key not in self.tried:
                self.tried[key] = self._try(size, training)
            if self.tried[key]:
                raise UserError(self.tried[key])

    def _try(self, size: Size, training: bool) -> str:
        """What is wrong with a size, in one line; empty if nothing is."""
        own = self.native
        if training and self.resizable and size != own:
            return (
                f"{self.name} learns at one size only, {px_text(own)} px, not at {px_text(size)} px: set views.sizes "
                "to that size, or model.img_size to yours"
            )
        return size_fault(self, self.name, size) or (
            contract_fault(self, self.name, own if self.resizable else size) if training else ""
        )

    def fix_size(self, height: int, width: int) -> None:
        """See ``Backbone``. Exporters cannot resample a position table as a ViT of any size does at every call.

        A model of any size is built anew for this one, sides padded to the patch, and taken if it then answers as
        before; Swin does not where its windows would be others.
        """
        size = (height, width)
        if not hasattr(self.timm, "set_input_size") or (self.resizable and size == self.native):
            return
        fixed = copy.deepcopy(self.timm)
        try:
            if self.resizable:
                set_size(fixed, size)
            else:
                fixed = self._static(fixed, size)
        except (AssertionError, RuntimeError, UserError):
            if self.resizable:
                raise
            return
        share_members(self, "timm", fixed)
        self.pretrained_cfg["input_size"] = (self.config.in_chans, height, width)

    @torch.no_grad()
    def _static(self, model: Any, size: Size) -> nn.Module:
        """A copy of the model as one of this size alone. Raises RuntimeError if it answers otherwise."""
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
        multiple = max(patch) if isinstance(patch, tuple) else int(patch)
        padded = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
        set_size(model, padded)
        image = empty_image(self, size)
        image = image + torch.linspace(-1, 1, image.numel()).reshape(image.shape).to(image).sin()
        with torch.random.fork_rng(devices=[]):
            made, _ = build(replace(self.config, img_size=padded), choices=[dict.fromkeys(self.options, False)])
        made.load_state_dict(model.state_dict())
        made.to(image).eval().requires_grad_(False)
        if not torch.allclose(made(pad_to_multiple(image, multiple)), self.timm(image), rtol=1e-3, atol=1e-4):
            raise RuntimeError("it answers otherwise")
        self.multiple = multiple
        return made

    @property
    def native(self) -> Size:
        """Height and width in pixels that it is made for."""
        height, width = self.pretrained_cfg["input_size"][1:]
        return height, width

    @property
    def name(self) -> str:
        """With its prefix."""
        return f"{PREFIX}{self.config.name}"


def build(
    config: TimmConfig, *, pretrained: bool = False, choices: Sequence[dict[str, bool]] = ANY_SIZE
) -> tuple[nn.Module, dict[str, bool]]:
    """timm's model with the first of ``choices`` that it takes, and that one.

    Raises UserError with timm's reason in one line.
    """
    given: dict[str, Any] = {"num_classes": config.num_classes, "in_chans": config.in_chans}
    if config.drop_path:
        given["drop_path_rate"] = config.drop_path
    if config.drop_rate:
        given["drop_rate"] = config.drop_rate
    if config.image is not None and config.image != tuple(_cfg(config.name).input_size[1:]):
        given["img_size"] = config.image
    for options in choices:
        try:
            overlay = published_weights(config.name) if pretrained else None
            made: nn.Module = timm.create_model(
                config.name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **given, **options
            )
            return made, options
        except TypeError as error:
            unknown = re.findall(r"'(\w+)'", str(error)) if "unexpected keyword argument" in str(error) else []
            if {*unknown} & {*options}:
                continue
            if refused := {*unknown} & {*given}:
                option = min(refused).replace("drop_path_rate", "drop_path")
                raise UserError(f"{PREFIX}{config.name} has no option {option!r}") from None
            raise
        except Exception as error:  # whatever the network, the hub or timm raises
            raise UserError(f"{PREFIX}{config.name} cannot be had: {first_line(error)}") from None
    raise AssertionError("the last options are none")


def published_weights(name: str) -> dict[str, Any]:
    """What of timm's weights is not left to timm: a file of an address, fetched and read here, since torch.hub's cache
    is not checked; and, where the network is forbidden, the file in the hub's cache. Raises UserError, and what the hub
    does."""
    from huggingface_hub import hf_hub_download

    cfg = _cfg(name)
    if cfg.url and not cfg.hf_hub_id:
        path = fetch(cfg.url)
        with readable(path):
            return {"state_dict": torch.load(path, map_location="cpu", weights_only=True)}
    if not offline() or not cfg.hf_hub_id:
        return {}
    repository = f"{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
    return {"file": hf_hub_download(repository, "model.safetensors", local_files_only=True)}


def set_size(model: Any, size: Size) -> None:
    """timm's own, without what torch remarks about its resampling."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_input_size(img_size=size)


def heads_of(model: nn.Module) -> list[nn.Module]:
    """timm's classifiers: one, or a tuple of two."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return list(classifier) if isinstance(classifier, tuple | list) else [classifier]


def _cfg(name: str) -> Any:
    """timm's PretrainedCfg. Raises UserError naming the nearest models."""
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    try:
        cfg = timm.get_pretrained_cfg(name)
    except Exception as error:  # of an unknown tag
        raise UserError(f"{PREFIX}{name}: {first_line(error)}") from None
    return cfg


def preprocessing(config: TimmConfig) -> dict[str, Any]:
    """timm's pretrained_cfg for what was built."""
    known: dict[str, Any] = _cfg(config.name).to_dict()
    height, width = config.image or known["input_size"][1:]
    return known | {
        "num_classes": config.num_classes,
        "input_size": (config.in_chans, height, width),
    }


class _Variants(Mapping[str, TimmConfig]):
    """``timm:NAME`` -> its configuration, for every name and tag that timm knows."""

    def __getitem__(self, name: str) -> TimmConfig:
        known = name.removeprefix(PREFIX)
        return TimmConfig(name=known, num_classes=_cfg(known).num_classes or 0)

    def __iter__(self) -> Iterator[str]:
        return (f"{PREFIX}{name}" for name in timm.list_models())

    def __len__(self) -> int:
        return len(timm.list_models())


Config, Model = TimmConfig, Timm
VARIANTS = _Variants()
