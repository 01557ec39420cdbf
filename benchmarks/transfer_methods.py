"""Every method of transfer.py and its controls against training from scratch, at equal steps on the target.

Run:   python benchmarks/transfer_methods.py
       trains what results/transfer.json lacks (about 10 seconds of one core a run, uvfa 25), and prints the table.

All runs have 15 000 steps on the target and explore alike there, epsilon falling from 1 over half of them (from 0.3 in
the last rows); what the sources cost comes on top. Columns: score before the first step on the target, what that is
above scratch, steps and episodes until 0.95 is kept (medians, and how many seeds keep it), and the area under the curve
against that of scratch with its 95 % interval. `near` are goals in the target's room, `far` in others; controls have no
sources (random features), or sources that teach nothing of the target (unrelated).
"""

import argparse
import json
import shlex
import sys
import tempfile
import unittest.mock
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402 (this file is run from its folder's parent)
import transfer  # noqa: E402

RESULTS = ROOT / "results" / "transfer.json"
LITTLE = "--target-start-e 0.3"
ROWS = {"scratch": "--method scratch --total-timesteps 15000", "fine-tune, near": "", "fine-tune, far": "--source far"}
ROWS["fine-tune, near, 8 000 steps on them"] = "--source-timesteps 8000 --total-timesteps 23000"
ROWS["fine-tune, unrelated"] = "--source unrelated"
for method in ("progressive", "frozen"):
    ROWS[f"{method}, near"] = f"--method {method}"
    ROWS[f"{method}, random features"] = f"--method {method} --source-timesteps 0 --total-timesteps 15000"
ROWS |= {f"{method}, near": f"--method {method}" for method in ("reptile", "uvfa")}
ROWS |= {f"{method}, far": f"--method {method} --source far" for method in ("progressive", "frozen", "reptile", "uvfa")}
ROWS["scratch, little exploration"] = f"--method scratch --total-timesteps 15000 {LITTLE}"
ROWS["fine-tune, near, little exploration"] = LITTLE
ROWS["reptile, near, little exploration"] = f"--method reptile {LITTLE}"


def curve(flags: str, seed: int) -> list[list[float]]:
    """Of a run: steps on the target, scores and episodes ended there; the first score is the zero-shot one."""
    ended, record = {0: 0}, transfer.Run.record

    def counting(run: transfer.Run, step: int, reward: np.ndarray, over: np.ndarray) -> None:
        ended[step] = ended[run.step] + int(over.sum())
        record(run, step, reward, over)

    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(transfer.Run, "record", counting):
        transfer.train(tyro.cli(transfer.Args, args=[*shlex.split(flags), "--seed", str(seed), "--log-dir", folder]))
        (path,) = Path(folder).iterdir()
        log = {tag: pairs.tolist() for tag, pairs in evaluate.read_run(path, path.name).scalars.items()}
    first = int(log["transfer/source_steps"][0][1])
    points = [(0, log["eval/zero_shot"][0][1], 0)]
    points += [(s - first, score, ended[s] - ended[first]) for s, score in log["eval/score"] if s > first]
    return [list(column) for column in zip(*points, strict=True)]


def table(curves: dict[str, dict[str, list]]) -> str:
    """The rows that have been measured, as markdown. curves: {row: {seed: [steps, scores]}}."""
    titles = ["method, sources", "seeds", "zero-shot", "jump start", "0.95 kept from step", "episode"]
    titles += ["area", "area / scratch [95 %]"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in filter(curves.get, ROWS):
        scratch = "scratch, little exploration" if "little" in row else "scratch"
        measures, base = ([transfer.curve_measures(*c[:2]) for c in curves[name].values()] for name in (row, scratch))
        zero_shot, nothing = (np.mean([c[1][0] for c in curves[name].values()]) for name in (row, scratch))
        kept = [m.get("steps_to_kept_95", np.inf) for m in measures]
        area, scratch_area = (np.array([m["area"] for m in of]) for of in (measures, base))
        ratio, low, high = evaluate.bootstrap_interval(evaluate.ratio_of_means, area, scratch_area, draws=10_000)
        share = f"{np.isfinite(kept).sum()} of {len(kept)}"
        against = "1" if row == scratch else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        episodes = [
            np.interp(step, c[0], c[2], right=np.inf) for step, c in zip(kept, curves[row].values(), strict=True)
        ]
        median, episode = (f"{x:,.0f}" if np.isfinite(x) else "never" for x in (np.median(kept), np.median(episodes)))
        lines += [
            f"| {row} | {len(area)} | {zero_shot:.2f} | {zero_shot - nothing:.2f} | {median}, {share} | {episode} "
            f"| {np.mean(area):.2f} | {against} |"
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task", default="--layout four_rooms --max-episode-steps 169", help="flags that name the target"
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of each row, with seeds from 1 on")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what to run")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    curves = results.setdefault(args.task, {})
    for row in args.rows:
        for seed in map(str, range(1, args.seeds + 1)):
            if seed not in curves.setdefault(row, {}):
                curves[row][seed] = curve(f"{args.task} {ROWS[row]}", int(seed))
                RESULTS.write_text(json.dumps(results) + "\n")
    print(table(curves), end="")


if __name__ == "__main__":
    main()
