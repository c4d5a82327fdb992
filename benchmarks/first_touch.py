"""Twelve things a new user does, by anyres and by its peers: what is typed, how long it takes, what has to be read.

    python benchmarks/first_touch.py --peers /tmp/venv-peers [--only anyres,ultralytics] [--tasks 3,7]

`--peers` is a folder of virtual environments called ultralytics, timm and hf (transformers, datasets, accelerate),
installed beforehand; anyres is this Python's. 60 drawn pictures of three classes, two epochs at 64 px, CPU. Typed are
commands, and lines of a script where there is no command; `first output`, `wall` and `cpu` are seconds, `lines` those
printed; on a busy machine `cpu` is what can be compared.
What needs weights or a program from the network, which this machine cannot reach, is said to be so. Writes
benchmarks/results/first_touch.json; `--table` prints it for docs/start.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULT = Path(__file__).with_name("results") / "first_touch.json"
TASKS = {
    1: "install",
    2: "first result",
    3: "train on a folder",
    4: "fine-tune from weights",
    5: "watch",
    6: "interrupt and resume",
    7: "evaluate",
    8: "a curve of sizes, and a choice",
    9: "predict a folder to CSV",
    10: "use in Python",
    11: "change five settings",
    12: "what a setting means",
}
PEERS = ("anyres", "ultralytics", "timm", "hf")
TITLES = {"anyres": "anyres", "ultralytics": "Ultralytics", "timm": "timm", "hf": "HF Trainer"}


@dataclass(frozen=True)
class Try:
    """One task by one program. ``typed``: its commands, each a line of a shell; ``script``: lines of Python that have
    to be written beside; ``note``: what is not as asked for; ``stop_s``: Ctrl-C after the first command has printed
    ``stop_at``; ``runs``: whether it can be run here."""

    typed: tuple[str, ...] = ()
    script: str = ""
    note: str = ""
    stop_at: str = ""
    runs: bool = True


@dataclass
class Row:
    """What came of it."""

    task: str
    program: str
    commands: int
    script_lines: int
    first_output: float | None = None
    wall: float | None = None
    cpu: float | None = None
    lines: int | None = None
    exit: int | None = None
    note: str = ""
    typed: tuple[str, ...] = ()


SMALL = "epochs=2 imgsz=64 batch=16"
ANYRES = {
    1: Try(("python -m venv .venv", ". .venv/bin/activate", "pip install git+REPOSITORY")),
    2: Try(
        ("anyres demo",),
        note="its photographs come from the package index; its time is measured by itself (docs/start.md)",
        runs=False,
    ),
    3: Try((f"anyres train restv2_nano --data shapes --out runs/mine {SMALL}",)),
    4: Try(
        (f"anyres train restv2_nano --data shapes --weights runs/mine --out runs/tuned {SMALL}",),
        note="from a run of its own",
    ),
    5: Try(note="nothing: a line shows step, loss, held-out accuracy and time; TensorBoard files are written"),
    6: Try(
        (
            "anyres train restv2_nano --data shapes --out runs/cut epochs=30 imgsz=64 batch=16",
            "anyres train restv2_nano --data shapes --out runs/cut epochs=30 imgsz=64 batch=16",
        ),
        stop_at="epoch 2/",
        note="goes on after the last step, bit for bit",
    ),
    7: Try(("anyres eval runs/mine",)),
    8: Try(("anyres curve runs/mine 32 48 64 96", "anyres pick runs/mine --max-ms 100")),
    9: Try(("anyres predict runs/mine shapes/disc --csv answers.csv",)),
    10: Try(script='import anyres\nprint(anyres.predict("runs/mine", "shapes/disc/00.jpg")[0].line)\n'),
    11: Try(
        (
            "anyres train restv2_nano --data shapes --out runs/five epochs=1 imgsz=64 batch=16 lr=3e-4 mixup=0.2 "
            "seed=7 patience=5 weight_decay=0.1",
        )
    ),
    12: Try(("anyres show --explain mixup",)),
}
YOLO = "yolo classify train data=SPLIT"
ULTRALYTICS = {
    1: Try(("python -m venv .venv", ". .venv/bin/activate", "pip install ultralytics")),
    2: Try(
        ("yolo classify predict model=yolo26n-cls.pt source=shapes/disc/00.jpg",),
        note="its weights and its sets come from the network",
        runs=False,
    ),
    3: Try((f"{YOLO} model=yolo11n-cls.yaml {SMALL} name=mine",), note="the folder has to be split by hand"),
    4: Try(
        (f"{YOLO} model=runs/classify/mine/weights/best.pt {SMALL} name=tuned",),
        note="from a run of its own",
    ),
    5: Try(note="nothing: a line shows epoch, loss and accuracy"),
    6: Try(
        (
            f"{YOLO} model=yolo11n-cls.yaml epochs=30 imgsz=64 batch=16 name=cut",
            "yolo classify train resume model=runs/classify/cut/weights/last.pt",
        ),
        stop_at="3/30",
        note="the epoch in hand is lost",
    ),
    7: Try(("yolo classify val model=runs/classify/mine/weights/best.pt data=SPLIT imgsz=64",)),
    8: Try(
        tuple(
            f"yolo classify val model=runs/classify/mine/weights/best.pt data=SPLIT imgsz={size}"
            for size in (32, 48, 64, 96)
        ),
        note="one size a command; no interval, no cost, no choice",
    ),
    9: Try(
        script="""import csv
