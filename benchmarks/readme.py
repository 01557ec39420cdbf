"""Rewrite the README's tables from what is in results/; with --check, only say whether they are up to date.

Run:   python benchmarks/readme.py
       results/runs.csv is the results.csv of `python evaluate.py --train --suite full`, the README says of which tasks;
       ablation.csv, transfer.json and speed.csv are written by ablation.py, transfer_methods.py and speed.py, beside
       this file.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ablation  # noqa: E402
import transfer_methods  # noqa: E402


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


def speed_table(path: Path) -> str:
    """The rates of speed.csv; what a start costs and how things grow stays there."""
    lines = ["| | here | beside | there | ratio |", "|---" * 5 + "|"]
    with open(path, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["what"].endswith("/s"):
                here, there = (f"{float(row[name]):,.0f}" for name in ("here", "there"))
                lines.append(f"| {row['what']} | {here} | {row['beside']} | {there} | {row['ratio']} |")
    return "\n".join(lines) + "\n"


def rewritten(text: str, results: Path) -> str:
    """The README's text with each table between its two marks."""
    tables = {"runs": table(results / "runs.csv"), "ablation": ablation.table(results / "ablation.csv")}
    tables["transfer"] = transfer_methods.table(
        json.loads((results / "transfer.json").read_text())["--layout four_rooms"]
    )
    tables["speed"] = speed_table(results / "speed.csv")
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: written by benchmarks/readme.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + rows + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rewritten(old, ROOT / "results")
    if "--check" in sys.argv:
        sys.exit("README.md differs from results/; run python benchmarks/readme.py" if new != old else 0)
    readme.write_text(new, encoding="utf-8")
