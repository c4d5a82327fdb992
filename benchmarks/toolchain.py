"""What PyTorch's tools do with each family's smallest models, each answer held against the plain model's.

    python benchmarks/toolchain.py                                   all models, about an hour on one core
    python benchmarks/toolchain.py --models deit_tiny --checks onnx  some models, some checks

Writes benchmarks/results/toolchain.json: for every model and check "ok", the largest deviation (relative to the
largest logit, or to the largest gradient), or the first line of the error. Models and checks that are not asked for
keep what the file says of them. Weights are random throughout, so that no branch is silent. ``--quick`` takes models of
few blocks and compiles without generating code (backend "aot_eager"). Compiling is always with ``specialize_float``,
which changes no result and halves the time. ONNX needs onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim

import anyres
from anyres.models.contract import Backbone

Result = dict[str, Any]
Make = Callable[..., Backbone]
Sizes = tuple[tuple[int, int, int], ...]
FREE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


class Case(NamedTuple):
    name: str
    options: dict[str, Any]
    few: dict[str, Any]
    """Options that make the model small, for --quick."""


VIT = {"dim": 64, "depth": 2, "heads": 2}
CONV = {"dim": 64, "depth": 2}
CASES = {
    "rest_lite": Case("rest_lite", {}, {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}),
    "restv2_tiny": Case("restv2_tiny", {}, {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}),
    "resformer_tiny": Case("resformer_tiny", {}, VIT),
    "resmlp_12": Case("resmlp_12", {}, CONV),
    "deit_tiny": Case("deit_tiny", {}, VIT),
    "deit_tiny_distilled": Case("deit_tiny_distilled", {}, VIT),
    "deit3_tiny": Case("deit3_tiny", {}, VIT),
    "deit3_tiny, hMLP stem": Case("deit3_tiny", {"stem": "hmlp"}, VIT),
    "deit_small_patch16_18x2": Case("deit_small_patch16_18x2", {}, VIT),
    "cait_xxs24_224": Case("cait_xxs24_224", {}, VIT),
    "S60": Case("S60", {}, CONV),
    "S60_multi": Case("S60_multi", {}, CONV),
    "vit_tiny": Case("vit_tiny", {}, VIT),
}
EXPORT_SIZES: Sizes = ((2, 224, 224), (1, 256, 192), (3, 97, 130), (2, 33, 225), (1, 384, 400))
COMPILE_SIZES: Sizes = ((2, 224, 224), (2, 256, 192), (3, 97, 130), (1, 288, 225))
QUICK_SIZES: Sizes = ((2, 64, 64), (1, 96, 64), (3, 97, 130))
QUICK_COMPILE_SIZES: Sizes = ((2, 64, 64), (3, 97, 130))
SLIVERS: Sizes = ((1, 1, 1), (2, 16, 97), (1, 97, 16), (3, 5, 40))
"""A grid one token high or wide."""
HALF_BOUND = {"rest_lite": 0.3}
"""bf16 and fp16: ResT v1's instance norm over the attention magnifies rounding. Elsewhere 0.06."""


def image(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * height + width)
    return torch.randn(batch, 3, height, width, generator=generator)


def maker(case: Case, quick: bool) -> Make:
    """Builds the case's model, always with the same weights, every one of them random, in evaluation mode."""
    options = case.options | (case.few | {"num_classes": 10} if quick else {})

    def make(**more: Any) -> Backbone:
        torch.manual_seed(0)
        model = anyres.create_model(case.name, **(options | more))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return make


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest entry; infinite if anything found is not finite."""
    found, expected = found.detach().float(), expected.detach().float()
    if found.shape != expected.shape or not found.isfinite().all():
        return math.inf
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).float().square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def between(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two models' gradients over the largest gradient; infinite if one is missing."""
    if found.keys() != expected.keys() or not all(grad.isfinite().all() for grad in found.values()):
        return math.inf
    largest = max(grad.abs().max().item() for grad in expected.values())
    return max((found[name] - expected[name]).abs().max().item() for name in expected) / largest


def judged(largest: float, bound: float, **more: Any) -> Result:
    """A result: ok where the deviation is within the bound."""
    result: Result = {"ok": largest <= bound, "deviation": float(f"{largest:.1e}"), **more}
    return result if result["ok"] else {**result, "error": f"deviates by {largest:.1e}, more than {bound:.0e}"}


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    """The model as a program of free batch, height and width."""
    with torch.no_grad():
        return torch.export.export(model, (image(2, 104, 80),), dynamic_shapes=(FREE,))


def smallest_side(program: nn.Module, axis: int) -> tuple[int, str]:
    """The least height (axis 0) or width (1) beside 96 px that a program takes, and how it refuses one less."""
    refusal = "nothing is refused"
    for side in range(1, 97):
        try:
            program(image(2, side, 96) if axis == 0 else image(2, 96, side))
        except Exception as error:
            refusal = first_line(error)
        else:
            return side, refusal
    raise AssertionError("the program takes no side up to 96")


