"""Rewrite the README's table of results from results/runs.csv; with --check, only say whether it is up to date.

Run:   python benchmarks/readme.py
       results/runs.csv is the results.csv of `python evaluate.py --train --seeds 10`, the README says with which tasks.
"""

import csv
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by benchmarks/readme.py -->\n", "<!-- end of results -->\n"


def table(path: Path) -> str:
    """A row for each task and algorithm: what n seeds reached, in the order of the file."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    with open(path, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["state"] == "complete":
                groups.setdefault((row["task"], row["algorithm"]), []).append(row)
    titles = ["task", "algorithm", "seeds solved", "final score, worst", "kept, worst"]
    titles += ["steps to a kept 0.95, median", "seconds"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (task, algorithm), rows in sorted(groups.items()):
        final, kept, steps, seconds = (
            [float(row[name]) for row in rows]
            for name in ("eval/score", "kept_score", "steps_to_kept", "system/wall_time_s")
        )
        solved = f"{sum(score >= 0.99 for score in final)} of {len(rows)}"
        cells = [task, f"`{algorithm}.py`", solved, f"{min(final):.3f}", f"{min(kept):.3f}"]
        half = statistics.median(steps)
        cells += [f"{half:,.0f}" if half < float("inf") else "never", f"{statistics.median(seconds):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rewritten(text: str, rows: str) -> str:
    """The README's text with the rows between the two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + rows + END + rest.split(END)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rewritten(old, table(ROOT / "results" / "runs.csv"))
    if "--check" in sys.argv:
        sys.exit("README.md differs from results/runs.csv; run python benchmarks/readme.py" if new != old else 0)
    readme.write_text(new, encoding="utf-8")
