"""The index of known weights: complete against the publications, unambiguous, and strict about its own keys."""

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from urllib.parse import urlsplit

import pytest
import yaml

from anyres.config import UserError
from anyres.models.index import _row, known_weights

FILES = """
deit_tiny_patch16_224-a1311bcf deit_small_patch16_224-cd65a155 deit_base_patch16_224-b5f2ef4d
deit_tiny_distilled_patch16_224-b40b3cf7 deit_small_distilled_patch16_224-649709d9
deit_base_distilled_patch16_224-df68dfff deit_base_patch16_384-8de9b5d1 deit_base_distilled_patch16_384-d0272ac0
regnety_160-a5fe301d
XXS24_224 XXS24_384 XXS36_224 XXS36_384 XS24_384 S24_224 S24_384 S36_384 M36_384 M48_448
resmlp_12_no_dist resmlp_24_no_dist resmlp_36_no_dist resmlp_12_dist resmlp_24_dist resmlp_36_dist
resmlp_12_dino resmlp_24_dino resmlpB_24_no_dist resmlpB_24_dist resmlpB_24_22k
s60_224_1k s120_224_1k b60_224_1k b120_224_1k s60_224_21k s60_384_21k s60_512_21k b60_224_21k b60_384_21k
b120_224_21k b120_384_21k s60_multi_scratch_1k s60_multi_finetune_1k
deit_3_small_224_1k deit_3_small_224_21k deit_3_small_384_1k deit_3_small_384_21k
deit_3_medium_224_1k deit_3_medium_224_21k deit_3_base_224_1k deit_3_base_224_21k deit_3_base_384_1k
deit_3_base_384_21k deit_3_large_224_1k deit_3_large_224_21k deit_3_large_384_1k deit_3_large_384_21k
deit_3_huge_224_1k deit_3_huge_224_1k_v1 deit_3_huge_224_21k_v1
dino_deitsmall16_pretrain dino_deitsmall8_pretrain dino_vitbase16_pretrain dino_vitbase8_pretrain
"""
"""Every file that can be downloaded directly, without its .pth."""

NOT_DIRECT = {
    "rest_lite.224", "rest_small.224", "rest_base.224", "rest_large.224",
    "restv2_tiny.224", "restv2_small.224", "restv2_base.224", "restv2_large.224",
    "restv2_tiny.384", "restv2_small.384", "restv2_base.384", "restv2_large.384",
    "resformer_tiny.mr", "resformer_small.mr", "resformer_small.mr_384", "resformer_base.mr",
}  # fmt: skip
"""On Baidu or Google Drive."""

NOT_RELEASED = {
    "resformer_small.128", "resformer_small.160", "resformer_small.224", "resmlp_b24_p16.224",
    "deit_tiny.by_size", "deit_small.by_size", "deit_base.by_size",
}  # fmt: skip

ELEVEN = (96, 112, 128, 160, 192, 224, 288, 384, 448, 512, 640)

BY_SIZE = {
    "resformer_tiny.mr": "61.40 64.93 67.78 71.09 72.97 73.85 74.85 75.04 74.39 73.77 71.65",
    "resformer_small.mr": "73.59 76.64 78.24 80.39 81.42 82.16 82.70 82.72 82.52 82.00 80.72",
    "resformer_base.mr": "75.86 78.42 79.74 81.52 82.28 82.72 83.02 83.29 82.90 82.63 81.72",
    "resformer_small.128": "70.25 73.91 75.47 77.06 77.48 76.89 74.78 69.55 64.54 58.34 45.25",
    "resformer_small.160": "67.34 72.26 75.05 78.06 78.94 79.19 78.25 74.86 71.38 66.65 54.77",
    "resformer_small.224": "57.80 66.36 71.35 76.99 79.63 80.83 81.42 80.65 79.28 77.73 73.26",
    "deit_tiny.by_size": "8.06 34.22 52.16 65.68 70.18 72.14 73.10 71.29 67.43 66.07 59.31",
    "deit_small.by_size": "17.55 54.34 67.02 75.62 78.60 79.83 80.02 78.10 75.85 72.63 63.86",
    "deit_base.by_size": "27.86 64.46 73.18 79.05 81.06 81.79 82.19 81.11 79.81 78.23 74.23",
}

