"""Whether two commits compute the same numbers, to the last bit: a refactoring must.

    python benchmarks/same_numbers.py d2e07f2 HEAD                        # about half an hour on one core
    python benchmarks/same_numbers.py d2e07f2 HEAD --parts models         # a few minutes
    python benchmarks/same_numbers.py d2e07f2 HEAD --demo-results A.csv B.csv

Each commit is cloned to a temporary folder, and its source is measured: `anyres.create_model` under seeds and under the
golden files' synthetic weights, and `python -m anyres train`, left alone, and killed in the middle of an epoch and
started again. Nothing else of anyres is called, so commits of another layout can be compared. Tensors are compared by
SHA-256, and what a commit gave is kept in .bench_data. ``--demo-results`` compares the scores of two files that `anyres
demo` wrote; ``--demo`` runs the demo of both commits (10 minutes each). The exit code is 1 if anything differs, is
missing, or failed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "same_numbers.json"
KEPT = REPOSITORY / ".bench_data" / "same_numbers"  # what a commit gave, so that it is not measured twice
PARTS = ("models", "golden", "runs")
SCORED = re.compile(r"val/(?!raw/|average/)")  # in metrics.jsonl: not the other version of the weights, which is newer

SMALLEST = (  # of every family, the ones for small images, and the variants whose code differs
    *("rest_lite", "restv2_tiny", "restv2_nano", "resformer_tiny", "resformer_nano", "resmlp_12", "resmlp_nano"),
    *("deit_tiny", "deit_tiny_distilled", "cait_xxs24_224", "S60", "S60_multi", "deit_tiny_patch16_LS"),
    *("deit_small_patch16_18x2", "vit_tiny", "dino_vits8"),
)
SIZES = ((224, 224), (96, 128))  # height, width in pixels
GOLDEN_PARAMETERS, GOLDEN_MACS = 40e6, 5e9  # golden models above are compared with --all only

CONV = "model.dims=[16,32,64,128] model.depths=[1,1,1,1]"
VIT = "model.dim=48 model.depth=2 model.heads=2 model.patch_size=8 model.img_size=32"
LOOP = "train.precision=fp32 train.log_every=1 train.checkpoint_every=3 data.workers=0 evaluate.sizes=[24,32]"
RUNS = {  # name -> data, command: everything that draws numbers or keeps state
    "messy": (
        "folder",
        f"restv2_nano {CONV} model.drop_path=0.2 views.sizes=[40,32] data.batch_size=6 data.repeats=3 "
        "augment.erasing=0.5 augment.blur=0.3 augment.solarize=0.2 mix.mixup=0.8 mix.cutmix=1.0 mix.smoothing=0.1 "
        "train.epochs=6 train.eval_every=2 train.ema_decay=0.99",
    ),
    "taught": (
        "folder",
        f"deit_tiny_distilled {VIT} views.sizes=[48,32,24] data.batch_size=8 train.epochs=3 train.eval_every=1 "
        "objective.consistency=smooth_l1 objective.distillation.kind=soft objective.distillation.teacher=MESSY "
        "train.accumulate=2 optim.layer_decay=0.8 optim.lr=0.01",
    ),
    "cosub": (
        "folder",
        f"deit3_tiny {VIT} model.drop_path=0.2 views.sizes=[48,32] data.batch_size=8 train.epochs=3 train.eval_every=1 "
        "objective.cosub=true objective.consistency=none objective.loss=bce mix.mixup=0.8 mix.smoothing=0 "
        "optim.name=lamb",
    ),
    "dino": (
        "folder",
        "dino/nano 'model={name: vit_tiny, dim: 32, depth: 2, heads: 2, patch_size: 8, img_size: 32}' "
        "'views.groups=[{size: 32, blur: 0.5}, {size: 32}, {size: 16, count: 2, crop_scale: [0.1, 0.4]}]' "
        "'objective={dino: {out_dim: 64, hidden: 32, bottleneck: 16, momentum: 0.9, warmup_epochs: 2}}' "
        "data.batch_size=12 data.cache_side=48 train.epochs=3 train.ema_decay=null train.eval_every=2",
    ),
    "labels": (
        "table",
        f"restv2_nano {CONV} views.sizes=[32,24] data.batch_size=8 data.cache_side=32 train.epochs=4 "
        "train.eval_every=2 mix.mixup=0.1",
    ),
}
KILLED_AT = 7  # steps recorded; epochs have 4 or 5 steps, and checkpoints are written every 3

Facts = dict[str, str]


def digest(nest: object) -> str:
    """The SHA-256 of tensors and values in dictionaries and lists: of names, dtypes, shapes and every bit."""
    import torch

    total = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                total.update(f"{key}:".encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            total.update(f"{part!r};".encode())

    add(nest)
    return total.hexdigest()[:16]


def measure_models(_work: Path, _everything: bool) -> Iterator[tuple[str, str]]:
    """Initial weights from a seed; logits in float64, and gradients in float32, under synthetic weights."""
    import torch
    from tests.golden import fill

    from anyres import create_model

    for name in SMALLEST:
        torch.manual_seed(0)
        model = create_model(name)
        yield f"initial weights of {name}", digest(model.state_dict())
        fill.fill(model)
        model.double().eval()
        for height, width in SIZES:
            with torch.no_grad():
                logits = model(fill.images(2, height, width).double())
            yield f"float64 logits of {name} at {height}x{width}", digest(logits)
        model.float().train()
        torch.manual_seed(0)
        out = model(fill.images(2, 64, 64))
        outs = out if isinstance(out, tuple) else (out,)
        torch.stack([each.square().mean() for each in outs]).sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        yield f"gradients of {name}", digest(gradients)


def measure_golden(_work: Path, everything: bool) -> Iterator[tuple[str, str]]:
    """Logits for the golden inputs, in float32."""
    import torch
    from tests import golden
    from tests.golden import fill

    from anyres import create_model

    for name, about in sorted(golden.facts().items()):
        if not everything and (about["params"] > GOLDEN_PARAMETERS or about["macs"] > GOLDEN_MACS):
            continue
        built = golden.built(name)
        with torch.device("meta"):
            model = create_model(built.name, **built.options)
        fill.fill(model.to_empty(device="cpu"))
        side = about["native_resolution"]
        with torch.no_grad():
            yield f"golden logits of {name}", digest(model.eval()(fill.images(2, side, side)))


def measure_runs(work: Path, _everything: bool) -> Iterator[tuple[str, str]]:
    """Each training run, left alone, and killed and started again."""
    from tests.pictures import draw, make_folder

    data = {"folder": make_folder(work / "shapes", per_class=14), "table": work / "mixed" / "table.csv"}
    data["table"].parent.mkdir()
    rows = ["path,labels"]
    for i in range(40):
        draw(i % 3, i).save(data["table"].parent / f"{i}.png")
        rows.append(
            f"{i}.png,{'|'.join(name for bit, name in enumerate(('red', 'green', 'blue')) if i + 1 >> bit & 1)}"
        )
    data["table"].write_text("\n".join(rows) + "\n")
    for name, (source, command) in RUNS.items():
        words = [word.replace("MESSY", str(work / "messy")) for word in shlex.split(f"{command} {LOOP}")]
        whole, cut = work / name, work / f"{name} cut"
        try:
            train(words, data[source], whole)
            train(words, data[source], cut, KILLED_AT)
            train(words, data[source], cut)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            yield f"run {name}", "failed"
            continue
        for run, title in ((whole, f"run {name}"), (cut, f"run {name}, killed and resumed")):
            for what, value in result(run).items():
                yield f"{title}: {what}", value


def train(words: list[str], data: Path, run: Path, killed_at: int | None = None) -> None:
    """``anyres train``, killed when so many steps are recorded. Raises RuntimeError when it fails or ends too soon."""
    said = run.with_name(f"{run.name}.txt")
    with said.open("a") as file:
        command = [sys.executable, "-m", "anyres", "train", *words, "--data", str(data), "--out", str(run)]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=run.parent)
    records = run / "metrics.jsonl"
    while process.poll() is None:
        if killed_at is not None and records.exists() and records.read_text().count("\n") >= killed_at:
            process.kill()
            process.wait()
            return
        time.sleep(0.01)
    if process.returncode or killed_at is not None:
        raise RuntimeError(f"{run.name} ended with {process.returncode}: {said.read_text()[-800:]}")


def result(run: Path) -> Facts:
    """What a finished run has computed; names of columns may change from commit to commit, numbers may not."""
    import torch
    from safetensors.torch import load_file

    last = max(run.glob("step_*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [(line["step"], sorted(v for k, v in line.items() if SCORED.match(k))) for line in lines]
    facts = {
        "weights": digest(load_file(run / "model.safetensors")),
        **{f"checkpoint's {file.stem}": digest(load_file(file)) for file in sorted(last.glob("*.safetensors"))},
        "optimizer": digest(torch.load(last / "optimizer.pt", weights_only=True)),
        "losses": digest([(line["step"], line["loss"]) for line in lines if "loss" in line]),
        "scores while training": digest([score for score in scores if score[1]]),
    }
    if (run / "curve.csv").exists():
        facts["curve"] = digest(curve_scores(run / "curve.csv"))
    return facts


def curve_scores(path: Path) -> list[dict[str, str]]:
    """The rows of a curve without what is timed."""
    with path.open(newline="") as file:
        kept = ("model", "height", "width", "n", "macs", "top1", "top1_low", "top1_high", "top5", "map")
        return [{key: row[key] for key in kept if key in row} for row in csv.DictReader(file)]


MEASURES: dict[str, Callable[[Path, bool], Iterator[tuple[str, str]]]] = {
    "models": measure_models,
    "golden": measure_golden,
    "runs": measure_runs,
}


def facts_of(commit: str, work: Path, parts: list[str], everything: bool, demo: bool) -> tuple[str, Facts]:
    """The commit's full name, and everything measured with its source, in processes of their own."""
    tree = work / "tree"
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(tree)], check=True)
    whole = git("rev-parse", f"{commit}^{{commit}}")
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", whole], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    facts: Facts = {}
    KEPT.mkdir(parents=True, exist_ok=True)
    for part in parts:
        print(f"{commit}: {part}", file=sys.stderr, flush=True)
        out = KEPT / f"{whole}-{part}{'-all' if everything else ''}.json"
        if out.exists():
            facts |= json.loads(out.read_text())
            continue
        command = [sys.executable, __file__, "--measure", part, str(work), str(out), *(["--all"] if everything else [])]
        subprocess.run(command, check=True, env=environment, cwd=work)
        facts |= json.loads(out.read_text())
    if demo:
        command = [sys.executable, "-m", "anyres", "demo", "--out", str(work / "demo")]
        subprocess.run(command, check=True, env={**environment, "OMP_NUM_THREADS": "2"}, cwd=work)
        facts |= demo_facts(work / "demo" / "curve.csv")
    return whole, facts