from ultralytics import YOLO
found = YOLO("runs/classify/mine/weights/best.pt").predict("shapes/disc", imgsz=64, stream=True)
with open("answers.csv", "w", newline="") as file:
    table = csv.writer(file)
    for one in found:
        table.writerow([one.path, one.names[one.probs.top1], float(one.probs.top1conf)])
""",
        note="the command writes a text file for each image (save_txt=True)",
    ),
    10: Try(
        script="""from ultralytics import YOLO
found = YOLO("runs/classify/mine/weights/best.pt")("shapes/disc/00.jpg", imgsz=64)[0]
print(found.names[found.probs.top1])
"""
    ),
    11: Try(
        (
            f"{YOLO} model=yolo11n-cls.yaml epochs=1 imgsz=64 batch=16 lr0=3e-4 mixup=0.2 seed=7 patience=5 "
            "weight_decay=0.1 name=five",
        )
    ),
    12: Try(
        ("python -c 'import ultralytics; print(ultralytics.__path__[0])'", "grep mixup PACKAGE/cfg/default.yaml"),
        note="`yolo cfg` prints values without a meaning; that is in the file's comments and on its site",
    ),
}
NO_SCRIPT = "train.py and validate.py are not in the package: a clone from the network is needed"
TIMM = {
    1: Try(("python -m venv .venv", ". .venv/bin/activate", "pip install timm"), note="no command, no script inside"),
    2: Try(
        script="""import timm, torch
from PIL import Image
model = timm.create_model("mobilenetv3_small_050", pretrained=True).eval()
see = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = timm.data.ImageNetInfo()
found = model(see(Image.open("shapes/disc/00.jpg"))[None]).argmax().item()
print(names.index_to_description(found))
""",
        note="its weights come from the network",
        runs=False,
    ),
    **{task: Try(note=NO_SCRIPT, runs=False) for task in (3, 4, 5, 6, 7, 8, 9, 11, 12)},
    10: Try(
        script="""import timm, torch
from PIL import Image
model = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
see = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    print(model(see(Image.open("shapes/disc/00.jpg"))[None]).argmax().item())
""",
        note="without weights: nothing was trained",
    ),
}
TRAINER = """import sys
import numpy as np
import torch
from datasets import load_dataset
from torchvision.transforms.v2 import Compose, Normalize, RandomResizedCrop, ToDtype, ToImage
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
data = load_dataset("imagefolder", data_dir="SPLIT")
names = data["train"].features["label"].names
see = Compose([RandomResizedCrop(64), ToImage(), ToDtype(torch.float32, scale=True), Normalize([0.5] * 3, [0.5] * 3)])
def prepare(rows):
    return {"pixel_values": [see(x.convert("RGB")) for x in rows["image"]], "labels": rows["label"]}
data = data.with_transform(prepare)
config = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], embedding_size=32, layer_type="basic",
                      num_labels=len(names), id2label=dict(enumerate(names)))
model = FROM
how = TrainingArguments("OUT", num_train_epochs=EPOCHS, per_device_train_batch_size=16, remove_unused_columns=False,
                        eval_strategy="epoch", save_strategy="epoch", logging_steps=1, report_to="none",
                        use_cpu=TrueMORE)
def score(found):
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}
trainer = Trainer(model, how, train_dataset=data["train"], eval_dataset=data["test"], compute_metrics=score)
trainer.train(RESUME)
trainer.save_model("OUT/best")
print(trainer.evaluate())
"""
NEW = "ResNetForImageClassification(config)"


def trainer(out: str, epochs: int = 2, model: str = NEW, resume: str = "", more: str = "") -> str:
    """The shortest script that trains, scores and saves."""
    values = {"OUT": out, "EPOCHS": str(epochs), "FROM": model, "RESUME": resume, "MORE": more}
    text = TRAINER
    for name, value in values.items():
        text = text.replace(name, value)
    return text


LOADED = """import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, ToDtype, ToImage
from transformers import ResNetForImageClassification
model = ResNetForImageClassification.from_pretrained("mine/best").eval()
def see(path, size=64):
    steps = [Resize(size), CenterCrop(size), ToImage(), ToDtype(torch.float32, scale=True)]
    steps += [Normalize([0.5] * 3, [0.5] * 3)]
    return Compose(steps)(Image.open(path).convert("RGB"))[None]
