"""The families of this package: their models with their cost, and what else they are called. Imports no torch.

Others ask ``anyres.models.registry``, which also knows the families that other packages bring.
"""

from __future__ import annotations

from typing import NamedTuple


class ModelStats(NamedTuple):
    """What a model costs as it comes, with its own number of classes (tests measure every figure anew).

    ``macs``: multiply-accumulates of convolutions, linear layers and the attention products, for one image of the
    native side ``size`` in pixels. ``tensors``: entries of its state dict, ``head_tensors`` of them the classifier's.
    """

    parameters: int
    macs: int
    size: int
    tensors: int
    classes: int = 1000
    head_tensors: int = 2


MODEL_STATS: dict[str, dict[str, ModelStats]] = {
    "rest": {
        "rest_lite": ModelStats(10_508_300, 1_533_125_376, 224, 194),
        "rest_small": ModelStats(13_679_708, 2_093_352_960, 224, 274),
        "rest_base": ModelStats(30_327_052, 4_625_875_648, 224, 274),
        "rest_large": ModelStats(51_676_156, 8_359_835_584, 224, 514),
    },
    "restv2": {
        "restv2_tiny": ModelStats(30_434_776, 4_083_487_200, 224, 274),
        "restv2_small": ModelStats(41_205_976, 5_953_609_440, 224, 406),
        "restv2_base": ModelStats(55_965_208, 7_860_168_864, 224, 534),
        "restv2_large": ModelStats(86_532_520, 13_800_628_224, 224, 538),
        "restv2_nano": ModelStats(1_958_264, 262_217_056, 224, 146),
    },
    "resformer": {
        "resformer_tiny_patch16": ModelStats(5_689_192, 1_258_086_144, 224, 177),
        "resformer_small_patch16": ModelStats(21_986_536, 4_607_688_192, 224, 177),
        "resformer_base_patch16": ModelStats(86_431_720, 17_581_440_000, 224, 177),
        "resformer_nano": ModelStats(1_348_840, 298_526_720, 112, 93),
    },
    "resmlp": {
        "resmlp_12": ModelStats(15_350_872, 3_009_739_776, 224, 150),
        "resmlp_24": ModelStats(30_020_680, 5_961_292_800, 224, 294),
        "resmlp_36": ModelStats(44_690_488, 8_912_845_824, 224, 438),
        "resmlpB_24": ModelStats(129_138_280, 100_230_739_968, 224, 294),
        "resmlpB_24_p16": ModelStats(115_736_776, 23_020_713_984, 224, 294),
        "resmlp_nano": ModelStats(973_800, 55_178_240, 64, 78),
    },
    "deit": {
        "deit_tiny_patch16_224": ModelStats(5_717_416, 1_253_683_200, 224, 152),
        "deit_small_patch16_224": ModelStats(22_050_664, 4_598_882_304, 224, 152),
        "deit_base_patch16_224": ModelStats(86_567_656, 17_563_828_224, 224, 152),
        "deit_base_patch16_384": ModelStats(86_859_496, 55_484_350_464, 384, 152),
        "deit_tiny_distilled_patch16_224": ModelStats(5_910_800, 1_261_003_776, 224, 155),
        "deit_small_distilled_patch16_224": ModelStats(22_436_432, 4_624_140_288, 224, 155),
        "deit_base_distilled_patch16_224": ModelStats(87_338_192, 17_656_811_520, 224, 155),
        "deit_base_distilled_patch16_384": ModelStats(87_630_032, 55_591_342_080, 384, 155),
    },
    "deit3": {
        "deit_tiny_patch16_LS": ModelStats(5_721_832, 1_253_683_200, 224, 176),
        "deit_small_patch16_LS": ModelStats(22_059_496, 4_598_882_304, 224, 176),
        "deit_medium_patch16_LS": ModelStats(38_849_512, 7_990_968_320, 224, 176),
        "deit_base_patch16_LS": ModelStats(86_585_320, 17_563_828_224, 224, 176),
        "deit_large_patch16_LS": ModelStats(304_374_760, 61_554_712_576, 224, 344),
        "deit_huge_patch14_LS": ModelStats(632_126_440, 167_295_109_120, 224, 456),
        "deit_huge_patch14_52_LS": ModelStats(1_025_726_440, 271_733_329_920, 224, 736),
        "deit_huge_patch14_26x2_LS": ModelStats(1_025_726_440, 271_733_329_920, 224, 736),
        "deit_Giant_48_patch14_LS": ModelStats(1_599_158_248, 420_688_286_720, 224, 680),
        "deit_Giant_48x2_patch14_LS": ModelStats(3_195_240_424, 841_124_430_848, 224, 1352),
        "deit_giant_40_patch14_LS": ModelStats(955_030_504, 252_209_869_824, 224, 568),
        "deit_giant_40x2_patch14_LS": ModelStats(1_907_458_024, 504_206_388_224, 224, 1128),
        "deit_small_patch16_18x2_LS": ModelStats(64_665_064, 13_680_273_408, 224, 512),
        "deit_small_patch16_18x2": ModelStats(64_637_416, 13_680_273_408, 224, 440),
        "deit_small_patch16_36_LS": ModelStats(64_665_064, 13_680_273_408, 224, 512),
        "deit_small_patch16_36": ModelStats(64_637_416, 13_680_273_408, 224, 440),
        "deit_base_patch16_18x2_LS": ModelStats(256_731_112, 52_458_737_664, 224, 512),
        "deit_base_patch16_18x2": ModelStats(256_675_816, 52_458_737_664, 224, 440),
        "deit_base_patch16_36x1_LS": ModelStats(256_731_112, 52_458_737_664, 224, 512),
        "deit_base_patch16_36x1": ModelStats(256_675_816, 52_458_737_664, 224, 440),
    },
    "cait": {
        "cait_XXS24_224": ModelStats(11_956_264, 2_523_475_200, 224, 476),
        "cait_XXS24": ModelStats(12_029_224, 9_599_136_000, 384, 476),
        "cait_XXS36_224": ModelStats(17_299_720, 3_755_697_408, 224, 692),
        "cait_XXS36": ModelStats(17_372_680, 14_313_009_408, 384, 692),
        "cait_XS24": ModelStats(26_670_088, 19_240_642_944, 384, 476),
        "cait_S24_224": ModelStats(46_916_200, 9_327_327_744, 224, 476),
        "cait_S24": ModelStats(47_062_120, 32_110_109_184, 384, 476),
        "cait_S36": ModelStats(68_366_632, 47_907_955_200, 384, 692),
        "cait_M36": ModelStats(271_221_352, 172_943_655_936, 384, 692),
        "cait_M48": ModelStats(356_460_520, 329_107_670_016, 448, 908),
    },
    "patchconvnet": {
        "S60": ModelStats(25_231_096, 3_979_469_568, 224, 807),
        "S120": ModelStats(47_723_896, 7_492_700_928, 224, 1587),
        "B60": ModelStats(99_388_936, 15_803_008_512, 224, 807),
        "B120": ModelStats(188_611_336, 29_774_648_832, 224, 1587),
        "L60": ModelStats(176_009_576, 28_043_184_128, 224, 807),
        "L120": ModelStats(334_294_376, 52_845_529_088, 224, 1587),
        "S60_multi": ModelStats(25_614_712, 5_308_019_712, 224, 2805, head_tensors=2000),
    },
    "dino": {
        "vit_tiny": ModelStats(5_524_416, 1_253_491_200, 224, 150, 0, 0),
        "dino_vits16": ModelStats(21_665_664, 4_598_498_304, 224, 150, 0, 0),
        "dino_vits8": ModelStats(21_670_272, 22_405_358_592, 224, 150, 0, 0),
        "dino_vitb16": ModelStats(85_798_656, 17_563_060_224, 224, 150, 0, 0),
        "dino_vitb8": ModelStats(85_807_872, 78_147_569_664, 224, 150, 0, 0),
    },
}
"""Module of ``anyres.models`` -> the names of its VARIANTS (a test keeps the two equal)."""

