"""Rewrite the README's tables from results/, and the lines of each file; with --check, only say if they are up to date.

Run:   python benchmarks/readme.py
       results/runs.csv is the results.csv of `python evaluate.py --train --suite full`, the README says of which tasks;
       ablation.csv, transfer.json and speed.csv are written by ablation.py, transfer_methods.py and speed.py, beside
       this file.
"""

import csv
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ablation  # noqa: E402
import transfer_methods  # noqa: E402

import evaluate  # noqa: E402

NUMBERS = ("kept_score", "steps_to_kept", "target_steps_to_kept", "eval/score")
NUMBERS += ("system/wall_time_s", "system/peak_memory_mb")


def table(path: Path) -> str:
    """The tables that the report shows at a glance, with what they say."""
    with open(path, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete"]
    texts = []
    for said, found in evaluate.glance([row | {name: float(row[name]) for name in NUMBERS} for row in rows]):
        lines = [[*found[0]], ["---"] * len(found[0]), *([evaluate.show(x) for x in row.values()] for row in found)]
        texts.append(f"{said}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(texts)


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
    """The README's text with each table between its two marks, and the lines that each file has."""
    tables = {"runs": table(results / "runs.csv"), "ablation": ablation.table(results / "ablation.csv")}
    tables["transfer"] = transfer_methods.table(
        json.loads((results / "transfer.json").read_text())["--layout four_rooms --max-episode-steps 169"]
    )
    tables["speed"] = speed_table(results / "speed.csv")
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: written by benchmarks/readme.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + rows + end + rest.split(end)[1]
    for path in ROOT.glob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        text = re.sub(rf"(?<=\[{path.name}\]\({path.name}\) \| )\d+", str(lines), text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rewritten(old, ROOT / "results")
    if "--check" in sys.argv:
        sys.exit("README.md differs from results/; run python benchmarks/readme.py" if new != old else 0)
    readme.write_text(new, encoding="utf-8")