@torch.no_grad()
def check_export(make: Make, sizes: Sizes) -> Result:
    """torch.export with batch, height and width free, saved and loaded; its least sides, and how it refuses less."""
    model, kept = make(), io.BytesIO()
    torch.export.save(exported(model), kept)
    kept.seek(0)
    program = torch.export.load(kept).module()
    (height, refusal), (width, _) = smallest_side(program, 0), smallest_side(program, 1)
    sizes = (*sizes, (1, height, 96), (1, 96, width), (2, height, width))
    largest = max(deviation(program(image(*size)), model(image(*size))) for size in sizes)
    return judged(largest, 1e-4, least_height=height, least_width=width, refusal=refusal)


@torch.no_grad()
def check_onnx(make: Make, sizes: Sizes) -> Result:
    """torch.onnx.export(dynamo=True) of the program, answered by onnxruntime on a CPU, also on slivers."""
    import onnxruntime

    model = make()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        written = torch.onnx.export(exported(model), (), file, input_names=["image"], dynamo=True, verbose=False)
        assert written is not None
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        largest = max(
            deviation(torch.from_numpy(session.run(None, {"image": image(*s).numpy()})[0]), model(image(*s)))
            for s in (*sizes, *SLIVERS)
        )
        return judged(largest, 1e-4, opset=written.model.opset_imports[""])


