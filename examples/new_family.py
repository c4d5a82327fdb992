"""A family of your own: a small convolutional network, trained, measured and deployed by its name.

Call ``anyres.register_family(new_family)``, or name this module in your package's pyproject.toml for every process:

    [project.entry-points."anyres.families"]
    tinyconv = "new_family"
"""

from torch import Tensor, nn

from anyres.config import config
from anyres.models.contract import Backbone, check_pool, timm_cfg
from anyres.ops.head import new_head


@config
class TinyConvConfig:
    width: int = 8  # channels after the first of three layers; each doubles them
    in_chans: int = 3
    num_classes: int = 1000


class TinyConv(Backbone):
    """Image (b, k, h, w) of any size -> logits (b, num_classes)."""

    def __init__(self, config: TinyConvConfig) -> None:
        super().__init__()
        self.num_classes, self.pretrained_cfg = config.num_classes, preprocessing(config)
        self.num_features = 4 * config.width
        widths = (config.in_chans, config.width, 2 * config.width, 4 * config.width)
        layers = [(nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1), nn.GroupNorm(1, widths[i + 1])) for i in range(3)]
        self.blocks = nn.Sequential(*(nn.Sequential(*layer, nn.GELU()) for layer in layers))
        self.reset_classifier(config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # (b, c, ceil(h / 8), ceil(w / 8))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3)) if pre_logits else self.head(x.mean((2, 3)))

    def patch_tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT  # (b, c, h, w) -> (b, n, c), in row-major order

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        check_pool(global_pool, "avg", "TinyConv")
        self.num_classes, self.head = num_classes, new_head(self.num_features, num_classes, next(self.parameters()))


def preprocessing(config: TinyConvConfig) -> dict[str, object]:
    return timm_cfg(config.num_classes, (config.in_chans, 64, 64), 0.875, "blocks.0.0")


Model = TinyConv
VARIANTS = {"tinyconv_8": TinyConvConfig(), "tinyconv_16": TinyConvConfig(width=16)}