AT_NATIVE_SIZE = {
    "rest_lite.224": 77.2, "rest_small.224": 79.6, "rest_base.224": 81.6, "rest_large.224": 83.6,
    "restv2_tiny.224": 82.3, "restv2_small.224": 83.2, "restv2_base.224": 83.7, "restv2_large.224": 84.2,
    "restv2_tiny.384": 83.7, "restv2_small.384": 84.5, "restv2_base.384": 85.1, "restv2_large.384": 85.4,
    "resmlp_s12.224": 76.6, "resmlp_s24.224": 79.4, "resmlp_s36.224": 79.7, "resmlp_b24.224": 81.0,
    "resmlp_s12.dist": 77.8, "resmlp_s24.dist": 80.8, "resmlp_s36.dist": 81.1, "resmlp_b24.dist": 83.6,
    "resmlp_b24.224_21k": 84.4, "resmlp_b24_p16.224": 81.0,
    "deit_tiny.224": 72.2, "deit_small.224": 79.9, "deit_base.224": 81.8, "deit_base.384": 82.9,
    "deit_tiny_distilled.224": 74.5, "deit_small_distilled.224": 81.2, "deit_base_distilled.224": 83.4,
    "deit_base_distilled.384": 85.2,
    "cait_xxs24.224": 78.4, "cait_xxs24.384": 80.954, "cait_xxs36.224": 79.75, "cait_xxs36.384": 82.204,
    "cait_xs24.384": 84.1, "cait_s24.224": 83.5, "cait_s24.384": 85.1, "cait_s36.384": 85.4, "cait_m36.384": 86.1,
    "cait_m48.448": 86.5,
    "patchconvnet_s60.224": 82.1, "patchconvnet_s120.224": 83.2, "patchconvnet_b60.224": 83.5,
    "patchconvnet_b120.224": 84.1, "patchconvnet_s60.224_21k": 83.5, "patchconvnet_s60.384_21k": 84.9,
    "patchconvnet_s60.512_21k": 85.4, "patchconvnet_b60.224_21k": 85.4, "patchconvnet_b60.384_21k": 86.5,
    "patchconvnet_b120.224_21k": 86.0, "patchconvnet_b120.384_21k": 86.9,
    "patchconvnet_s60_multi.scratch": 81.1, "patchconvnet_s60_multi.finetune": 82.0,
    "deit3_small.224": 81.4, "deit3_small.384": 83.4, "deit3_medium.224": 83.0, "deit3_base.224": 83.8,
    "deit3_base.384": 85.0, "deit3_large.224": 84.9, "deit3_large.384": 85.8, "deit3_huge.224": 85.2,
    "deit3_small.224_21k": 83.1, "deit3_small.384_21k": 84.8, "deit3_medium.224_21k": 84.5,
    "deit3_base.224_21k": 85.7, "deit3_base.384_21k": 86.7, "deit3_large.224_21k": 87.0,
    "deit3_large.384_21k": 87.7, "deit3_huge.224_21k": 87.2,
}  # fmt: skip

PROBED = {
    "resmlp_s12.dino": (62.6, 67.5), "resmlp_s24.dino": (69.4, 72.8),
    "dino_vits16.224": (74.5, 77.0), "dino_vits8.224": (78.3, 79.7),
    "dino_vitb16.224": (76.1, 78.2), "dino_vitb8.224": (77.4, 80.1),
}  # fmt: skip

BY_NAME = {row.name: row for row in known_weights()}


def test_every_published_file_has_one_row() -> None:
    urls = [url for row in known_weights() for url in (row.url, row.also) if url]
    assert sorted(urlsplit(url).path.rpartition("/")[2] for url in urls) == sorted(
        f"{name}.pth" for name in FILES.split()
    )
    assert len(set(urls)) == len(urls) == 64
    for url in urls:
        parts = urlsplit(url)
        folder, name = parts.path.lstrip("/").rsplit("/", 1)
        assert (parts.scheme, parts.netloc) == ("https", "dl.fbaipublicfiles.com")
        assert folder == ("dino/" + name.removesuffix(".pth") if name.startswith("dino_") else "deit")


def test_rows_without_a_direct_download_say_where_or_that_there_is_none() -> None:
    places = {row.name: row.published for row in known_weights() if row.url is None}
    assert places.keys() == NOT_DIRECT | NOT_RELEASED
    assert {name for name, place in places.items() if place == "not released"} == NOT_RELEASED
    for name in NOT_DIRECT:
        place = places[name]
        assert place is not None
        if name.startswith("rest"):
            assert "Baidu (code rest)" in place
        if not name.startswith("restv2"):
            assert "Google Drive" in place
    assert all(row.published is None for row in known_weights() if row.url)


