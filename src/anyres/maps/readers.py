"""How each family's attention is read as a map. A family names its reader in ``Traits.look``."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from anyres.maps import twins
from anyres.maps.twins import Twin
from anyres.models import cait, patchconvnet, resformer, rest, restv2
from anyres.models.contract import Backbone
from anyres.ops.attention import SelfAttention


@dataclass(frozen=True)
class Reader:
    """Which modules of a model are looked at, and what of them is a map."""

    attention: type[nn.Module]
    """The attention modules; those of one block make one layer."""
    twin: Callable[..., Twin]
    """``twin(module, *inputs, queries=)``."""
    queries: Literal["token", "classes", "mean"]
    """Whose rows are maps: the class token's, one a head; the class tokens', one each; or the mean of all positions,
    one a head, where the model pools by average."""
    positions: bool
    """Whether queries are positions of the image, so that their answers are a map too (``anyres.maps.fourier``)."""
    added: str = ""
    """What ``Twin.added`` is called, where there is any."""


class_token = Reader(SelfAttention, twins.self_attention, "token", True)
local = Reader(resformer.Attention, twins.local_attention, "token", True, "local")
class_attention = Reader(cait.ClassAttention, twins.class_attention, "token", False)
pooling = Reader(patchconvnet.Pooling, twins.pooling, "classes", False)
emsa = Reader(rest.Attention, twins.emsa, "mean", True)
emsa_plus = Reader(restv2.Attention, twins.emsa_plus, "mean", True, "upsample")


def resolved(model: Backbone) -> Reader | None:
    """The reader that the model's family names; None where it names none."""
    if model.traits.look is None:
        return None
    reader: Reader = pkgutil.resolve_name(model.traits.look)
    return reader