def demo_facts(path: Path) -> Facts:
    rows = curve_scores(path)
    return {f"demo: {row['model']} at {row['height']}x{row['width']}, top-1": row["top1"] for row in rows}


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def compare(facts: tuple[Facts, Facts]) -> list[dict[str, str]]:
    """A row for everything that either commit has measured."""
    names = list(dict.fromkeys([*facts[0], *facts[1]]))
    return [{"what": name, "base": facts[0].get(name, "-"), "head": facts[1].get(name, "-")} for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="BASE HEAD", help="two commits of this repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--all", action="store_true", help="all golden models, also the largest")
    parser.add_argument("--demo", action="store_true", help="run the demo of both commits")
    parser.add_argument("--demo-results", nargs=2, type=Path, metavar="CSV", help="two curve.csv of `anyres demo`")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=3, metavar=("PART", "WORK", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        part, work, out = options.measure
        sys.path.insert(1, str(REPOSITORY))  # for the pictures and golden inputs, which are this checkout's for both
        Path(out).write_text(json.dumps(dict(MEASURES[part](Path(work), options.all))))
        return 0
    if len(options.commits) != 2:
        parser.error("give two commits: BASE HEAD")
    names, facts = [], []
    for commit in options.commits:
        work = Path(tempfile.mkdtemp(prefix="same_numbers_"))
        try:
            name, found = facts_of(commit, work, options.parts, options.all, options.demo)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        names.append(name)
        facts.append(found)
    if options.demo_results:
        for found, path in zip(facts, options.demo_results, strict=True):
            found.update(demo_facts(path))
    rows = compare((facts[0], facts[1]))
    different = [row for row in rows if row["base"] != row["head"] or row["head"] == "failed"]
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        verdict = "DIFFERS" if row in different else "same"
        print(f"{row['what']:{width}}  {row['base']:16}  {row['head']:16}  {verdict}")
    print(f"{len(rows) - len(different)} of {len(rows)} are the same: {names[0][:7]} and {names[1][:7]}")
    options.out.write_text(
        json.dumps({"base": names[0], "head": names[1], "different": len(different), "rows": rows}, indent=1) + "\n"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
