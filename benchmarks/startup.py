"""How long the command line takes to answer, against importing timm: medians, commands in turn in one run.

python benchmarks/startup.py            writes benchmarks/results/startup.json
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "anyres models": ["anyres", "models"],
    "anyres --help": ["anyres", "--help"],
    "import timm": [sys.executable, "-c", "import timm"],
}

if __name__ == "__main__":
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(6):  # the first is not counted
        for name, command in COMMANDS.items():
            before = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if turn:
                seconds[name].append(time.perf_counter() - before)
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    ratios = {name: round(median / medians["import timm"], 3) for name, median in medians.items()}
    result = {"what": __doc__, "seconds": medians, "ratio_to_import_timm": ratios}
    Path(__file__).with_name("results").joinpath("startup.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
