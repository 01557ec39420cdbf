"""Compare the algorithms: read the runs' TensorBoard logs, rank what the intervals separate, write a report.

Paper: Agarwal et al. (2021), arXiv:2108.13264: interquartile means, optimality gaps, profiles, chances of improvement.
Run:   python evaluate.py --train                 makes what is missing of the quick suite, writes report/index.html
       python evaluate.py --train --suite full    the whole comparison: hours; also on a cluster, --scheduler
       python evaluate.py                         only reads runs/ and writes
Only the event files count: a run's algorithm, task and seed are what it logged, whatever its folder is called.
"""

import contextlib
import csv
import dataclasses
import functools
import html
import itertools
import json
import math
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any, Literal

import matplotlib.figure
import matplotlib.ticker
import numpy as np
import tyro
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE, masked_crc32c
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SOLVED, KEPT = 0.99, 0.95  # a final score that counts as solved; a score to be reached and kept

# The suite: tasks in families (the last in no suite); scripts with their steps in quick and full; variants of scripts.
FAMILIES = {
    "simple": {"empty-5": "--grid-size 5", "empty-8": "--grid-size 8"},
    "complex": {"four_rooms-13": "--layout four_rooms --grid-size 13", "key_door-8": "--layout key_door --grid-size 8"},
    "transfer": {
        "goal-near": "--layout four_rooms --grid-size 13 --max-episode-steps 169 --source near",
        "goal-far": "--layout four_rooms --grid-size 13 --max-episode-steps 169 --source far",
        "map-changed": "--layout maze --grid-size 11 --source maps",
    },
    "long-horizon": {"maze-15": "--layout maze --grid-size 15", "maze-21": "--layout maze --grid-size 21"},
    "other": {"empty-16": "--grid-size 16", "maze-11": "--layout maze --grid-size 11"},
}
TASKS = {name: flags for family in FAMILIES.values() for name, flags in family.items()}
STEPS = {"dqn": (10_000, 30_000), "dyna_q": (5_000, 20_000), "model_based": (1_500, 4_000)}
STEPS |= {"world_model": (1_000, 2_000), "per_aux_dqn": (12_000, 30_000), "transfer": (20_000, 30_000)}
STEPS |= {"curriculum": (15_000, 20_000), "options_critic": (200_000, 200_000), "feudal": (100_000, 250_000)}
STEPS |= {"her": (30_000, 90_000)}
PARTS = {"no-per": "--no-prioritized", "no-auxiliary": "--no-auxiliary", "no-augmentation": "--augmentation none"}
METHODS = ("scratch", "fine-tune", "frozen", "progressive", "uvfa", "reptile")  # on the tasks of family transfer, alone
ROWS = dict.fromkeys(STEPS, "") | {f"per_aux_dqn-{name}": flags for name, flags in PARTS.items()}
ROWS |= {"per_aux_dqn-nothing": " ".join(PARTS.values())} | {f"transfer-{name}": f"--method {name}" for name in METHODS}
SUITES = {
    "quick": (("empty-5", "empty-8", "goal-near"), (*STEPS, "transfer-scratch", "transfer-fine-tune"), 3),
    "full": (tuple(task for task in TASKS if task not in FAMILIES["other"]), tuple(ROWS), 10),
}  # tasks, rows, seeds


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare the runs in a folder; with --train, first run what is missing there."""

    log_dir: Path = Path("runs")
    """Folder of the runs; all event files below it are read."""
    report_dir: Path = Path("report")
    """Folder for index.html, report.md with its figures, results.csv and summary.json, overwritten each time."""
    train: bool = False
    """First make those runs of the suite of which the logs hold no complete one."""
    suite: Literal["quick", "full"] = "quick"
    """With --train: small tasks and budgets for minutes, or all tasks, ablations and full budgets for hours."""
    algorithms: tuple[str, ...] = ()
    """With --train: instead of the suite's, scripts beside this one without .py, or variants as per_aux_dqn-no-per."""
    tasks: tuple[str, ...] = ()
    """With --train: instead of the suite's, some of empty-5, empty-8, empty-16, four_rooms-13, key_door-8, maze-11,
    maze-15, maze-21; and for the variants of transfer.py alone, goal-near, goal-far, map-changed."""
    seeds: int | None = None
    """With --train: seeds 1 to this, without it 3 or 10 by suite; with fewer than 10 the intervals are rough."""
    jobs: int = os.cpu_count() or 1
    """With --train: runs at once, each a process of one thread."""
    scheduler: str | None = None
    """With --train: a Dask scheduler, as tcp://host:8786, whose workers make the runs; they need the packages alone."""

    def __post_init__(self) -> None:
        for name, high in ("seeds", 10_000), ("jobs", 1_000):
            if (value := getattr(self, name)) is not None and not 1 <= value <= high:
                raise ValueError(f"--{name} must be between 1 and {high}, got {value}")
        scripts = {path.stem for path in HERE.glob("*.py")} - {"evaluate", "gridworld"}
        rows = scripts | {row for row in ROWS if row.split("-")[0] in scripts}
        for name, known in ("algorithms", rows), ("tasks", set(TASKS)):
            if unknown := sorted(set(getattr(self, name)) - known):
                raise ValueError(f"--{name} must be of {', '.join(sorted(known))}, got {', '.join(unknown)}")
        pairs = itertools.product(self.algorithms or SUITES[self.suite][1], self.tasks or SUITES[self.suite][0])
        used = {name for pair in pairs if suits(*pair) for name in pair}
        if idle := [name for name in (*self.algorithms, *self.tasks) if name not in used]:
            raise ValueError(f"--algorithms and --tasks make no run of {', '.join(idle)}: they do not suit each other")
        for name in "log_dir", "report_dir":
            if getattr(self, name).is_file():
                raise ValueError(f"--{name.replace('_', '-')} must be a folder, got the file {getattr(self, name)}")
        if not re.fullmatch(r"\w+://\S+:\d+", self.scheduler or "tcp://none:0"):
            raise ValueError(f"--scheduler must be like tcp://host:8786, got {self.scheduler}")


# ----------------------------------------------------------------------------- statistics
# Pure functions; samples are over seeds, never over episodes.


