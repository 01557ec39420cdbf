"""The picture at the top of the README: learning curves of the ten scripts in the four rooms.

Run:   python evaluate.py --train --suite full --tasks four_rooms-13     about an hour of one core
       python benchmarks/learning_curves.py --log-dir runs
       draws results/four_rooms.svg: interquartile mean over the seeds, and as a band its 95 % interval.
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402 (this file is run from its folder's parent)


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """{name: steps (T,) and score, low, high (3, T)}, named at the right in the order of `curves`."""
    with mpl.rc_context({"svg.hashsalt": "", "font.size": 10}):  # the same numbers give the same file
        figure = Figure((9, 3.6), layout="constrained", facecolor="white")
        axes = figure.subplots(subplot_kw={"xscale": "log", "xlabel": "environment steps", "ylabel": "greedy score"})
        for number, (name, (steps, (score, low, high))) in enumerate(curves.items()):
            colour, dashes = f"C{number}", "-" if number < 5 else (0, (3, 1))
            axes.plot(steps, score, color=colour, linestyle=dashes, label=name)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        for height, what, below in (0, "random", 3), (1, "optimal", -10):
            axes.axhline(height, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(what, (axes.get_xlim()[0], height), (4, below), textcoords="offset points", fontsize=8)
        axes.set_xticks(ticks := [100, 1_000, 10_000, 100_000], [f"{tick:,}" for tick in ticks])
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log-dir", type=Path, default=Path("runs"), help="folder of the runs")
    task = evaluate.task_of(evaluate.TASKS["four_rooms-13"])
    runs = evaluate.select(evaluate.read_runs(parser.parse_args().log_dir))
    of = evaluate.group((run for run in runs if run.task == task), lambda run: run.algorithm)
    if absent := sorted(set(evaluate.STEPS) - set(of)):
        sys.exit(f"--log-dir holds no run of {', '.join(absent)} on {task}; python evaluate.py --train makes them")
    rise = {name: evaluate.median(evaluate.values(of[name], "steps_to_kept")) for name in evaluate.STEPS}
    curves = {
        f"{name} (n = {len(of[name])})": evaluate.curve(of[name], "eval/score") for name in sorted(rise, key=rise.get)
    }
    draw(curves, ROOT / "results" / "four_rooms.svg")
