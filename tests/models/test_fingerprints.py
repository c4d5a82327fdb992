"""The spec's fingerprints: the official classes in float64 under a second, independent synthetic fill.

Relative tolerance 1e-9, and half a unit of the last of ten digits printed; ResFormer 1e-6, because its sine table is
float32 in any precision, as in the official code, and another machine's float32 sine may end in another digit.
"""

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyres.models import create_model
from anyres.models.dino import ProjectionHead

ROWS = [
    ("rest_lite", 224, 224, -2.123866852, 0.5737283018, 0.7160477428, 0.00135368939, 32.7234762),
    ("rest_lite", 224, 288, -0.1589117299, -0.9013695687, 0.2169915795, 0.004368409097, 31.29651194),
    ("rest_base", 224, 224, -0.06441976728, 0.3140404901, -0.6720412773, 0.005504187741, 29.43148848),
    ("restv2_tiny", 224, 224, -1.892349006, 0.2534915983, -1.595579626, -0.01588628724, 38.18891715),
    ("restv2_tiny", 224, 288, -2.260968918, 0.09677537679, -1.792670055, -0.02288503516, 39.5005528),
    ("restv2_large", 224, 224, -0.4529123412, -0.09479672948, -0.1697948247, -0.01734346309, 36.66912145),
    ("resformer_tiny", 96, 96, 1.398860682, -0.7615452894, 1.401220239, 0.008323574526, 44.8378959),
    ("resformer_tiny", 128, 128, -0.04631227685, -0.4694039087, 0.6361071326, -0.001450213516, 43.66689683),
    ("resformer_tiny", 224, 224, 0.4086487444, -0.6150426852, 1.130186056, -0.01067685507, 43.52452262),
    ("resformer_small", 160, 160, 0.3083976553, -0.4064220498, 0.8569642846, -0.01167532231, 43.80133595),
    ("resformer_base", 128, 128, -1.223255664, 1.475862295, -1.176810307, -0.0124909837, 45.34760441),
    ("resmlp_12", 224, 224, 1.489518676, -0.2995446535, 3.48094769, 0.03881442771, 135.2720774),
    ("resmlp_24", 224, 224, 38.27383537, 5.465969684, 30.78414787, -0.07995744759, 1098.319785),
    ("resmlpB_24", 224, 224, 9.750176699, 28.17013243, 13.98092341, -1.171352765, 1040.585984),
    ("deit_tiny_patch16_224", 224, 224, 0.821711256, -1.42628499, 0.1364190209, -0.02429036551, 45.65773484),
    ("deit_tiny_distilled", 224, 224, 0.7116675164, -1.065747419, 0.1100875583, -0.005681176561, 31.52113418),
    ("cait_XXS24_224", 224, 224, -0.4937781997, 0.709963345, 0.8272784782, -0.01429492051, 44.90876014),
    ("cait_S24_224", 224, 224, -0.5045134822, 0.1283042856, -0.02247418115, 0.005327329992, 44.54440662),
    ("S60", 224, 224, -0.372096193, -0.3042437293, 0.5532093198, -0.01494049483, 44.85576241),
    ("S60", 384, 384, -0.3222147553, -0.2162237521, 0.6020241855, -0.01333328829, 44.8448656),
    ("S60_multi", 224, 224, 1.385875612, 0.554526173, -0.4551261739, -0.008598949164, 44.68680463),
    ("B60", 224, 224, -0.8361704883, 0.8979783211, -1.309101562, -0.05840963123, 45.81474181),
    ("deit_tiny_patch16_LS", 224, 224, 0.4183331442, -1.854458287, 0.9600982636, -0.0166142202, 45.19246641),
    ("deit_small_patch16_36", 224, 224, -0.2179083673, -0.1961653061, -0.4397541888, 0.03240679398, 44.62731784),
    ("deit_small_patch16_18x2", 224, 224, 0.3648182834, 0.7496409488, 1.242443794, -0.02123742249, 44.87129708),
    ("deit_small_patch16_18x2_LS", 224, 224, 0.4208452776, -0.009469903859, 1.648566805, -0.03698976876, 45.36146467),
    ("vit_tiny", 224, 224, 1.98094417, 1.613339287, 0.0739563683, -0.009934291585, 19.96686271),
    ("vit_tiny", 96, 96, 1.123912568, 0.8320718928, -0.4699655577, -0.006717050491, 19.88629464),
    ("vit_tiny", 224, 288, 1.474362467, 1.758653993, -0.4193910258, -0.01111860635, 19.92254016),
    ("dino_vits8", 96, 96, -0.1671735659, -0.3223166202, -2.068688625, -0.005041261814, 27.64442185),
]