"""
HF = {
    1: Try(
        (
            "python -m venv .venv",
            ". .venv/bin/activate",
            "pip install transformers datasets accelerate torch torchvision",
        )
    ),
    2: Try(
        script="from transformers import pipeline\n"
        'print(pipeline("image-classification", "microsoft/resnet-18")("shapes/disc/00.jpg"))\n',
        note="its weights come from the network",
        runs=False,
    ),
    3: Try(script=trainer("mine"), note="the folder has to be split by hand"),
    4: Try(
        script=trainer("tuned", model='ResNetForImageClassification.from_pretrained("mine/best")'),
        note="from a run of its own",
    ),
    5: Try(note="nothing: a bar, and a line of loss every so many steps"),
    6: Try(
        ("python train.py", "python resume.py"),
        script=trainer("cut", 30),
        stop_at="'epoch': '2'",
        note="resume.py is train.py with trainer.train(resume_from_checkpoint=True); the epoch in hand is lost",
    ),
    7: Try(
        script=trainer("mine", model='ResNetForImageClassification.from_pretrained("mine/best")').replace(
            'trainer.train()\ntrainer.save_model("mine/best")\n', ""
        )
    ),
    8: Try(
        script=LOADED
        + """from datasets import load_dataset
rows = load_dataset("imagefolder", data_dir="SPLIT", split="test")
for size in (32, 48, 64, 96):
    right = 0
    for row in rows:
        row["image"].save("one.png")
        with torch.inference_mode():
            right += int(model(see("one.png", size)).logits.argmax() == row["label"])
    print(size, right / len(rows))
""",
        note="no interval, no cost, no choice",
    ),
    9: Try(
        script=LOADED
        + """import csv
from pathlib import Path
with open("answers.csv", "w", newline="") as file:
    for path in sorted(Path("shapes/disc").iterdir()):
        with torch.inference_mode():
            share, index = model(see(path)).logits.softmax(1)[0].max(0)
        csv.writer(file).writerow([path, model.config.id2label[int(index)], float(share)])
"""
    ),
    10: Try(
        script=LOADED
        + """with torch.inference_mode():
    print(model.config.id2label[int(model(see("shapes/disc/00.jpg")).logits.argmax())])