ALIASES = {
    "restv1_lite": "rest_lite",
    "restv1_small": "rest_small",
    "restv1_base": "rest_base",
    "restv1_large": "rest_large",
    "resformer_tiny": "resformer_tiny_patch16",
    "resformer_small": "resformer_small_patch16",
    "resformer_base": "resformer_base_patch16",
    "resmlp_s12": "resmlp_12",
    "resmlp_s24": "resmlp_24",
    "resmlp_s36": "resmlp_36",
    "resmlp_b24_p16": "resmlpB_24_p16",
    "resmlp_b24_p8": "resmlpB_24",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_tiny_distilled": "deit_tiny_distilled_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_small_distilled": "deit_small_distilled_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit_base_distilled": "deit_base_distilled_patch16_224",
    "deit_base_384": "deit_base_patch16_384",
    "deit_base_distilled_384": "deit_base_distilled_patch16_384",
    "deit3_tiny": "deit_tiny_patch16_LS",
    "deit3_small": "deit_small_patch16_LS",
    "deit3_medium": "deit_medium_patch16_LS",
    "deit3_base": "deit_base_patch16_LS",
    "deit3_large": "deit_large_patch16_LS",
    "deit3_huge": "deit_huge_patch14_LS",
    "deit3_huge_52": "deit_huge_patch14_52_LS",
    "deit3_huge_26x2": "deit_huge_patch14_26x2_LS",
    "deit3_giant_40": "deit_giant_40_patch14_LS",
    "deit3_giant_40x2": "deit_giant_40x2_patch14_LS",
    "deit3_giant_48": "deit_Giant_48_patch14_LS",
    "deit3_giant_48x2": "deit_Giant_48x2_patch14_LS",
    "threethings_small_36": "deit_small_patch16_36",
    "threethings_small_36_ls": "deit_small_patch16_36_LS",
    "threethings_small_18x2": "deit_small_patch16_18x2",
    "threethings_small_18x2_ls": "deit_small_patch16_18x2_LS",
    "threethings_base_36": "deit_base_patch16_36x1",
    "threethings_base_36_ls": "deit_base_patch16_36x1_LS",
    "threethings_base_18x2": "deit_base_patch16_18x2",
    "threethings_base_18x2_ls": "deit_base_patch16_18x2_LS",
    "cait_xxs24_224": "cait_XXS24_224",
    "cait_xxs36_224": "cait_XXS36_224",
    "cait_s24_224": "cait_S24_224",
    "cait_xxs24_384": "cait_XXS24",
    "cait_xxs36_384": "cait_XXS36",
    "cait_xs24_384": "cait_XS24",
    "cait_s24_384": "cait_S24",
    "cait_s36_384": "cait_S36",
    "cait_m36_384": "cait_M36",
    "cait_m48_448": "cait_M48",
    "patchconvnet_s60": "S60",
    "patchconvnet_s120": "S120",
    "patchconvnet_b60": "B60",
    "patchconvnet_b120": "B120",
    "patchconvnet_l60": "L60",
    "patchconvnet_l120": "L120",
    "patchconvnet_s60_multi": "S60_multi",
    "vit_small": "dino_vits16",
    "vit_base": "dino_vitb16",
}
"""Tidy name -> official name. (DINO's code calls its backbones ``vit_small`` and ``vit_base`` too.)"""

OURS = frozenset({"resformer_nano", "restv2_nano", "resmlp_nano"})
"""In no paper, and without a published number."""
