"""What each technique of per_aux_dqn.py is worth: all off, each alone, each left out, all on, on several tasks.

Run:   python benchmarks/ablation.py --jobs 2        trains what results/ablation.csv lacks (an hour of two cores)
       python benchmarks/readme.py                   writes its table into the README
"""

import contextlib
import csv
import io
import itertools
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402

RESULTS = ROOT / "results" / "ablation.csv"
TASKS = {
    "maze 11": "--layout maze --grid-size 11",
    "8 x 8": "--grid-size 8",
    "four rooms": "--layout four_rooms --grid-size 13",
    "four rooms, 1 update per 16 steps": "--layout four_rooms --grid-size 13 --train-frequency 16",
}
OFF = {"replay": "--no-prioritized", "auxiliary": "--no-auxiliary", "augmentation": "--augmentation none"}
SETTINGS = {"all off": " ".join(OFF.values()), "all on": ""}
SETTINGS |= {f"{name} alone": " ".join(flag for other, flag in OFF.items() if other != name) for name in OFF}
SETTINGS |= {f"without {name}": flag for name, flag in OFF.items()}
WANTED = [key for key in itertools.product(TASKS, SETTINGS, range(1, 11))]
WANTED = [key for key in WANTED if "16 steps" not in key[0] or key[1] in ("all off", "replay alone")]


def run(task: str, setting: str, seed: int) -> tuple[str, str, int, float, float, float]:
    """Task, setting, seed, final score, kept score, steps to a kept 0.95 of one run in this process."""
    import tyro

    import per_aux_dqn

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        flags = f"{TASKS[task]} {SETTINGS[setting]} --seed {seed} --eval-every 250 --log-dir {folder}"
        with contextlib.redirect_stdout(io.StringIO()):
            per_aux_dqn.train(tyro.cli(per_aux_dqn.Args, args=flags.split()))
        (path,) = Path(folder).iterdir()
        record = evaluate.read_run(path, path.name).record()
    return task, setting, seed, record["eval/score"], record["kept_score"], record["steps_to_kept"]


def table(path: Path) -> str:
    """A row for each setting: median steps to a kept 0.95 with the interval over seeds, and how many got there."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [f"| | {' | '.join(tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    for setting in SETTINGS:
        cells = [setting]
        for task in tasks:
            of = [float(row["steps"]) for row in rows if (row["task"], row["setting"]) == (task, setting)]
            if not of:
                cells.append("")
                continue
            value, low, high = evaluate.bootstrap_interval(evaluate.median, evaluate.np.array(of))
            got = sum(steps < float("inf") for steps in of)
            cells.append(f"{value:,.0f} ({low:,.0f} to {high:,.0f})" + f", {got} of {len(of)}" * (got < len(of)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("inf", "never") + "\n"


if __name__ == "__main__":
    jobs = int(sys.argv[sys.argv.index("--jobs") + 1]) if "--jobs" in sys.argv else 1
    if not RESULTS.exists():
        RESULTS.write_text("task,setting,seed,final,kept,steps\n", encoding="utf-8")
    with open(RESULTS, encoding="utf-8") as file:
        present = {(row["task"], row["setting"], int(row["seed"])) for row in csv.DictReader(file)}
    wanted = [key for key in WANTED if key not in present]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for row in pool.map(run, *zip(*wanted, strict=True)):
            with open(RESULTS, "a", newline="", encoding="utf-8") as file:  # one at a time: nothing is lost on a kill
                csv.writer(file, lineterminator="\n").writerow(row)
            print(*row, flush=True)