""",
        note="no processor is saved, so the preprocessing is written again",
    ),
    11: Try(
        script=trainer(
            "five", 1, more=", learning_rate=3e-4, weight_decay=0.1, seed=7, warmup_steps=2, max_grad_norm=5.0"
        ),
        note="in the script; no mixup, and early stopping is another class",
    ),
    12: Try(
        ("python -c 'from transformers import TrainingArguments; help(TrainingArguments)' | grep -A3 weight_decay",),
        note="of weight_decay: there is no mixup",
    ),
}
ALL = {"anyres": ANYRES, "ultralytics": ULTRALYTICS, "timm": TIMM, "hf": HF}


def run(command: str, folder: Path, place: dict[str, str], stop_at: str = "", most_s: float = 900.0) -> Row:
    """One line of a shell; Ctrl-C to all of it once it has printed ``stop_at``, from then on three seconds later."""
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    first: float | None = None
    text = b""
    with subprocess.Popen(
        command,
        shell=True,
        cwd=folder,
        env=place,
        executable="/bin/bash",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        stopped = False
        while time.monotonic() - begun < most_s:
            if select.select([process.stdout], [], [], 0.2)[0]:
                some = os.read(process.stdout.fileno(), 65536)
                if not some:
                    break
                first = first if first is not None else time.monotonic() - begun
                text += some
            if stop_at and not stopped and stop_at.encode() in text:
                os.killpg(process.pid, signal.SIGINT)
                stopped = True
        else:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    wall = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    said = text.decode(errors="replace")
    print(f"  $ {command[:110]}\n    exit {code}, {wall:.1f} s; ...{said.strip()[-160:]!r}", flush=True)
    return Row("", "", 1, 0, first, wall, cpu, said.count("\n"), code)


def attempt(task: int, program: str, folder: Path, place: dict[str, str]) -> Row:
    """A task by a program: its script and its commands, one after another."""
    asked = ALL[program][task]
    text = asked.script.replace("SPLIT", str(folder / "split"))
    lines = len([line for line in text.splitlines() if line.strip()])
    commands = list(asked.typed) or (["python train.py"] if text else [])
    row = Row(TASKS[task], program, len(commands), lines, note=asked.note, typed=tuple(commands))
    if not asked.runs or not commands:
        return row
    if text:
        (folder / "train.py").write_text(text)
        (folder / "resume.py").write_text(text.replace("trainer.train()", "trainer.train(resume_from_checkpoint=True)"))
    print(f"{program}: {TASKS[task]}", flush=True)
    if task == 1:
        return install(program, row, place)
    package = place["PACKAGE"]
    done = []
    for number, command in enumerate(commands):
        line = command.replace("SPLIT", str(folder / "split")).replace("PACKAGE", package)
        done.append(run(line, folder, place, asked.stop_at if number == 0 else ""))
    row.first_output = round(next((each.first_output for each in done if each.first_output is not None), 0.0), 1)
    row.wall = round(sum(each.wall or 0 for each in done), 1)
    row.cpu = round(sum(each.cpu or 0 for each in done), 1)
    row.lines = sum(each.lines or 0 for each in done)
    row.exit = done[-1].exit
    return row


def install(program: str, row: Row, place: dict[str, str]) -> Row:
    """Into an empty environment, by uv from its cache of wheels: pip takes minutes more, for all alike."""
    wanted = {"anyres": f"git+file://{ROOT}", "hf": "transformers datasets accelerate torch torchvision"}
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/.venv/bin/python"
        made = run(f"{uv} venv -q --python {sys.executable} {folder}/.venv", Path(folder), place)
        into = run(f"{uv} pip install --python {python} {wanted.get(program, program)}", Path(folder), place)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())
    row.first_output, row.wall = round(into.first_output or 0, 1), round((made.wall or 0) + (into.wall or 0), 1)
    row.lines, row.exit = into.lines, into.exit
    row.note = f"{size / 1e9:.1f} GB; by uv from its cache{'; ' + row.note if row.note else ''}"
    return row


def places(program: str, peers: Path, work: Path) -> dict[str, str]:
    """The environment in which a program's commands run."""
    python = Path(sys.executable).parent if program == "anyres" else peers / program / "bin"
    own = {
        "PATH": f"{python}:{os.environ['PATH']}",
        "PACKAGE": "",
        "OMP_NUM_THREADS": "1",
        "UV_SYSTEM_CERTS": "1",
        "YOLO_CONFIG_DIR": str(work),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hf"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if program == "anyres":
        own["PYTHONPATH"] = str(ROOT / "src")
    else:
        os.environ.pop("PYTHONPATH", None)
        found = next((peers / program).glob(f"lib/*/site-packages/{program}"), None)
        own["PACKAGE"] = str(found or "")
    return os.environ | own


def make_images(folder: Path) -> None:
    """60 drawn pictures in folders by class, and the same split for programs that want it."""
    from tests.pictures import make_folder

    make_folder(folder / "shapes", per_class=20)
    for path in sorted((folder / "shapes").glob("*/*.jpg")):
        into = folder / "split" / ("test" if int(path.stem) >= 16 else "train") / path.parent.name
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, into)


def table(rows: list[dict[str, object]]) -> str:
    """For docs/start.md: what is typed, seconds to the first output and in all, lines printed."""
    lines = ["| | " + " | ".join(TITLES[program] for program in PEERS) + " |", "|---|" + "---|" * len(PEERS)]
    by = {(row["task"], row["program"]): row for row in rows}
    for task in TASKS.values():
        found = (by.get((task, program)) for program in PEERS)
        lines.append(f"| {task} | " + " | ".join(_cell(row) if row else "-" for row in found) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, object]) -> str:
    typed = str(row["commands"]) + (f" + {row['script_lines']} lines" if row["script_lines"] else "")
    if row["note"] == NO_SCRIPT:
        return "not in the package"
    if row["wall"] is None:
        return f"{typed}, not run" if row["commands"] else "0"
    failed = {0: "", -9: " (cut off)"}.get(row["exit"], " (failed)")  # type: ignore[call-overload]
    return f"{typed} · {row['first_output']:.0f} · {row['wall']:.0f} · {row['lines']}{failed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("/tmp/venv-peers"))
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)))
    parser.add_argument("--into", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    kept: list[dict[str, object]] = json.loads(asked.into.read_text())["rows"] if asked.into.is_file() else []
    if asked.table:
        print(table(kept))
        return
    for program in asked.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            make_images(work)
            place = places(program, asked.peers, work)
            for task in map(int, asked.tasks.split(",")):
                row = asdict(attempt(task, program, work, place))
                kept = [each for each in kept if (each["task"], each["program"]) != (row["task"], program)] + [row]
                load = round(os.getloadavg()[0], 1)
                asked.into.write_text(json.dumps({"what": __doc__, "load": load, "rows": kept}, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
