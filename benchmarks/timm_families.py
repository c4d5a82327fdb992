"""Which verbs work for twenty families of timm's models: makes the table of docs/timm.md and a JSON file beside it.

    python benchmarks/timm_families.py [NAME ...]

Every model is small, untrained, and has four classes. What is asked of it: to be created, one training step of three
views with scale consistency, a curve at six sizes one of which is not square, a prediction, and the same by OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

import anyres
from anyres.config import UserError, first_line
from anyres.flow import Size
from anyres.models.contract import Backbone
from anyres.storage import write_text
from anyres.training.objectives.consistency import distance

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "timm.md", ROOT / "benchmarks" / "results" / "timm_families.json"
BEGIN, END = "<!-- table: benchmarks/timm_families.py -->", "<!-- end of table -->"
FAMILIES = (
    *("convnext_atto", "resnet18", "regnety_002", "efficientnet_b0", "mobilenetv4_conv_small", "ghostnet_100"),
    *("efficientvit_b0", "fastvit_t8", "poolformer_s12", "mobilevit_xxs", "pvt_v2_b0", "xcit_nano_12_p16_224"),
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"),
    *("swin_tiny_patch4_window7_224", "beit_base_patch16_224", "coatnet_nano_rw_224", "maxvit_nano_rw_256"),
    *("cait_xxs24_224", "levit_128s", "hiera_tiny_224", "mixer_s32_224", "gmlp_ti16_224"),
)
VIEWS = (Size(128, 128), Size(96, 96), Size(64, 64))
CURVE = (*(Size(side, side) for side in (64, 96, 128, 160, 224)), Size(128, 96))
WORKS, ONE_SIZE, REFUSED = "works", "one size", "refused"
VERBS = ("create", "train", "curve", "predict", "openvino")


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    words.add_argument("names", nargs="*", default=FAMILIES, metavar="NAME", help="the table's if none is given")
    names: Sequence[str] = words.parse_args().names
    warnings.simplefilter("ignore")  # of exporters, about themselves
    rows = []
    for name in names:
        start = time.perf_counter()
        rows.append(row(name))
        print(f"{name}: {rows[-1]['verbs']} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    facts = {"versions": {package: version(package) for package in ("timm", "torch", "openvino")}, "rows": rows}
    if known := json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() and len(names) < len(FAMILIES) else []:
        made = {str(each["model"]): each for each in rows}  # rows of other models stay as they are
        facts["rows"] = rows = [made.get(each["model"], each) for each in known]
    if len(rows) >= len(FAMILIES):
        write_text(RESULTS, json.dumps(facts, indent=1) + "\n")
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        write_text(PAGE, f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")
    else:
        print(table(rows))


def row(name: str) -> dict[str, object]:
    """What became of each verb, and the first sentence that refused one."""
    verbs: dict[str, str] = {}
    sentences: list[str] = []
    torch.manual_seed(0)
    try:
        model = anyres.create_model(f"timm:{name}", 4)
    except UserError as error:
        return {"model": name, "verbs": {"create": REFUSED}, "sentence": str(error)}
    with torch.no_grad():  # some heads begin with zeros
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    verbs["create"] = WORKS
    own = Size(*model.pretrained_cfg["input_size"][1:])
    asked: dict[str, Callable[[Sequence[Size]], None]] = {
        "train": lambda sizes: train_step(model, sizes),
        "curve": lambda sizes: curve(model, sizes),
        "predict": lambda sizes: predict(model, sizes[0], "eager"),
        "openvino": lambda sizes: predict(model, sizes[0], "openvino"),
    }
    for verb, ask in asked.items():
        wanted = {"train": VIEWS, "curve": CURVE}.get(verb, (Size(96, 96),))
        verbs[verb], said = tried(ask, wanted, own)
        sentences += [said] if said else []
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "verbs": verbs,
        "sentence": next(iter(sentences), ""),
    }


def tried(ask: Callable[[Sequence[Size]], None], wanted: Sequence[Size], own: Size) -> tuple[str, str]:
    """works, one size (its own works and the wanted do not) or refused; and the sentence."""
    try:
        ask(wanted)
    except UserError as error:
        try:
            ask([own])
        except UserError as again:
            return REFUSED, str(again)
        return ONE_SIZE, str(error)
    except Exception as error:  # a fault of ours, which the table must not hide
        return REFUSED, f"{type(error).__name__}: {first_line(error)}"
    return WORKS, ""


def train_step(model: Backbone, sizes: Sequence[Size]) -> None:
    """Each view back-propagated before the next, with consistency where there are several."""
    model.check_sizes(sizes, training=True)
    model.train()
    accelerator, above = Accelerator(cpu=True), None
    for size in sizes:
        features = model.forward_features(torch.randn(2, 3, *size))
        pooled = model.forward_head(features, pre_logits=True)
        loss = torch.nn.functional.cross_entropy(model.get_classifier()(pooled), torch.tensor([0, 1]))
        if above is not None:
            loss = loss + distance(pooled, above, "smooth_l1", 1.0)
        above = pooled.detach()
        accelerator.backward(loss)
    if not all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
        raise UserError("a gradient is not finite")
    model.zero_grad()


@torch.inference_mode()
def curve(model: Backbone, sizes: Sequence[Size]) -> None:
    model.eval()
    model.check_sizes(sizes)
    for size in sizes:
        if model(torch.randn(1, 3, *size)).shape != (1, 4):
            raise UserError(f"no logits at {size} px")


def predict(model: Backbone, size: Size, backend: str) -> None:
    """The engine's logits are eager float32's."""
    model.eval()
    model.check_sizes([size])
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = model(x)
    answer = anyres.Predictor(model, backend, size)(x)
    apart = ((answer - expected).norm() / expected.norm()).item()
    if not apart < 1e-2:
        raise UserError(f"{backend}'s logits are {apart:.2g} from eager's")


def table(rows: Sequence[dict[str, object]]) -> str:
    """As Markdown."""
    lines = [f"| model | {' | '.join(VERBS)} |", f"|---|{'---|' * len(VERBS)}"]
    sentences: dict[str, int] = {}
    for each in rows:
        verbs, sentence = each["verbs"], str(each["sentence"])
        assert isinstance(verbs, dict)
        mark = f" [{sentences.setdefault(sentence, len(sentences) + 1)}]" if sentence else ""
        lines.append(f"| `timm:{each['model']}`{mark} | {' | '.join(verbs.get(verb, '') for verb in VERBS)} |")
    return "\n".join([*lines, "", *(f"{number}. {sentence}" for sentence, number in sentences.items())])


if __name__ == "__main__":
    main()