def kept_score(score: np.ndarray) -> float:
    """The lowest score of the last fifth of the evaluations (at least one): (T,) -> float, NaN if T = 0."""
    return float(np.min(score[-max(1, len(score) // 5) :])) if len(score) else np.nan


def steps_to_kept(steps: np.ndarray, score: np.ndarray, threshold: float = KEPT) -> float:
    """The first steps[t] with score[u] >= threshold for all u >= t: (T,), (T,) -> float, inf if there is none."""
    below = np.flatnonzero(~(np.float32(score) >= threshold))  # as it was logged: 0.95 is not below 0.95
    first = below[-1] + 1 if len(below) else 0
    return float(steps[first]) if first < len(steps) else np.inf


def score_area(steps: np.ndarray, score: np.ndarray) -> float:
    """Area under the curve over its width, the mean score from the first evaluation to the last; NaN if T < 2."""
    return float(np.trapezoid(score, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else np.nan


# Statistics of samples (..., n), the runs of one algorithm on one task in each; pooled over the tasks they are (...).


def median(*samples: np.ndarray) -> np.ndarray:
    return np.median(np.concatenate(samples, axis=-1), axis=-1)


def iqm(*samples: np.ndarray) -> np.ndarray:
    """Interquartile mean: the mean of all n values without the floor(n / 4) lowest and the floor(n / 4) highest."""
    x = np.sort(np.concatenate(samples, axis=-1), axis=-1)
    return x[..., x.shape[-1] // 4 : x.shape[-1] - x.shape[-1] // 4].mean(axis=-1)


def steps_saved(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return median(y) - median(x)


def ratio_of_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """NaN where the mean of y is not positive: so many times less than nothing says nothing."""
    return x.mean(axis=-1) / np.where(y.mean(axis=-1) > 0, y.mean(axis=-1), np.nan)


def optimality_gap(*samples: np.ndarray) -> np.ndarray:
    """The mean of max(1 - x, 0): how far the scores fall short of the optimum."""
    return np.maximum(1 - np.concatenate(samples, axis=-1), 0).mean(axis=-1)


def share_above(thresholds: np.ndarray) -> Callable[..., np.ndarray]:
    """Performance profile, the share of runs whose score is above each threshold: (H,) -> statistic with (H, ...)."""
    return lambda *samples: np.stack([(np.concatenate(samples, axis=-1) > t).mean(axis=-1) for t in thresholds])


def improvement(*samples: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 for a run X of the first half of the samples and a run Y of the same task in the second,
    mean over the tasks; scores are equal if they differ by less than 0.0005."""
    pairs = zip(samples[: len(samples) // 2], samples[len(samples) // 2 :], strict=True)
    differences = [np.round(x[..., :, None] - y[..., None, :], 3) for x, y in pairs]  # (..., n of X, n of Y)
    return np.mean([(1 + np.sign(difference).mean(axis=(-2, -1))) / 2 for difference in differences], axis=0)


@np.errstate(divide="ignore", invalid="ignore")  # never minus never, a ratio to nothing
def bootstrap_interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray, draws: int = 2_000) -> np.ndarray:
    """A statistic of the samples and its 95 % percentile bootstrap interval: (3, ...), value, low, high.

    Stratified: `draws` times as many runs as there are of each task are drawn of it with replacement, from one fixed
    seed. Of their statistics in order those at 2.5 % and 97.5 % are taken as they are: interpolation makes NaN next to
    inf, steps never reached. The interval is NaN if a sample has fewer than two runs.
    """
    value, rng = statistic(*samples), np.random.default_rng(0)
    if min(x.shape[-1] for x in samples) < 2:
        return np.stack([value, value * np.nan, value * np.nan])
    drawn = [x[..., rng.integers(x.shape[-1], size=(draws, x.shape[-1]))] for x in samples]  # (..., draws, n)
    ordered = np.sort(statistic(*drawn), axis=-1)  # (..., draws)
    return np.stack([value, ordered[..., int(0.025 * draws)], ordered[..., -1 - int(0.025 * draws)]])


# ----------------------------------------------------------------------------- reading runs

# How gridworld.py takes a flag that is not given, so that both ways name one task; a test compares the two files.
DEFAULT_SIZE = {"empty": 8, "four_rooms": 13, "key_door": 8, "maze": 11, "random": 8}
DEFAULTS = {"layout_seed": 0, "slip": 0.0, "random_start": False, "random_goal": False, "step_reward": -0.1}
DEFAULTS |= {"goal_reward": 10.0, "trap_reward": -10.0, "max_episode_steps": None}
# Arguments in which the runs of one algorithm on one task may differ and still be one sample.
FREE = {*DEFAULTS, *"source layout grid_size exp_name seed log_dir device save_model capture_video".split()}
STATES = ("damaged", "foreign", "empty", "not finite", "partial")  # of several the first is named


@dataclasses.dataclass(eq=False)
class Run:
    """What the event files of one folder hold."""

    folder: str
    scalars: dict[str, np.ndarray]  # tag: (T, 2) float64, steps and values
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    algorithm: str = ""
    task: str = ""
    state: str = "complete"  # or why the run is not ranked
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """A row of results.csv; NaN where the log has no such number, inf for steps that were never reached."""
        row = {name: getattr(self, name) for name in ("folder", "algorithm", "task", "state", "reason")}
        steps, score = self.scalars.get("eval/score", np.empty((0, 2))).T
        row |= {"kept_score": kept_score(score), "steps_to_kept": steps_to_kept(steps, score)}
        row["score_area"] = score_area(steps, score)
        kept = self.scalars.get("transfer/steps_to_kept_95", [[0, np.inf]])[-1][1]  # it is logged if there is one
        row["target_steps_to_kept"] = float(kept) if "transfer/area" in self.scalars else np.nan
        row |= {"seed": self.args.get("seed"), "steps": int(max((x[-1, 0] for x in self.scalars.values()), default=0))}
        for tag in "eval/score", "eval/return", "charts/SPS", "system/wall_time_s", "system/peak_memory_mb":
            row[tag] = float(self.scalars[tag][-1, 1]) if tag in self.scalars else np.nan
        return row


PIECE, BLOCK = 1024, 2**20  # bytes that a checksum takes in at once; bytes of records in memory at once
AFTER = [np.array(CRC_TABLE, np.uint32)]  # [n][b]: what a byte b changes in a CRC-32C that takes in n bytes after it
while len(AFTER) < 2 * PIECE:
    AFTER.append(AFTER[0][AFTER[-1] & 255] ^ (AFTER[-1] >> 8))
AFTER = np.concatenate(AFTER)  # at 256 n + b


def checksums(rows: np.ndarray) -> np.ndarray:
    """Masked CRC-32C of each row, as TensorBoard stores it: (K, L) uint8, L >= 4 -> (K,) uint32.

    The checksum is linear: what each byte of all rows changes is looked up at once, and joined by XOR. What a long row
    has come to after a piece of it is joined to the first four bytes of the next piece.
    """
    crc, start, end = np.full(len(rows), 2**32 - 1, np.uint32), 0, rows.shape[1]
    while start < end:
        width = PIECE if end - start >= 2 * PIECE else end - start  # so the last piece is no shorter than four bytes
        piece = rows[:, start : start + width].copy()
        piece[:, :4] ^= crc.astype("<u4").view(np.uint8).reshape(-1, 4)
        crc = np.bitwise_xor.reduce(AFTER.take(piece + 256 * np.arange(width)[::-1]), axis=1)
        start += width
    return (~crc >> 15 | ~crc << 17) + np.uint32(0xA282EAD8)


@functools.lru_cache(1_000)
def length_after(header: bytes) -> int:
    """How many bytes of data follow the header of a record; -1 if it is damaged, or the data too short for an event."""
    length, checksum = struct.unpack("<QI", header)
    return length if length >= 4 and checksum == masked_crc32c(header[:8]) else -1


def read_records(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Offsets (K,) and data (K, L) uint8 of the sound records of a file, some of one length at a time.

    It ends with a ValueError if there are unsound ones, with an EOFError if the file is cut. A record is the length of
    its data as uint64, the checksum of that as uint32, the data, and their checksum.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size  # what is appended from here on is not read
        view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    starts, at, fault, unsound = {}, 0, None, []
    while at < size and not fault:
        length = length_after(view[at : at + 12]) if at + 12 <= size else size
        if length < 0:
            fault = ValueError(f"is damaged at byte {at}: wrong checksum of a length")
        elif at + 16 + length > size:
            fault = EOFError(f"ends inside the record at byte {at}")
        else:
            starts.setdefault(length, []).append(at)
        at += 16 + length
    for length, offsets in starts.items():
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(view, np.uint8), length + 4)
        for some in np.array_split(offsets, 1 + len(offsets) * length // BLOCK):
            data, stored = np.split(rows[some + 12], [length], axis=1)
            sound = checksums(data) == stored.copy().view("<u4")[:, 0]
            unsound += some[~sound].tolist()
            yield some[sound], data[sound]
    if unsound:
        fault = ValueError(f"is damaged at byte {min(unsound)}: wrong checksum of a record")
    if fault:
        raise fault


@functools.lru_cache(10_000)
def tag_of(summary: bytes) -> str | None:
    """The tag, if these bytes and the four of a float are the summary of one scalar."""
    try:
        event = Event.FromString(summary + struct.pack("<f", 1.5))
        tag = event.summary.value[0].tag
    except (DecodeError, IndexError):
        return None
    return tag if event == Event(summary=Summary(value=[Summary.Value(tag=tag, simple_value=1.5)])) else None


def read_events(path: Path, scalars: dict[str, list[np.ndarray]], texts: dict[str, str]) -> None:
    """Add the scalars, {tag: [(T, 2) steps and values]}, and texts of the sound records of a file; errors as above.

    Nearly all events are 9, time, 16, step, the summary of one scalar, its float: these are taken apart together, the
    others by the library.
    """
    found = {}  # {tag: [(K, 3) offset, step and value]}, not yet in order
    try:
        for offsets, data in read_records(path):
            raw, length = data.tobytes(), data.shape[1]
            head = np.pad(data[:, :15], ((0, 0), (0, max(0, 15 - length))))
            step = head[:, 10:]  # (K, 5), seven bits in each byte, up to the first below 128
            width = 1 + (step < 128).argmax(axis=1)
            plain = (head[:, 0] == 9) & (head[:, 9] == 16) & (step < 128).any(axis=1)
            numbers = ((step & 127) * (np.arange(5) < width[:, None])) @ 128.0 ** np.arange(5)
            table = np.stack([offsets, numbers, data[:, -4:].copy().view("<f4")[:, 0]], axis=1)  # (K, 3)
            alike = {}  # {what stands between step and float: rows}
            for i, skip in enumerate(np.where(plain, 10 + width, length).tolist()):
                alike.setdefault(raw[i * length + skip : i * length + length - 4], []).append(i)
            for summary, rows in alike.items():
                if tag := tag_of(summary):
                    found.setdefault(tag, []).append(table[rows])
                    continue
                for i, event in ((i, Event.FromString(data[i].tobytes())) for i in rows):
                    for value in event.summary.value:
                        if value.HasField("simple_value"):
                            row = np.array([[offsets[i], event.step, value.simple_value]])
                            found.setdefault(value.tag, []).append(row)
                        elif value.HasField("tensor"):
                            texts[value.tag] = b"".join(value.tensor.string_val).decode(errors="replace")
    finally:
        for tag, tables in found.items():
            table = np.concatenate(tables)
            scalars.setdefault(tag, []).append(table[np.argsort(table[:, 0], kind="stable"), 1:])


def printable(text: Any) -> str:
    """`text` without control characters, which could act on a terminal or break the line of a table."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def task_label(args: dict[str, Any]) -> str:
    """The environment arguments that differ from the defaults, as a short name of the task: 'maze 11, slip 0.1'."""
    layout = args.get("layout") or "empty"
    parts = [f"{layout} {args.get('grid_size') or DEFAULT_SIZE.get(layout, '')}".strip()]
    # GoalGridWorld-v0 and forms of observation do not count: how an algorithm sees the task is a part of the algorithm.
    if args.get("env_id", "GridWorld-v0") not in ("GridWorld-v0", "GoalGridWorld-v0"):
        parts = [args["env_id"]]
    for name, default in (DEFAULTS | {"source": "near"}).items():  # from where transfer.py transfers, too
        if (value := args.get(name)) is not None and value != default:
            parts.append(name.replace("_", " ") + ("" if value is True else f" {value}"))
    return printable(", ".join(parts))


def read_run(folder: Path, name: str) -> Run:
    """Read the event files of a folder as far as they are sound, and judge them."""
    columns, texts, problems = {}, {}, []  # {tag: [(T, 2)]}, {tag: text}, [(state, reason)]
    for path in sorted(path for path in folder.glob("*tfevents*") if path.is_file()):
        try:
            read_events(path, columns, texts)
        except EOFError as error:  # it was killed or still writes, which is nothing out of the ordinary
            problems.append(("partial", f"{path.name} {error}"))
        except Exception as error:  # whatever the file is, the report stands
            problems.append(("damaged", f"{path.name} {error}"))
    run = Run(name, {tag: np.concatenate(tables) for tag, tables in columns.items()})
    about = texts.get("run/about/text_summary", "")
    try:
        args = json.loads(about.strip("`json\n"))["args"]  # from a fenced block of JSON
        run.algorithm, run.task = printable(args["exp_name"]), task_label(args)
        run.args = args | {"seed": int(args["seed"]), "total_timesteps": int(args["total_timesteps"])}
        if lacks := sorted({"run/completed", "eval/return"} - set(columns)):
            reached = f"step {run.record()['steps']} of {run.args['total_timesteps']}"
            problems.append(("partial", f"reached {reached}, without {' and '.join(lacks)}"))
    except Exception:  # any text may stand there
        problems.append(("foreign" if about or columns else "empty", "no run/about of a script of this project"))
    for tag, scalars in run.scalars.items():
        bad = scalars[~np.isfinite(scalars[:, 1]), 0]  # (K,) steps
        if tag.startswith(("eval/", "losses/", "system/", "transfer/", "options/", "horizon/")) and len(bad):
            problems.append(("not finite", f"{tag} is NaN or infinite at step {bad[0]:.0f}"))
    if problems:
        run.state = min((state for state, _ in problems), key=STATES.index)
        run.reason = printable("; ".join(reason for _, reason in problems))
    return run


def read_runs(log_dir: Path) -> list[Run]:
    """A Run for each folder at or below `log_dir` that holds event files, or is named as if it should."""
    folders = {path.parent for path in log_dir.rglob("*tfevents*") if path.is_file()}
    folders |= {path for path in log_dir.rglob("*__*__*__*") if path.is_dir()}
    return [read_run(folder, printable(folder.relative_to(log_dir).as_posix())) for folder in sorted(folders)]


def group(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """{key: the items that have it}, in the order of the keys' first appearance."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def made_at(run: Run) -> int:
    return int("0" + re.search("[0-9]*$", run.folder)[0])


def seeds_of(runs: list[Run]) -> set[int]:
    return {run.args["seed"] for run in runs}


def select(runs: list[Run]) -> list[Run]:
    """The complete runs of the usual budget and settings, the newest of each seed; the others' state says why not.

    Usual is what most seeds have; of as many the larger budget, then the newer.
    """
    chosen = []
    for same in group((run for run in runs if run.state == "complete"), lambda run: (run.task, run.algorithm)).values():
        settings = {name: None for run in same for name in run.args if name not in FREE}  # total_timesteps among them
        variants = group(same, lambda run, names=settings: repr([run.args.get(name) for name in names])).values()
        usual = max(variants, key=lambda x: (len(seeds_of(x)), x[0].args["total_timesteps"], max(map(made_at, x))))
        for run in (run for run in same if run not in usual):
            differ = [name for name in settings if run.args.get(name) != usual[0].args.get(name)]
            run.state = "other budget" if "total_timesteps" in differ else "other settings"
            run.reason = printable("unlike most: " + ", ".join(f"{name} {run.args.get(name)}" for name in differ))
        for again in group(usual, lambda run: run.args["seed"]).values():
            *older, newest = sorted(again, key=made_at)
            chosen.append(newest)
            for run in older:
                run.state, run.reason = "superseded", f"the same seed was run again: {newest.folder}"
    return chosen


def values(runs: list[Run], name: str) -> np.ndarray:
    """A column of the runs' records, or the last value of each under a tag, NaN where there is none: (n,)."""
    return np.array([run.record().get(name, run.scalars.get(name, [[0, np.nan]])[-1][1]) for run in runs])


def interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> list[float]:
    return bootstrap_interval(statistic, *samples).tolist()


def summarise(runs: list[Run], measure: str) -> dict[str, Any]:
    """Statistics over the seeds of one algorithm on one task, a row of its table; intervals are [value, low, high]."""
    final, to_kept = values(runs, f"eval/{measure}"), values(runs, "steps_to_kept")
    row = {"task": runs[0].task, "algorithm": runs[0].algorithm, "n": len(runs)}
    row[f"final {measure}"] = interval(iqm, final)
    if measure == "score":
        row |= {
            "spread": np.std(final, ddof=1) if len(final) > 1 else np.nan,
            "solved": np.mean(np.float32(final) >= SOLVED),
        }
        row |= {"worst kept": values(runs, "kept_score").min(), "area": interval(iqm, values(runs, "score_area"))}
        row |= {f"steps to {KEPT}": interval(median, to_kept), "got there": int(np.isfinite(to_kept).sum())}
    row |= {"budget": runs[0].args["total_timesteps"], "seconds": interval(median, values(runs, "system/wall_time_s"))}
    row["steps/s"], row["peak MB"] = median(values(runs, "charts/SPS")), values(runs, "system/peak_memory_mb").max()
    return row


def summarise_transfer(algorithms: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """What each method of transfer.py gained on one task; steps, and area under the curve, are those on the target."""
    scratch = [runs for runs in algorithms.values() if runs[0].args.get("method") == "scratch"][:1]
    rows, tags = [], {"zero-shot": "eval/zero_shot", "jump start": "transfer/jump_start", "area": "transfer/area"}
    for name, runs in algorithms.items():
        row = {"task": runs[0].task, "algorithm": name, "n": len(runs)}
        row |= {title: interval(iqm, values(runs, tag)) for title, tag in tags.items()}
        steps = [values(x, "target_steps_to_kept") for x in (runs, *scratch)]
        row[f"target steps to {KEPT}"] = interval(median, steps[0])
        if scratch:
            row["area / scratch"] = interval(ratio_of_means, *(values(x, tags["area"]) for x in (runs, *scratch)))
            row["steps saved"] = interval(steps_saved, *steps)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["area"][0])


def scores_together(tasks: list[dict[str, list[Run]]]) -> dict[str, list[np.ndarray]]:
    """{algorithm: its final scores (n,) on each of the tasks} of those seeds that it has on all of them, if any."""
    scores = {}
    for algorithm in sorted(set.intersection(*map(set, tasks))):
        seeds = set.intersection(*(seeds_of(of[algorithm]) for of in tasks))  # else a task with more seeds weighs more
        runs = [[run for run in of[algorithm] if run.args["seed"] in seeds] for of in tasks]
        scores |= {algorithm: [values(of, "eval/score") for of in runs]} if seeds else {}
    return scores


def summarise_tasks(name: str, scores: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """Statistics over several tasks together of {algorithm: its scores (n,) on each of them}."""
    rows, baseline = [], "dqn" if "dqn" in scores else min(scores, default="")
    for algorithm, samples in scores.items():
        row = {"task": name, "algorithm": algorithm, "n": len(samples[0]), "IQM": interval(iqm, *samples)}
        row["optimality gap"] = interval(optimality_gap, *samples)
        row["solved"] = np.mean(np.float32(np.concatenate(samples)) >= SOLVED)
        beats = interval(improvement, *samples, *scores[baseline]) if algorithm != baseline else np.nan
        rows.append(row | {f"ends better than {baseline}": beats})
    return sorted(rows, key=lambda row: -row["IQM"][0])


def show(x: Any) -> str:
    """A text, number or interval [value, low, high] as text."""
    if isinstance(x, list):
        return show(x[0]) + (f" ({show(x[1])} to {show(x[2])})" if x[1] < np.inf else "")
    if isinstance(x, str) or not np.isfinite(x):
        return x if isinstance(x, str) else {np.inf: "never", -np.inf: "-∞"}.get(x, "–")
    digits = 0 if isinstance(x, int) or abs(x) >= 100 else 1 if abs(x) >= 10 else 3
    return f"{round(x, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero


def verdict(rows: list[dict[str, Any]], name: str, best_of: Callable) -> str:
    """What the intervals of row[name] carry: one algorithm apart from the others, by more than 0.001, or no winner."""
    best = best_of((row for row in rows if not np.isnan(row[name][1])), key=lambda row: row[name][0], default=None)
    unknown = {}  # {algorithm: why it is not compared}
    for row in rows:
        if np.isnan(row[name][1]):
            unknown[row["algorithm"]] = "one seed"
        elif row[name][1] == np.inf and row.get("budget", np.inf) < best[name][2] < np.inf:  # stopped too soon to tell
            unknown[row["algorithm"]] = f"never in its {show(row['budget'])} steps"
    rows = [row for row in rows if row["algorithm"] not in unknown]
    said = "nothing can be said; a comparison takes two algorithms with two seeds each."
    if len(rows) > 1:
        level = [row for row in rows if max(row[name][1], best[name][1]) <= min(row[name][2], best[name][2]) + 1e-3]
        alike = group(level, lambda row: show(row[name]))
        said = [f"{', '.join(row['algorithm'] for row in of)} {text}" for text, of in alike.items()][:3]
        more = sum(map(len, list(alike.values())[3:]))
        said = "; ".join(said) + f"; and {more} more" * (more > 0)
        # That n runs of one are all better than m of another, or all worse, has a chance of 2 / comb(n + m, n).
        orders = min(math.comb(best["n"] + row["n"], row["n"]) for row in rows if row is not best)
        if level[1:]:
            said = f"no clear winner: {said}."
        else:
            said += " is ahead." if orders > 40 else " leads, but with so few seeds it may be chance."
    return said + (f" Not compared: {', '.join(f'{x} ({why})' for x, why in unknown.items())}." if unknown else "")


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those known first, in their order there, then the others."""
    return sorted(names, key=lambda name, known=list(known): ([*known, name].index(name), name))


def glance(records: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Tables of the records of ranked runs, a row for each algorithm, with what they say: steps on each task, and cost.

    Tasks to which every run transferred have tables of their own.
    """
    plain = {record["task"] for record in records if np.isnan(record["target_steps_to_kept"])}
    kinds = group(records, lambda record: "steps_to_kept" if record["task"] in plain else "target_steps_to_kept")
    tables = []
    for column, said in ("steps_to_kept", GLANCE), ("target_steps_to_kept", TARGETS):
        algorithms, steps, costs = group(kinds.get(column, []), lambda record: record["algorithm"]), [], []
        tasks = in_order({record["task"] for record in kinds.get(column, [])}, map(task_of, TASKS.values()))
        for algorithm in in_order(algorithms, ROWS):
            of = group(algorithms[algorithm], lambda record: record["task"])
            row = {"algorithm": algorithm} | dict.fromkeys(tasks, "")
            for task, runs in of.items():
                kept = sum(np.float32(record["kept_score"]) >= KEPT for record in runs)
                row[task] = f"{show(np.median([record[column] for record in runs]))} ({kept}/{len(runs)})"
            steps.append(row)
            final, memory = np.float32([(x["eval/score"], x["system/peak_memory_mb"]) for x in algorithms[algorithm]]).T
            seconds = [np.median([record["system/wall_time_s"] for record in runs]) for runs in of.values()]
            row = {"algorithm": algorithm, "tasks": len(of), "runs solved": f"{sum(final >= SOLVED)} of {len(final)}"}
            ends = dict.fromkeys(f"{x:,.{int(x < 10)}f}".replace("nan", "–") for x in (min(seconds), max(seconds)))
            costs.append(row | {"seconds of a run": " to ".join(ends), "peak MB": float(memory.max())})
        tables += [(said, steps), (COST, costs)] if steps else []
    return tables


# ----------------------------------------------------------------------------- report

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")  # Okabe and Ito, for the colour-blind
INTERVAL = re.compile(r"(?<=\d) to (?=[\d,.-]+\)|never\))")  # is not broken at the end of a line
INK, CARD = "#010203", "#fefdfc"  # text and ground of a figure; the page puts its own in their place
STYLE = {"text.parse_math": False, "svg.hashsalt": "", "svg.fonttype": "none", "font.size": 11, "axes.facecolor": CARD}
STYLE |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 9)
STYLE |= dict.fromkeys(("axes.edgecolor", "text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
DOTS = "Dots: n seeds; bar: 95 % interval of their median."
# Figures of a task with a dot for each seed: column or tag, label and scale of the axis, what they show.
STRIPS = [("steps_to_kept", f"steps to a kept {KEPT}", "log", "Sample efficiency: steps after which the score stays.")]
STRIPS += [("eval/score", "final score", "linear", "Final performance: score of the last evaluation.")]
STRIPS += [("kept_score", "lowest late score", "linear", "Worst seeds: the lowest score in the last fifth of a run.")]
STRIPS += [("eval/length", "steps", "linear", "Steps to the goal: mean length of the last evaluation's episodes.")]
STRIPS += [("system/wall_time_s", "seconds", "log", "Cost: time of a run.")]
STRIPS += [("system/peak_memory_mb", "MB", "linear", "Cost: peak memory of a run.")]
STRIPS += [("transfer/area", "mean score on the target", "linear", "Transfer: area under the target's curve.")]
STRIPS += [("options/greedy_length", "steps", "log", "Options: how long one is followed.")]
# Figures from tags that end in a number: labels of the axes, what they show.
STUDIES = {"options/greedy_usage": ("option, the most used first", "share of steps", "Options: how much each is used.")}
STUDIES |= {"horizon/score": ("planning horizon", "score", "Horizon study: planning with the model after training.")}
BAND = "Interquartile mean over n seeds; band: its 95 % interval."
GLANCE = (
    f"Steps in the environment after which the score never was below {KEPT} again, median over seeds, those on sources "
    "and levels counted; in brackets how many of n seeds kept it over the last fifth of their run."
)
TARGETS = "The same on tasks to which every run transferred: steps on the target alone."
COST = "Over these tasks; seconds are the median of a run on the task where it is fastest to that where it is slowest."
WORDS = {
    "score": "0 is the random policy, 1 the exact optimum",
    "n": "seeds",
    "brackets": "95 % percentile bootstrap interval over seeds; of normal samples it holds the true value in 89 % of "
    "cases with 5 seeds, in 93 % with 10",
    "is ahead": "its interval overlaps no other, and so many seeds are ordered so by chance in less than 5 % of cases",
    "final": "interquartile mean (IQM) of the last score of the greedy policy",
    "spread": "standard deviation of the last score",
    "solved": f"share of seeds that end at {SOLVED} or more",
    "worst kept": "lowest score of the worst seed in the last fifth of its evaluations",
    "area": "mean score over the run, IQM",
    f"steps to {KEPT}": "after these it was never lower, median",
    "got there": "seeds that did",
    "budget": "steps of a run",
    "seconds, steps/s": "medians, by the clock on the wall: what else ran on the machine counts",
    "peak MB": "the highest",
    "optimality gap": "mean of what is missing to 1",
    "steps saved": "the median of scratch less its own; never: scratch did not get there, -∞: it did not",
    "ends better": "chance that a run ends above one of the other algorithm on the same task, half of it if as high",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison of algorithms</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 80rem; margin: auto; padding: 1rem; overflow-wrap: break-word }
p { max-width: 45rem } nav a { margin-right: 1rem; display: inline-block } a { color: LinkText }
figure { margin: 0 } svg { width: 100%; height: auto } div { overflow-x: auto; margin: 1rem 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem }
table { border-collapse: collapse } table, figcaption { font-size: 0.85rem; line-height: 1.4 } th { cursor: pointer }
th, td { border-bottom: 1px solid #8886; padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top }
td:first-child { position: sticky; left: 0; background: Canvas; white-space: nowrap }
.text td { white-space: normal; min-width: 7rem }
@media (max-width: 40rem) { .text thead, .text td:empty { display: none } .text td { display: block; border: 0 }
.text tr { display: block; border-bottom: 1px solid #8886 } .text td:first-child { font-weight: bold }
.text td + td::before { content: attr(title) ": " } }
</style>"""
SORT = """<script>for (const th of document.querySelectorAll("th")) th.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], sign = th.ariaSort === "ascending" ? -1 : 1
  const value = row => { const text = row.cells[th.cellIndex].textContent, x = parseFloat(text.replaceAll(",", ""))
    return text.startsWith("never") ? Infinity : text.startsWith("-∞") ? -Infinity : isNaN(x) ? text : x }
  const order = (x, y) => typeof x === typeof y ? (x > y) - (x < y) : typeof x === "string" ? 1 : -1
  body.append(...[...body.rows].sort((a, b) => sign * order(value(a), value(b))))
  for (const other of th.parentNode.cells) other.ariaSort = null
  th.ariaSort = sign > 0 ? "ascending" : "descending" })</script>"""


@contextlib.contextmanager
def drawing(path: Path, height: float, **labels: Any) -> Iterator[Any]:
    """Axes to draw on, in the page's style; in the end they are written to an SVG file."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure((5, height), layout="constrained", facecolor=CARD)
        yield (axes := figure.subplots(subplot_kw=labels))
        if axes.get_xscale() == "log":
            (low, high), of = axes.get_xlim(), matplotlib.ticker.LogLocator(subs=(1, 3))
            axes.xaxis.set(major_locator=of if high < 100 * low else matplotlib.ticker.LogLocator())
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.xaxis.set_minor_formatter("")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower left", frameon=False)
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))  # the same twice


def draw_lines(paths: Iterator[Path], lines: list[tuple], said: str, **labels: Any) -> list[tuple[Path, str]]:
    """Figures, each of at most seven of the lines with their bands, the others grey; with what they show.

    A line is the number of its colour, its name, x (T,), and value, low and high (3, T).
    """
    figures = []
    for part in np.array_split(range(len(lines)), -(-len(lines) // 7)):
        with drawing(path := next(paths), 3 + 0.25 * len(part), **labels) as axes:
            for i, (number, name, x, (value, low, high)) in enumerate(lines):
                if i in part:
                    colour, dashes = COLOURS[number % 6], ("-", "--", ":", "-.")[number // 6 % 4]
                    axes.plot(x, value, dashes, color=colour, label=name, marker="." if len(x) < 10 else "")
                    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
                else:
                    axes.plot(x, value, color="#8886", linewidth=0.8, zorder=1)
            if len(x) < 10 and "xscale" not in labels:
                axes.set_xticks(x)
            if labels["ylabel"] == "eval/score":
                axes.secondary_yaxis("right").set_yticks([0, 1], ["random", "optimal"])
                axes.hlines([0, 1], *axes.get_xlim(), color=INK, linewidth=0.8, linestyle=":")
        figures.append((path, said + " Grey: the other algorithms." * (len(part) < len(lines))))
    return figures


def draw_seeds(path: Path, rows: list[tuple[int, str, np.ndarray]], **labels: Any) -> Path:
    """Dots, and a bar, the interval of their median: number of the colour, name, seeds x (n,) of each; inf is never."""
    every = np.concatenate([x for _, _, x in rows])
    never = 3 * max(every[np.isfinite(every)], default=1)  # is drawn there
    with drawing(path, 0.9 + 0.3 * len(rows), **labels) as axes:
        for y, (number, _, x) in enumerate(rows):
            colour, at = COLOURS[number % 6], np.minimum(x, never)
            axes.plot(bootstrap_interval(median, at)[1:], (y, y), color=colour, linewidth=7, alpha=0.3)
            axes.plot(at, np.full(len(at), y), "o", color=colour, alpha=0.6, markeredgewidth=0)
        if np.isinf(every).any():
            axes.axvline(never, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate("never", (never, 1), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=9)
        if labels["xscale"] == "linear":
            axes.set_xlim(min(*every, 0) - max(*every, 1) / 20, 1.05 * max(*every, 1))
        axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return path


def curve(runs: list[Run], tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,), and of what was logged there the IQM over the runs and its interval (3, T)."""
    curves = [run.scalars[tag].T for run in runs]
    first, end = max(steps[0] for steps, _ in curves), max(steps[-1] for steps, _ in curves)
    grid = np.geomspace(max(first, 1), max(end, 1), 200 if first < end else 1)
    y = np.stack([np.interp(grid, steps, y) for steps, y in curves], axis=-1)  # (T, n)
    return grid, bootstrap_interval(iqm, y, draws=400)


def studied(runs: list[Run], tag: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Of tags TAG_1, TAG_5 ...: the numbers (T,), and of the last values there the IQM and its interval (3, T)."""
    x = sorted(int(name[len(tag) + 1 :]) for name in runs[0].scalars if re.fullmatch(rf"{tag}_\d{{1,4}}", name))
    y = np.stack([values(runs, f"{tag}_{i}") for i in x]) if x else None  # (T, n)
    if x and tag.startswith("options/"):  # which number an option has is chance
        x, y = range(1, len(x) + 1), -np.sort(-y, axis=0)
    return (np.array(x), bootstrap_interval(iqm, y)) if x else None


Section = tuple[list[tuple[str, Any]], dict[str, str]]  # blocks of the page, and {what counts: advice}


def report_task(algorithms: dict[str, list[Run]], numbers: dict[str, int], paths: Iterator[Path]) -> tuple:
    """Section of a task, and the rows of its table."""
    runs = list(itertools.chain(*algorithms.values()))
    measure = "score" if all("eval/score" in run.scalars for run in runs) else "return"
    rows, task = [summarise(members, measure) for members in algorithms.values()], runs[0].task
    rows.sort(key=lambda row: (-row[f"final {measure}"][0], row.get(f"steps to {KEPT}", [0])[0], row["algorithm"]))
    blocks, advice = [("h2", task)], {"task": task}
    if measure == "score":
        kept = [row for row in rows if row["solved"] == 1 and row["worst kept"] >= KEPT]
        names = [row["algorithm"] for row in kept]
        others = [name for name in (row["algorithm"] for row in rows) if name not in names]
        advice[f"fewest steps to a kept {KEPT}"] = verdict(rows, f"steps to {KEPT}", min)
        advice["ends best"] = verdict(rows, "final score", max)
        few = f"all but {', '.join(others)}" if len(others) < len(names) else ", ".join(names) or "none"
        advice["solve and keep it in every seed"] = few if others else "all"
        if len(kept) > 1:
            advice["least time of these"] = verdict(kept, "seconds", min)
    else:
        advice["ends best"] = verdict(rows, "final return", max)
        blocks += [("p", "The optimum of this task is not known: the return stands in for the score.")]
    if few := group((row for row in rows if row["n"] < 10), lambda row: row["n"]):
        of = "; ".join(f"{n} of {', '.join(row['algorithm'] for row in members)}" for n, members in few.items())
        blocks += [("p", f"Warning: fewer than 10 seeds, so rough intervals: {of}.")]
    blocks += [("table", rows)]
    if moved := {name: of for name, of in algorithms.items() if np.isfinite(values(of, "transfer/area")).all()}:
        gains = summarise_transfer(moved)
        blocks += [("p", "What transfer gains, on the steps on the target alone:"), ("table", gains)]
        if len(gains) > 1:
            advice["transfers best: area under the target's curve"] = verdict(gains, "area", max)
        if len(gains) == len(rows):  # what the sources cost is paid before
            advice[f"fewest steps to a kept {KEPT}"] = verdict(gains, f"target steps to {KEPT}", min)
    best_first = [(row["algorithm"], algorithms[row["algorithm"]]) for row in rows]
    of = [(numbers[name], f"{name[:50]} (n = {len(members)})", members) for name, members in best_first]
    lines = [(number, name, *curve(members, f"eval/{measure}")) for number, name, members in of]
    labels = {"xlabel": "environment steps", "xscale": "log", "ylabel": f"eval/{measure}"}  # budgets differ by tens
    figures = draw_lines(paths, lines, f"Learning curves of the greedy policy. {BAND}", **labels)
    for name, xlabel, xscale, said in STRIPS if measure == "score" else STRIPS[1:]:
        dots = [(*label, values(members, name)) for *label, members in of]
        if dots := [(*label, x) for *label, x in dots if not np.isnan(x).any()]:
            figures.append((draw_seeds(next(paths), dots, xlabel=xlabel, xscale=xscale), f"{said} {DOTS}"))
    for tag, (xlabel, ylabel, said) in STUDIES.items():
        if lines := [(number, name, *study) for number, name, members in of if (study := studied(members, tag))]:
            figures += draw_lines(paths, lines, f"{said} {BAND}", xlabel=xlabel, ylabel=ylabel)
    return ([*blocks, ("figures", figures)], advice if len(rows) > 1 else {}), rows


def report_tasks(name: str, tasks: dict[str, Any], numbers: dict[str, int], paths: Iterator[Path]) -> Section:
    """Section of tasks, {task: {algorithm: runs}}, together; nothing where no two algorithms have them all."""
    scores = scores_together(list(tasks.values())) if len(tasks) > 1 else {}
    if len(scores) < 2:
        return [], {}
    rows, thresholds = summarise_tasks(name, scores), np.linspace(0, 1, 101)
    said = f"These are {'; '.join(tasks)}. n: seeds that an algorithm has on each of them."
    if absent := sorted({x for of in tasks.values() for x in of} - set(scores)):
        said += f" Not on all of them, and so left out here: {', '.join(absent)}."
    blocks, lines = [("h2", f"Together: {name}"), ("p", said), ("table", rows)], []
    for algorithm, n in ((row["algorithm"], row["n"]) for row in rows):
        profile = bootstrap_interval(share_above(thresholds), *scores[algorithm], draws=400)
        lines.append((numbers[algorithm], f"{algorithm[:50]} (n = {n})", thresholds, profile))
    said = "Performance profile over n seeds on each of these tasks; band: its 95 % interval."
    figures = draw_lines(paths, lines, said, xlabel="score", ylabel="share of runs that end above it")
    return [*blocks, ("figures", figures)], {"task": f"{name}, together", "ends best": verdict(rows, "IQM", max)}


def render(blocks: list[tuple[str, Any]]) -> dict[str, str]:
    """Page and Markdown of blocks: h1, h2 or p, text; table, rows; figures, [(SVG file, caption)]. It escapes texts."""
    page, markdown, titles = [PAGE], [], [html.escape(content) for kind, content in blocks if kind == "h2"]
    links = (f"<a href=#section-{i}>{title}</a>" for i, title in enumerate(titles))
    anchors = (f" id=section-{i}" for i in itertools.count())
    for kind, content in blocks:
        if kind == "table":
            head = [name for name in content[0] if name != "task" or "n" not in content[0]]
            cells = [head, *([show(row.get(name, "")) for name in head] for row in content)]
            cells = [[html.escape(text) for text in row] for row in cells]
            kind = " class=text" * (max(map(len, itertools.chain(*cells))) > 50)  # for narrow windows
            page.append(f"<div><table{kind}><thead><tr>{''.join(f'<th>{cell}</th>' for cell in cells[0])}</tr></thead>")
            for row in cells[1:]:
                line = "".join(f'<td title="{name}">{cell}</td>' for name, cell in zip(cells[0], row, strict=True))
                page.append(f"<tr>{INTERVAL.sub('&nbsp;to&nbsp;', line)}</tr>")
            page.append("</table></div>")
            lines = [f"| {' | '.join(map(plain, row))} |" for row in cells]
            markdown.append("\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]))
        elif kind == "figures":
            page.append("<div class=figures>")
            for path, said in content:
                svg = path.read_text(encoding="utf-8").replace(INK, "currentColor").replace(CARD, "none")
                page.append(f"<figure>{svg[svg.index('<svg') :]}<figcaption>{said}</figcaption></figure>")
                markdown.append(f"![{said}]({path.name})")
            page.append("</div>")
        else:
            page.append(f"<{kind}{next(anchors) if kind == 'h2' else ''}>{html.escape(content)}</{kind}>")
            page += [f"<nav>{' '.join(links)}</nav>"] if kind == "h1" else []
            markdown.append({"h1": "# ", "h2": "## ", "p": ""}[kind] + plain(html.escape(content)))
    return {"index.html": "\n".join([*page, SORT]), "report.md": "\n\n".join(markdown) + "\n"}


def plain(text: str) -> str:
    """`text` with what Markdown would take for a command escaped."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def write_report(args: Args, runs: list[Run], chosen: list[Run], failures: dict[str, str]) -> list[dict[str, Any]]:
    """Write the report's files; returns the rows of the tables of its tasks."""
    args.report_dir.mkdir(parents=True, exist_ok=True)
    for old in args.report_dir.glob("figure-*.svg"):
        old.unlink()
    paths = (args.report_dir / f"figure-{number}.svg" for number in itertools.count())
    numbers = {name: number for number, name in enumerate(in_order({run.algorithm for run in chosen}, ROWS))}
    tasks = {task: group(of, lambda run: run.algorithm) for task, of in group(chosen, lambda run: run.task).items()}
    apart = [report_task(tasks[x], numbers, paths) for x in in_order(tasks, map(task_of, TASKS.values()))]
    summary = [row for _, rows in apart for row in rows]
    scored = {row["task"]: tasks[row["task"]] for row in summary if "solved" in row}
    families = {name: set(map(task_of, of.values())) for name, of in FAMILIES.items() if name != "other"}
    groups = {name: [task for task in scored if task in of] for name, of in families.items()}
    most = [task for task, algorithms in scored.items() if 2 * len(algorithms) >= len(numbers)]
    groups = groups if most in groups.values() else {"most tasks": most} | groups
    together = [report_tasks(name, {task: scored[task] for task in of}, numbers, paths) for name, of in groups.items()]
    sections = [*together, *(section for section, _ in apart)]

    blocks = [("h1", "Comparison of algorithms")]
    blocks += [("p", f"{len(chosen)} of {len(runs)} runs in {printable(args.log_dir)} are ranked, the rest is listed.")]
    if advice := [advice for _, advice in (*(section for section, _ in apart), *together) if advice]:
        head = dict.fromkeys(itertools.chain(*advice), "")
        blocks += [("h2", "Which to choose"), ("table", [head | said for said in advice])]
    if scored:
        blocks += [("h2", "At a glance")]
        for said, rows in glance([run.record() for run in chosen if run.task in scored]):
            blocks += [("p", said), ("table", rows)]
    blocks += [block for found, _ in sections for block in found]
    if failures:
        rows = [{"run": name, "what happened": what} for name, what in failures.items()]
        blocks += [("h2", "Runs that failed"), ("table", rows)]
    words = [{"word": word, "means": meaning} for word, meaning in WORDS.items()]
    blocks += [("h2", "What the words mean"), ("table", words)]
    records = [run.record() for run in runs]
    if left_out := [dict(list(record.items())[:5]) for record in records if record["state"] != "complete"]:
        blocks += [("h2", "Runs left out"), ("table", left_out)]
    data = json.dumps({"rows": summary, "runs": records, "failures": failures})
    data = json.loads(data, parse_constant=lambda _: None)  # JSON has no NaN and no inf
    for name, text in (render(blocks) | {"summary.json": json.dumps(data, indent=1)}).items():
        (args.report_dir / name).write_text(text, encoding="utf-8")
    # A spreadsheet would take a text that begins with = for a formula.
    cells = [[f"'{x}" if isinstance(x, str) and x[:1] in set("=+-@") else x for x in row.values()] for row in records]
    with open(args.report_dir / "results.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(Run("", {}).record()), *cells])
    return summary


# ----------------------------------------------------------------------------- training

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def suits(row: str, task: str) -> bool:
    """The variants of transfer.py run on tasks of its family alone, the others elsewhere; UVFA sees goals, not maps."""
    suited = row.startswith("transfer-") == (task in FAMILIES["transfer"])
    return suited and (row, task) != ("transfer-uvfa", "map-changed")


def task_of(flags: str) -> str:
    """How the logs name the task of these flags."""
    return task_label({name.replace("-", "_"): x for name, x in re.findall(r"--(\S+) (\S+)", flags)})


def missing(args: Args, runs: list[Run]) -> dict[str, list[str]]:
    """{name of the run: script and flags} of what the suite asks and no sound run was, by the arguments in the logs."""
    (tasks, rows, n), scripts = SUITES[args.suite], {path.stem for path in HERE.glob("*.py")}
    rows, jobs = args.algorithms or [row for row in rows if row.split("-")[0] in scripts], {}
    sound = [run for run in runs if run.state in ("complete", "superseded", "other budget")]
    present = {(run.algorithm, run.task, run.args["seed"], run.args["total_timesteps"]) for run in sound}
    present |= {(*key[:3], None) for key in present}
    for seed, task, row in itertools.product(range(1, 1 + (args.seeds or n)), args.tasks or tasks, rows):
        steps = STEPS.get(script := row.split("-")[0], (None, None))[args.suite == "full"]
        if row == "transfer-scratch":
            steps //= 2  # as many as the others have on the target
        label = task_of(TASKS[task])
        if suits(row, task) and (row, label, seed, steps) not in present:
            command = [f"{script}.py", *TASKS[task].split(), *ROWS.get(row, "").split(), "--seed", str(seed)]
            budget = ["--total-timesteps", str(steps)] if steps else []
            jobs[f"{row}__{task}__{seed}"] = [*command, *budget, "--exp-name", row]
    return jobs


def run_here(
    name: str, command: list[str], log_dir: Path, children: list[subprocess.Popen]
) -> tuple[int, dict[str, bytes]]:
    """Run a script of this folder in a process of its own; returns its exit code, and no file that is not in place."""
    command = [sys.executable, str(HERE / command[0]), *command[1:], "--log-dir", str(log_dir)]
    # In a group of its own: Ctrl-C reaches a child once, as the SIGTERM below, and it closes its log.
    options = {"env": os.environ | ONE_THREAD, "process_group": 0, "stdin": DEVNULL, "stderr": STDOUT}
    with open(log_dir / "output" / f"{name}.txt", "wb") as out:
        children.append(child := subprocess.Popen(command, stdout=out, **options))
    return child.wait(), {}


def run_there(name: str, command: list[str], scripts: dict[str, bytes]) -> tuple[int, dict[str, bytes]]:
    """On a worker, in a folder of its own with the scripts: exit code, and the files for the folder of the logs."""
    with tempfile.TemporaryDirectory() as folder:
        for script, text in scripts.items():
            (Path(folder) / script).write_bytes(text)
        command, options = [sys.executable, *command, "--log-dir", "."], {"env": os.environ | ONE_THREAD, "cwd": folder}
        ended = subprocess.run(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, check=False, **options)
        files = (path for path in Path(folder).glob("*__*/*") if path.is_file())
        # In a folder for each job: two workers may name theirs alike.
        files = {f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
        return ended.returncode, files | {f"output/{name}.txt": ended.stdout}


def train(jobs: dict[str, list[str]], args: Args) -> dict[str, str]:
    """Make the runs, `args.jobs` at once or on the cluster; {name: what happened} of those that failed."""
    (args.log_dir / "output").mkdir(parents=True, exist_ok=True)
    failures, children, executor = {}, [], ThreadPoolExecutor(args.jobs)
    if args.scheduler:
        try:
            import distributed  # here: only a cluster needs it

            executor = distributed.Client(args.scheduler).get_executor(pure=False)
        except (ImportError, OSError) as error:
            said = "needs Dask, pip install distributed" if isinstance(error, ImportError) else printable(error)
            raise SystemExit(f"--scheduler {args.scheduler}: {said}") from None
    with tqdm(total=len(jobs), unit="run", miniters=0, mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
        try:
            futures = {}
            for name, command in jobs.items():
                work = (run_here, name, command, args.log_dir, children)
                if args.scheduler:
                    scripts = {file: (HERE / file).read_bytes() for file in (command[0], "gridworld.py")}
                    work = (run_there, name, command, scripts)
                futures[executor.submit(*work)] = name
            for future in as_completed(futures):
                name, code, files = futures[future], 0, {}
                try:
                    code, files = future.result()
                except Exception as error:  # of a cluster: it lost its workers, or their packages differ
                    failures[name] = printable(f"{type(error).__name__}: {error}")
                for file, content in files.items():
                    (args.log_dir / file).parent.mkdir(parents=True, exist_ok=True)
                    (args.log_dir / file).write_bytes(content)
                if code:
                    output = (args.log_dir / "output" / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
                    lines = [line for line in re.findall(r"\w.*\w", output) if "full helptext" not in line]
                    failures[name] = f"exit code {code}: {printable(lines[-1] if lines else 'no output')}"
                running = sum(future.running() for future in futures)  # not known of a cluster
                bar.set_postfix_str(f"{running} running, " * (running > 0) + f"{len(failures)} failed", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            executor.shutdown(wait=False)
            for child in children:
                child.terminate()
                child.wait()
            raise SystemExit("interrupted; the next --train takes up where this one stopped") from None
    return failures


def main(args: Args) -> int:
    """Train if asked to, read, compare, write; returns the exit status: 1 if a run failed, 2 if there is none."""
    runs, failures = read_runs(args.log_dir), {}
    chosen = select(runs)
    if args.train and (jobs := missing(args, runs)):
        failures = train(jobs, args)
        chosen = select(runs := read_runs(args.log_dir))
        said = "it ended without a complete, sound log of the usual settings"
        failures = dict.fromkeys(missing(args, runs), said) | failures
    if not runs and not failures:
        print(f"--log-dir {args.log_dir} holds no run; python evaluate.py --train makes some", file=sys.stderr)
        return 2
    for row in write_report(args, runs, chosen, failures):
        said = (f"{name} {show(x)}" for name, x in row.items() if name.startswith(("n", "final", "solved", "steps to")))
        print(f"{row['task']:<18} {row['algorithm']:<15}", *said, sep="  ")
    for name, what in failures.items():
        print(f"failed: {name}, {what}", file=sys.stderr)
    print(f"{len(chosen)} runs ranked, {len(runs) - len(chosen)} left out; report in {args.report_dir / 'index.html'}")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(tyro.cli(Args)))
