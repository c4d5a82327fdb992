"""On a CUDA device, bf16: throughput, a training step, and each Triton kernel alone, against what others run.

    python benchmarks/gpu.py                                     # all of it; longer than an hour, most of it compiling
    python benchmarks/gpu.py --part kernels
    python benchmarks/gpu.py --part throughput --models cait_xxs24_224 rest_small --sizes 224

Each line of the JSON is one question: contenders timed in turn in one process (A B C A B C), synchronised, and
beside them the device's own matrix product, of whose rate a line states its share. Lines of other questions, from
another call, stay in the file. Weights are random: speed does not depend on them. Without a CUDA device nothing is
written, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres import create_model
from anyres.config import UserError
from anyres.deploy.engines.backend import Backend, build
from anyres.deploy.engines.engine import BackendUnavailable
from anyres.deploy.fuse import fuse
from anyres.evaluation.speed import macs
from anyres.flow import Size
from anyres.ops import attention, mixed_heads, residual
from anyres.ops.kernels import kernel_operations
from anyres.ops.triton_switch import triton_kernels
from anyres.runs.bench import COMPARED, timm_name

PARTS = ("kernels", "throughput", "step")
BF16 = torch.bfloat16

Call = Callable[[], object]
Contenders = Mapping[str, Callable[[], Call]]
"""Name -> what builds the call to be timed."""
Facts = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=list(COMPARED), choices=COMPARED)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--batch", type=int, default=256, help="halved until it fits; a training step takes half of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in each round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: no CUDA device here", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    clock = Clock(device, options.rounds, options.seconds)
    about = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    for key, ask in questions(options.part, options.models, options.sizes, options.batch, clock):
        facts = about | ask()
        print(json.dumps({key: facts}), flush=True)
        lines = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(lines | {key: facts}, indent=1) + "\n")
    return 0


def questions(
    parts: Sequence[str], models: Sequence[str], sizes: Sequence[int], batch: int, clock: Clock, compiled: bool = True
) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """What is asked, one after another: its key, and the measurement."""
    if "kernels" in parts:
        for name, make in kernel_cases(clock.device, batch).items():
            yield f"kernel {name}", partial(kernel_alone, make, clock, compiled)
    for what in models:
        for size in sizes:
            if "throughput" in parts:
                yield f"throughput {what} {size}", partial(throughput, what, size, batch, clock, compiled)
            if "step" in parts:
                yield f"step {what} {size}", partial(training_step, what, size, batch // 2, clock, compiled)


class Clock:
    """Times calls on ``device`` in turn, ``rounds`` of ``seconds`` each, and the matrix product beside them."""

    def __init__(self, device: torch.device, rounds: int, seconds: float, side: int = 8192) -> None:
        self.device, self.rounds, self.seconds, self.side = device, rounds, seconds, side

    def in_turn(self, calls: dict[str, Call]) -> tuple[dict[str, list[float]], float]:
        """Median seconds of each call in each round, and the matrix rate in FLOP/s."""
        pair = torch.randn(2, self.side, self.side, device=self.device).to(BF16)
        every: dict[str, Call] = {**calls, "matrix": lambda: pair[0] @ pair[1]}
        times: dict[str, list[float]] = {name: [] for name in every}
        for call in every.values():
            self.median(call)
        for _ in range(self.rounds):
            for name, call in every.items():
                times[name].append(self.median(call))
        return times, 2 * self.side**3 / statistics.median(times.pop("matrix"))

    def median(self, call: Call) -> float:
        """Of single calls, each waited for, over ``seconds``."""
        found: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(found) < 3 or time.perf_counter() < end:
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def contest(ours: Contenders, theirs: Contenders, clock: Clock) -> tuple[Facts, dict[str, list[float]], float]:
    """Builds and times all; ``ratio``: theirs / ours of the fastest of either side, median and range over rounds."""
    calls, failed = {}, {}
    for name, make in {**ours, **theirs}.items():
        try:
            calls[name] = make()
            calls[name]()
        except torch.OutOfMemoryError:
            raise
        except BackendUnavailable as error:
            failed[name] = str(error)
        except Exception as error:  # of a compiler: the others are measured all the same
            failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            calls.pop(name, None)
    times, rate = clock.in_turn(calls)
    speeds = {name: statistics.median(each) for name, each in times.items()}
    facts: Facts = {"ms": {name: round(1000 * value, 4) for name, value in speeds.items()}, "failed": failed}
    best = [min((n for n in side if n in speeds), key=speeds.__getitem__, default="") for side in (ours, theirs)]
    if all(best):
        each = sorted(b / a for a, b in zip(times[best[0]], times[best[1]], strict=True))
        median = round(statistics.median(each), 3)
        facts |= {"ours": best[0], "theirs": best[1], "ratio": median, "low": round(each[0], 3)}
        facts |= {"high": round(each[-1], 3)}
    facts["matrix TFLOP/s"] = round(rate / 1e12, 3)
    return facts, times, rate


def peer(what: str) -> tuple[str, Callable[[], nn.Module]]:
    """timm's model where it has one, else ours as it is trained."""
    try:
        name = timm_name(what)
    except UserError:
        return "plain", lambda: create_model(what)
    return "timm", lambda: timm.create_model(name)