def uniform(key: str, count: int) -> np.ndarray:
    """u(key, i) in [-1, 1) for i below ``count``: an integer hash of the position and of the key's CRC-32."""
    start = zlib.crc32(key.encode()) % 10007
    z = (np.arange(count, dtype=np.uint64) + start * 1000003) % 2**32
    for _ in range(2):
        z = ((z ^ (z >> 16)) * 0x45D9F3B) % 2**32
    return (z ^ (z >> 16)) / 2**31 - 1


def value(key: str, tensor: Tensor) -> Tensor:
    """The state-dict entry ``key``, float64."""
    u = torch.from_numpy(uniform(key, tensor.numel())).reshape(tensor.shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros_like(tensor)
    if leaf == "running_var" or leaf.startswith("gamma"):
        return 1 + 0.5 * u if leaf == "running_var" else 0.5 + 0.1 * u
    if leaf == "weight_g":
        return torch.ones_like(tensor)
    if leaf in ("cls_token", "pos_embed", "dist_token"):
        return 0.5 * u
    if tensor.ndim == 1:
        return (1 if leaf in ("weight", "alpha") else 0) + 0.1 * u
    return u * (3 * tensor.shape[0] / tensor.numel()) ** 0.5


def load(model: nn.Module) -> None:
    model.load_state_dict({key: value(key, tensor) for key, tensor in model.state_dict().items()})


def test_generator() -> None:
    np.testing.assert_allclose(
        uniform("input", 4), [-0.9010943039, -0.5711691226, 0.0178682967, -0.3128667707], atol=1e-10
    )


@pytest.mark.parametrize(("name", "height", "width", "first", "second", "last", "mean", "norm"), ROWS)
@torch.no_grad()
def test_fingerprint(
    name: str, height: int, width: int, first: float, second: float, last: float, mean: float, norm: float
) -> None:
    model = create_model(name).double().eval()
    load(model)
    image = 1.7 * torch.from_numpy(uniform("input", 2 * 3 * height * width)).reshape(2, 3, height, width)
    compare(model(image), first, second, last, mean, norm, 1e-6 if name.startswith("resformer") else 1e-9)


def compare(y: Tensor, first: float, second: float, last: float, mean: float, norm: float, tolerance: float) -> None:
    measured = np.array([y[0, 0].item(), y[0, 1].item(), y[1, -1].item(), y.mean().item(), y.norm().item()])
    expected = np.array([first, second, last, mean, norm])
    last_digit = 10.0 ** (np.floor(np.log10(np.abs(expected))) - 9)  # ten digits are printed
    np.testing.assert_array_less(np.abs(measured - expected), tolerance * np.abs(expected) + 0.5001 * last_digit)


@torch.no_grad()
def test_fingerprint_of_the_hmlp_stem_alone() -> None:
    """Its patch token 0, at 384 channels."""
    stem = create_model("deit_small_patch16_LS", stem="hmlp", depth=1).patch_embed.double().eval()
    load(stem)
    image = 1.7 * torch.from_numpy(uniform("input", 2 * 3 * 224 * 224)).reshape(2, 3, 224, 224)
    tokens, _ = stem(image)
    compare(tokens[:, 0], 0.04817903448, 0.0980888715, 0.1981661725, 0.01881052169, 12.85759924, 1e-9)


@torch.no_grad()
def test_fingerprint_of_the_dino_head() -> None:
    head = ProjectionHead(384, 4096).double().eval()
    load(head)
    features = 1.7 * torch.from_numpy(uniform("input", 2 * 384)).reshape(2, 384)
    y = head(features)
    compare(y, -0.125787564, -0.09166668982, -0.01138425228, -0.0001796108869, 5.631209729, 1e-9)