def test_the_figures_are_the_published_ones() -> None:
    expected: dict[str, Mapping[int, float]] = {
        name: dict(zip(ELEVEN, map(float, values.split()), strict=True)) for name, values in BY_SIZE.items()
    }
    expected["resformer_small.mr_384"] = {96: 72.92, 128: 77.84, 160: 80.09, 224: 82.28, 384: 83.70, 512: 83.86}
    expected |= {name: {BY_NAME[name].img_size: value} for name, value in AT_NATIVE_SIZE.items()}
    assert {row.name: row.top1 for row in known_weights() if row.top1} == expected
    assert {row.name: (row.knn, row.linear) for row in known_weights() if row.knn or row.linear} == PROBED
    assert BY_NAME.keys() - expected.keys() - PROBED.keys() == {"regnety_160.teacher"}


def test_rows_are_sound() -> None:
    rows = known_weights()
    assert len(BY_NAME) == len(rows) == 86
    for row in rows:
        tag = row.name.rpartition(".")[2]
        assert row.img_size in (128, 160, 224, 384, 448, 512), row.name
        assert not tag[:3].isdigit() or int(tag[:3]) == row.img_size, row.name
        assert row.img_size == 224 or not row.url or f"_{row.img_size}" in row.url, row.name
        figures = [*row.top1.values(), *(v for v in (row.knn, row.linear) if v is not None)]
        assert all(0 < value < 100 for value in figures), row.name
        assert all(size % 16 == 0 for size in row.top1), row.name
        assert 0.8 < row.crop_pct <= 1, row.name
        assert row.interpolation == "bicubic"
        assert row.crop_mode == ("squash" if row.model.startswith("restv2") and row.img_size == 384 else "center")
        assert row.mean == (0.485, 0.456, 0.406)
        assert row.std == (0.229, 0.224, 0.225)
        assert (row.licence is None) == (row.name in NOT_RELEASED), row.name
        named = re.search(r"-([0-9a-f]{8})\.pth$", row.url or "")
        assert row.sha256 == (named and named[1]), row.name
        assert "timm" not in row.source or row.name.startswith("cait_xxs")
    for named, licence in (
        ("resformer_tiny.mr", "MIT"),
        ("rest_lite.224", "Apache-2.0"),
        ("cait_m48.448", "Apache-2.0"),
    ):
        assert (BY_NAME[named].licence or "").startswith(licence)


def test_rows_of_one_model() -> None:
    assert [row.name for row in known_weights("S60_multi")] == [
        "patchconvnet_s60_multi.scratch",
        "patchconvnet_s60_multi.finetune",
    ]
    assert [row.trained for row in known_weights("restv2_tiny")] == ["at 224 px", "at 224 px, fine-tuned at 384 px"]
    assert known_weights("resmlp_nano") == ()
    assert known_weights() is known_weights()


class Strict(yaml.SafeLoader):
    """Refuses a key written twice, which YAML's loaders take silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(set(keys)) == len(keys), node.start_mark
        return super().construct_mapping(node, deep)


def test_the_file_is_plain_yaml_without_doubled_keys() -> None:
    text = files("anyres.models").joinpath("weights.yaml").read_text(encoding="utf-8")
    rows = yaml.load(text, Loader=Strict)
    assert rows == yaml.safe_load(text)
    assert [row["name"] for row in rows] == list(BY_NAME)
    assert max(map(len, text.splitlines())) <= 120


GOOD = {
    "model": "a", "name": "a.224", "trained": "at 224 px", "img_size": 224, "top1": {224: 80}, "crop_pct": 1.0,
    "interpolation": "bicubic", "source": "paper", "published": "not released",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, r"row 3: unknown key 'licens'; did you mean 'licence'"),
        ({"source": None}, "row 3: 'source' is missing"),
        ({"published": None}, "row 3: it needs an url, or published"),
        ({"img_size": "224"}, "row 3: img_size: '224' is no int"),
        ({"sha256": 12345678}, "row 3: sha256: 12345678 is no str"),
        ({"crop_pct": "1.0"}, "row 3: crop_pct: '1.0' is no float"),
        ({"top1": {"224": 80.0}}, "row 3: top1: '224' is no int"),
        ({"top1": [80.0]}, r"row 3: top1: \[80.0\] is no Mapping"),
        ({"mean": [0.5, 0.5]}, r"row 3: mean: \[0.5, 0.5\] is no tuple"),
    ],
)
def test_a_malformed_row_is_refused(change: Mapping[str, object], message: str) -> None:
    values = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        _row(values, "weights.yaml, row 3")


def test_a_row_may_name_other_statistics() -> None:
    row = _row({**GOOD, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}, "row 1")
    assert (row.mean, row.std, row.top1) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), {224: 80.0})


def test_reading_the_index_imports_no_torch() -> None:
    code = "import sys; from anyres.models.index import known_weights; known_weights(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