def check_compile(make: Make, sizes: Sizes, backend: str = "inductor") -> Result:
    """torch.compile(dynamic=True, fullgraph=True) in evaluation; one graph is a compilation."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = make()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    with torch.no_grad():
        largest = max(deviation(compiled(image(*size)), model(image(*size))) for size in sizes)
    return judged(largest, 1e-4, graphs=counters["stats"]["unique_graphs"], backend=backend)


def check_compile_training(make: Make, sizes: Sizes, backend: str = "inductor") -> Result:
    """Gradients of a compiled step at one size, relative to the largest gradient."""
    torch._dynamo.reset()
    plain, compiled = make().train(), make().train()
    x = image(2, *sizes[1][1:])
    step = torch.compile(compiled, dynamic=True, fullgraph=True, backend=backend)
    expected = gradients(plain, x)
    compiled.zero_grad()
    step(x).float().square().mean().backward()
    found = {name: parameter.grad for name, parameter in compiled.named_parameters() if parameter.grad is not None}
    return judged(between(found, expected), 1e-3, backend=backend)


@torch.no_grad()
def half(make: Make, sizes: Sizes, dtype: torch.dtype, bound: float) -> Result:
    model = make()
    expected = [model(image(*size)) for size in sizes[:2]]
    model = model.to(dtype)
    found = [model(image(*size).to(dtype)) for size in sizes[:2]]
    assert all(logits.dtype == dtype for logits in found)
    return judged(max(deviation(f, e) for f, e in zip(found, expected, strict=True)), bound)


def check_bf16(make: Make, sizes: Sizes, bound: float = 0.06) -> Result:
    """Weights and image in bfloat16, on a CPU."""
    return half(make, sizes, torch.bfloat16, bound)


def check_fp16(make: Make, sizes: Sizes, bound: float = 0.06) -> Result:
    """Weights and image in float16, on a CPU."""
    return half(make, sizes, torch.float16, bound / 4)


def check_autocast(make: Make, sizes: Sizes) -> Result:
    """A training step under bf16 autocast: every gradient there, float32 and finite."""
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image(*sizes[1])).float().square().mean()
    loss.backward()
    wrong = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or p.grad.dtype != torch.float32 or not p.grad.isfinite().all()
    ]
    return {"ok": not wrong} | ({"error": f"no finite float32 gradient: {wrong[0]}"} if wrong else {})


@torch.no_grad()
def check_channels_last(make: Make, sizes: Sizes) -> Result:
    """Model and image in channels_last."""
    plain, last = make(), make().to(memory_format=torch.channels_last)
    return judged(
        max(deviation(last(image(*s).to(memory_format=torch.channels_last)), plain(image(*s))) for s in sizes), 1e-4
    )


@contextmanager
def counted(model: nn.Module) -> Iterator[list[None]]:
    """Counts how often the blocks' first norms are called."""
    calls: list[None] = []
    hooks = [
        module.register_forward_hook(lambda *_: calls.append(None))
        for name, module in model.named_modules()
        if name.endswith(".norm1") and name != "stem.norm1"
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def check_checkpointing(make: Make, sizes: Sizes) -> Result:
    """Gradients with blocks recomputed, drop path at work, from the same seed; each block runs twice."""
    found, calls = [], []
    for saving in (False, True):
        model = make(drop_path=0.3).train()
        model.set_grad_checkpointing(saving)
        torch.manual_seed(1)
        with counted(model) as blocks:
            found.append(gradients(model, image(4, *sizes[1][1:])))
        calls.append(len(blocks))
    assert calls[1] == 2 * calls[0] > 0, f"blocks ran {calls[1]} times, not twice {calls[0]}"
    return judged(between(found[1], found[0]), 1e-5)


@torch.no_grad()
def check_meta(make: Make, sizes: Sizes) -> Result:
    """Built without memory, filled with NaN, initialised, then loaded: the same logits."""
    model, x = make(), image(*sizes[1])
    with torch.device("meta"):
        empty = make()
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.to_empty(device="cpu")
    for tensor in empty.state_dict().values():
        tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    empty.init_weights()
    left = [name for name, tensor in empty.state_dict().items() if not tensor.isfinite().all()]
    assert not left, f"init_weights left {left[0]}"
    empty.load_state_dict(model.state_dict())
    return judged(deviation(empty(x), model(x)), 0)


@torch.no_grad()
def check_copy(make: Make, sizes: Sizes) -> Result:
    """copy.deepcopy, and the state dict through torch.save and torch.load(weights_only=True)."""
    model, x = make(), image(*sizes[1])
    twin, loaded, kept = copy.deepcopy(model), make(), io.BytesIO()
    for parameter in loaded.parameters():
        parameter.zero_()
    torch.save(model.state_dict(), kept)
    kept.seek(0)
    loaded.load_state_dict(torch.load(kept, weights_only=True))
    result = judged(max(deviation(other(x), model(x)) for other in (twin, loaded)), 0)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    return result if not shared else {"ok": False, "error": "the copy shares parameters"}


CHECKS: dict[str, Callable[..., Result]] = {
    "export": check_export,
    "onnx": check_onnx,
    "compile": check_compile,
    "compile_training": check_compile_training,
    "bf16": check_bf16,
    "fp16": check_fp16,
    "autocast": check_autocast,
    "channels_last": check_channels_last,
    "checkpointing": check_checkpointing,
    "meta": check_meta,
    "copy": check_copy,
}


EXTRAS = (("export", "least_height"), ("compile", "graphs"))


def run_check(check: str, make: Make, quick: bool, **options: Any) -> Result:
    """One check's result; an exception becomes its first line."""
    compiles = check.startswith("compile")
    if compiles and quick:
        options["backend"] = "aot_eager"
    small, full = (QUICK_COMPILE_SIZES, COMPILE_SIZES) if compiles else (QUICK_SIZES, EXPORT_SIZES)
    sizes = small if quick else full
    floats = torch._dynamo.config.patch(specialize_float=True)
    with warnings.catch_warnings(), floats:
        warnings.simplefilter("ignore")
        try:
            result = CHECKS[check](make, sizes, **options)
        except Exception as error:
            result = {"ok": False, "error": first_line(error)}
    return result


def cell(result: Result | None) -> str:
    """A result in a table."""
    if result is None:
        return "-"
    if not result["ok"]:
        return "no"
    return f"{result['deviation']:.0e}" if result.get("deviation") else "ok" if "deviation" not in result else "0"


def show(models: dict[str, dict[str, Result]]) -> None:
    table = Table("model", *(name.replace("_", " ") for name in CHECKS))
    for label, results in models.items():
        table.add_row(label, *(cell(results.get(name)) for name in CHECKS))
    console = Console(width=150)
    console.print(table)
    for label, results in models.items():
        for name, result in results.items():
            if not result["ok"]:
                console.print(f"{label}: {name}: {result['error']}", markup=False)


def markdown(models: dict[str, dict[str, Result]]) -> str:
    """The table of docs/export.md."""
    rows = ["| model | " + " | ".join(name.replace("_", " ") for name in CHECKS) + " | least side | graphs |"]
    rows.append("|---" * (len(CHECKS) + 3) + "|")
    for label, results in models.items():
        cells = [cell(results.get(name)) for name in CHECKS]
        cells += [str(results.get(check, {}).get(key, "-")) for check, key in EXTRAS]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), metavar="MODEL")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--quick", action="store_true", help="models of few blocks, no generated code")
    parser.add_argument("--markdown", action="store_true", help="run nothing, print the table of docs/export.md")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "toolchain.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.markdown:
        print(markdown(json.loads(options.out.read_text())["models"]))
        return
    kind = {"torch": torch.__version__, "quick": options.quick}
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept = earlier["models"] if all(earlier.get(key) == kind[key] for key in kind) else {}
    models: dict[str, dict[str, Result]] = {label: kept.get(label, {}) for label in CASES if label in kept}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(options.models) * len(options.checks))
        for label in options.models:
            make = maker(CASES[label], options.quick)
            for check in options.checks:
                progress.update(task, description=f"{label}: {check.replace('_', ' ')}")
                bound = {"bound": HALF_BOUND[label]} if check in ("bf16", "fp16") and label in HALF_BOUND else {}
                models.setdefault(label, {})[check] = run_check(check, make, options.quick, **bound)
                ordered = {name: models[name] for name in CASES if name in models}
                options.out.write_text(json.dumps(kind | {"models": ordered}, indent=1) + "\n")
                progress.advance(task)
    show(ordered)


if __name__ == "__main__":
    main()