def at_size(module: nn.Module, name: str, size: int) -> nn.Module:
    """timm's models are made for one size."""
    if name == "timm" and hasattr(module, "set_input_size"):
        cast(Any, module).set_input_size(size)
    return module


def fitting(batch: int, measure: Callable[[int], Facts]) -> Facts:
    """``measure`` with as large a batch as fits, halved from ``batch``."""
    while True:
        try:
            return {"batch": batch} | measure(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        torch.cuda.empty_cache()
        batch //= 2


def throughput(what: str, size: int, batch: int, clock: Clock, compiled: bool = True) -> Facts:
    """Folded, by each engine with kernels and without, against the peer, eager and compiled."""
    name, make_peer = peer(what)
    flops = 2 * macs(create_model(what), Size(size, size))

    def measure(count: int) -> Facts:
        x = torch.randn(count, 3, size, size, device=clock.device)
        folded = fuse(create_model(what).eval().to(clock.device), size)
        theirs = at_size(make_peer(), name, size).eval().to(clock.device)

        def running(module: nn.Module, engine: str, kernels: bool) -> Call:
            return partial(build(module, Backend(engine, "bf16", kernels), x), x)

        engines = ["eager", "inductor"] if compiled else ["eager"]
        ours = {
            str(Backend(engine, "bf16", kernels)): partial(running, folded, engine, kernels)
            for engine in engines
            for kernels in (False, True)
        }
        others = {f"{name} {engine}": partial(running, theirs, engine, False) for engine in engines}
        return images_per_second(ours, others, clock, count, flops)

    return fitting(batch, measure)


def images_per_second(ours: Contenders, others: Contenders, clock: Clock, count: int, flops: int) -> Facts:
    """A contest whose calls take ``count`` images of ``flops`` each."""
    facts, times, rate = contest(ours, others, clock)
    speed = {each: count / statistics.median(times[each]) for each in times}
    return facts | {
        "images/s": {each: round(value, 1) for each, value in speed.items()},
        "share of the matrix rate": {each: round(value * flops / rate, 3) for each, value in speed.items()},
    }


def training_step(what: str, size: int, batch: int, clock: Clock, compiled: bool = True) -> Facts:
    """Forward, backward, AdamW under bf16 autocast: ours with kernels and without, and the peer, each compiled too."""
    name, make_peer = peer(what)
    flops = 6 * macs(create_model(what), Size(size, size))

    def measure(count: int) -> Facts:
        x = torch.randn(count, 3, size, size, device=clock.device)
        target = torch.randint(0, 1000, (count,), device=clock.device)

        def stepping(make: Callable[[], nn.Module], kernels: bool, compile_it: bool) -> Call:
            model = make().train().to(clock.device)
            if kernels and (clock.device.type != "cuda" or not kernel_operations(model, (size, size), clock.device)):
                raise BackendUnavailable("no part of it has a kernel here")
            optimizer = torch.optim.AdamW(model.parameters(), fused=clock.device.type == "cuda")
            run = torch.compile(model) if compile_it else model

            def step() -> None:
                with triton_kernels(kernels):
                    with torch.autocast(clock.device.type, BF16):
                        logits = run(x)
                        logits = logits[0] if isinstance(logits, tuple) else logits
                        loss = F.cross_entropy(logits.float(), target)
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return step

        forms = [("eager", False), *([("compiled", True)] if compiled else [])]
        ours = {
            f"anyres {form}{' + triton' if kernels else ''}": partial(
                stepping, lambda: create_model(what), kernels, compile_it
            )
            for form, compile_it in forms
            for kernels in (False, True)
        }
        others = {
            f"{name} {form}": partial(stepping, lambda: at_size(make_peer(), name, size), False, compile_it)
            for form, compile_it in forms
        }
        return images_per_second(ours, others, clock, count, flops)

    return fitting(batch, measure)


Case = Callable[[int], tuple[str, Callable[..., Any], list[Any]]]
"""Images -> the operation's name, its plain form, and its inputs."""


def kernel_cases(device: torch.device, batch: int) -> dict[str, tuple[int, Case]]:
    """Real shapes: model, size and stage -> images and case."""

    def heads(b: int, g: int, n: int, m: int, d: int) -> list[Tensor]:
        shapes = ((b, n, g * d), (b, m, g * d), (b, m, g * d))
        tokens = [torch.randn(shape, device=device).to(BF16).requires_grad_() for shape in shapes]
        return [each.unflatten(2, (g, d)).transpose(1, 2) for each in tokens]

    def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(shape, device=device).to(BF16).requires_grad_() for shape in shapes]

    def talking(g: int, n: int, d: int, b: int) -> Any:
        mixing = weights((g, g), (g,), (g, g), (g,))
        return "talking_heads", mixed_heads.talking_heads, [*heads(b, g, n, n, d), *mixing]

    def normed(g: int, n: int, m: int, d: int, b: int) -> Any:
        return "normed_heads", mixed_heads.normed_heads, [*heads(b, g, n, m, d), *weights((g, g), (g,))]

    def plus(g: int, n: int, m: int, d: int, b: int) -> Any:
        added = torch.randn(b, n, g * d, device=device).to(BF16).requires_grad_()
        norm = nn.LayerNorm(g * d, device=device, dtype=BF16)
        return "attend_plus", attention.attend_plus, [*heads(b, g, n, m, d), added, norm]

    def joined(n: int, c: int, scaled: bool, b: int) -> Any:
        x, y = (torch.randn(b, n, c, device=device).to(BF16).requires_grad_() for _ in range(2))
        gamma = torch.randn(c, device=device).to(BF16).requires_grad_() if scaled else None
        return "add_norm", residual.add_norm, [x, y, gamma, None, nn.LayerNorm(c, device=device, dtype=BF16)]

    fewer = max(1, batch // 4)  # at 384 px
    return {
        "cait_xxs24 224": (batch, partial(talking, 4, 196, 48)),
        "cait_xxs24 384": (fewer, partial(talking, 4, 576, 48)),
        "cait_s24 224": (batch, partial(talking, 8, 196, 48)),
        "rest_small 224 stage 2": (batch, partial(normed, 2, 784, 49, 64)),
        "rest_small 224 stage 3": (batch, partial(normed, 4, 196, 49, 64)),
        "rest_small 224 stage 4": (batch, partial(normed, 8, 49, 49, 64)),
        "rest_small 384 stage 2": (fewer, partial(normed, 2, 2304, 144, 64)),
        "restv2_tiny 224 stage 1": (batch, partial(plus, 1, 3136, 49, 96)),
        "restv2_tiny 224 stage 2": (batch, partial(plus, 2, 784, 49, 96)),
        "restv2_tiny 224 stage 3": (batch, partial(plus, 4, 196, 49, 96)),
        "restv2_tiny 224 stage 4": (batch, partial(plus, 8, 49, 49, 96)),
        "restv2_tiny 384 stage 1": (fewer, partial(plus, 1, 9216, 144, 96)),
        "deit3_small 224 residual": (batch, partial(joined, 197, 384, True)),
        "restv2_tiny 224 residual": (batch, partial(joined, 3136, 96, False)),
    }


def kernel_alone(case: tuple[int, Case], clock: Clock, compiled: bool = True) -> Facts:
    """Forward, and forward with backward, of a kernel, its plain form and that compiled; and how far it is off."""
    from anyres.ops import triton as kernels

    images, make = case

    def measure(count: int) -> Facts:
        name, plain, inputs = make(count)
        kernel = getattr(kernels, name)
        forms = {"plain": plain, **({"compiled": torch.compile(plain, dynamic=False)} if compiled else {})}

        def forward(form: Callable[..., Any]) -> object:
            with torch.no_grad():
                return form(*inputs)

        def both(form: Callable[..., Any]) -> None:
            out = form(*inputs)
            outs = out if isinstance(out, tuple) else (out,)
            torch.autograd.grad(outs, wanted, [torch.ones_like(each) for each in outs], allow_unused=True)

        wanted = [p for i in inputs for p in (i.parameters() if isinstance(i, nn.Module) else [i])]
        wanted = [each for each in wanted if isinstance(each, Tensor)]
        facts: Facts = {"operation": name}
        for what, call in (("forward", forward), ("forward and backward", both)):
            theirs = {form: partial(partial, call, made) for form, made in forms.items()}
            facts[what] = contest({"kernel": partial(partial, call, kernel)}, theirs, clock)[0]
        with torch.no_grad():
            found, truth = (form(*inputs) for form in (kernel, plain))
        pairs = zip(found, truth, strict=True) if isinstance(found, tuple) else [(found, truth)]
        facts["off"] = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
        return facts

    return fitting(images, measure)


if __name__ == "__main__":
    sys.exit(main())
