"""evaluate.py: statistics worked out by hand, logs in every state, hostile names, and training what is missing."""

import csv
import dataclasses
import functools
import html
import importlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from conftest import SCRIPTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

import dqn
import evaluate
import gridworld

STEPS = (100, 200, 300, 400, 500)
SOUND = (0.1, 0.5, 0.96, 0.97, 1.0)


def write_run(folder, score=SOUND, steps=STEPS, completed=True, about=True, losses=(0.5,), known=True, **args):
    """A log as Run of dqn.py writes it; `args` replace arguments. Returns the folder."""
    writer = SummaryWriter(str(folder))
    defaults = {"env_id": "GridWorld-v0", "grid_size": 8, "layout": None, "slip": None, "random_start": False}
    defaults |= {"exp_name": "dqn", "seed": 1, "total_timesteps": 500, "learning_rate": 0.001}
    if about:
        text = {"args": defaults | args, "versions": {}, "optimal_return": 8.7, "random_return": np.nan}
        writer.add_text("run/about", f"```json\n{json.dumps(text, default=str, indent=1)}\n```")
    for loss in losses:
        writer.add_scalar("losses/td_loss", loss, 50)
    for i, (step, value) in enumerate(zip(steps, score, strict=True)):
        writer.add_scalar("eval/return", 10 * value, step)
        if known:
            writer.add_scalar("eval/score", value, step)
        writer.add_scalar("charts/SPS", 1000 + i, step)
        writer.add_scalar("system/wall_time_s", step / 100, step)
        writer.add_scalar("system/peak_memory_mb", 300 + i, step)
    if completed:
        writer.add_scalar("run/completed", steps[-1], steps[-1])
    writer.close()
    return Path(folder)


def event_file(folder):
    return next(folder.glob("*tfevents*"))


def read(folder):
    return evaluate.read_run(folder, folder.name)


def report(log_dir, tmp_path, **flags):
    """Exit status of evaluate.py on `log_dir`, and the texts of its page, Markdown and JSON."""
    args = evaluate.Args(log_dir=log_dir, report_dir=tmp_path / "report", **flags)
    status = evaluate.main(args)
    files = ("index.html", "report.md", "summary.json")
    return status, *((args.report_dir / name).read_text(encoding="utf-8") for name in files)


# ----------------------------------------------------------------------------- statistics


def test_kept_score_is_the_lowest_of_the_last_fifth():
    assert evaluate.kept_score(np.array([0, 0, 0, 0, 0, 0, 0, 0, 0.7, 0.9])) == 0.7
    assert evaluate.kept_score(np.array([1, 1, 1, 0.3])) == 0.3  # at least one evaluation
    assert np.isnan(evaluate.kept_score(np.empty(0)))


@pytest.mark.parametrize(
    ("score", "steps"),
    [
        ([0.96, 0.5, 0.96, 1, 1], 300),  # the first hit was not kept
        ([0.96, 0.95, 0.96, 1, 1], 100),
        ([1, 1, 1, 1, 0.94], np.inf),
        ([1, 1, 1, np.nan, 1], 500),
        ([0, 0, 0, 0, 1], 500),
    ],
)
def test_steps_to_kept(score, steps):
    assert evaluate.steps_to_kept(np.array(STEPS), np.array(score)) == steps
    assert evaluate.steps_to_kept(np.array(STEPS), np.array(score, np.float32)) == steps  # 0.95 is not below 0.95


def test_steps_to_kept_of_no_evaluation():
    assert evaluate.steps_to_kept(np.empty(0), np.empty(0)) == np.inf


def test_score_area():
    assert evaluate.score_area(np.array([100, 200, 400]), np.array([0, 1, 0.5])) == pytest.approx((50 + 150) / 300)
    assert np.isnan(evaluate.score_area(np.array([100]), np.array([1.0])))


def test_iqm_drops_a_quarter_at_each_end():
    def iqm(*samples):
        return evaluate.iqm(*(np.array(x, float) for x in samples)).tolist()

    assert iqm([100, 0, 1, 2, 3, 4, 5, -50]) == 2.5  # 1 2 3 4 are left
    assert iqm([1, 2, 3, 4, 100]) == 3.0  # floor(5 / 4) = 1 at each end
    assert iqm([1.0, 2.0, 6.0]) == 3.0
    assert iqm([[4, 0, 2, 9], [1, 1, 1, 7]]) == [3, 1]
    assert iqm([100, 0, 1], [2, 3], [4, 5, -50]) == 2.5  # tasks are pooled


def test_improvement_counts_pairs_task_by_task():
    x, y, z = np.array([0.5, 0.9]), np.array([0.5, 0.6, 0.1]), np.array([1.0, 0.9999999])
    assert evaluate.improvement(x, y) == pytest.approx((4 + 1 / 2) / 6)
    assert evaluate.improvement(z[:1], z[1:]) == 0.5  # rounding is no difference
    assert evaluate.improvement(x, z, y, z) == pytest.approx((0.75 + 0.5) / 2)
    assert evaluate.improvement(y, z, x, z) == pytest.approx((0.25 + 0.5) / 2)


# Scores of 10 runs on 4 tasks of two algorithms, and what rliable 1.2.0 makes of them (with arch 7.2.0, pandas 2.3.3
# and numpy 2.2.6, with which it imports), 50 000 bootstrap samples.
RUN, TASK = np.mgrid[:10, :4]
X, Y = np.round(0.7 + 0.35 * np.sin(2 * RUN + 5 * TASK), 2), np.round(0.6 + 0.45 * np.sin(3 * RUN + TASK), 2)
THRESHOLDS = np.array([0, 0.25, 0.5, 0.75, 0.95, 1.0])


@pytest.mark.parametrize(
    ("statistic", "samples", "value", "low", "high"),
    [
        (evaluate.iqm, (X,), 0.6845, 0.5655, 0.8105),
        (evaluate.iqm, (Y,), 0.6145, 0.4605, 0.7685),
        (evaluate.iqm, (X[:7],), 0.685, None, None),
        (evaluate.optimality_gap, (X,), 0.31075, 0.23675, 0.38475),
        (evaluate.optimality_gap, (Y,), 0.395, 0.299, 0.49025),
        (evaluate.optimality_gap, (X[:7],), 0.3135714285714286, None, None),
        (evaluate.improvement, (X, Y), 0.59375, 0.4575, 0.72375),
        (evaluate.improvement, (Y, X), 0.40625, 1 - 0.72375, 1 - 0.4575),
        (evaluate.improvement, (X[:7], Y), 0.5910714285714286, None, None),
        (evaluate.share_above(THRESHOLDS), (X,), [1, 1, 0.725, 0.4, 0.25, 0.175],
         [1, 1, 0.575, 0.25, 0.125, 0.075], [1, 1, 0.85, 0.55, 0.375, 0.3]),
    ],
)  # fmt: skip
def test_statistics_are_those_of_rliable(statistic, samples, value, low, high):
    tasks = [column for scores in samples for column in scores.T]
    np.testing.assert_allclose(statistic(*tasks), value, atol=1e-6)
    if low is not None:
        ours = evaluate.bootstrap_interval(statistic, *tasks, draws=20_000)
        np.testing.assert_allclose(ours, [np.array(value), np.array(low), np.array(high)], atol=0.006)


def test_bootstrap_interval():
    def interval(x, statistic=evaluate.iqm, **options):
        return evaluate.bootstrap_interval(statistic, np.array(x, float), **options)

    def mean(*samples):
        return np.concatenate(samples, axis=-1).mean(axis=-1)

    x = np.random.default_rng(1).normal(size=100)
    value, low, high = interval(x, mean)
    assert value == x.mean()
    # The mean of 100 has the standard error s / 10; half the interval is 1.96 of these.
    assert (value - low, high - value) == pytest.approx((0.196 * x.std(), 0.196 * x.std()), rel=0.1)
    np.testing.assert_array_equal(interval(x), interval(x))
    assert interval([0, 1], mean).tolist() == [0.5, 0, 1]  # a quarter of all samples are (0, 0), a quarter (1, 1)
    assert interval([2, 2, 2]).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(interval([3]), [3, np.nan, np.nan])
    assert interval([1, 2, np.inf], evaluate.median).tolist() == [2, 1, np.inf]
    rows = interval([[0, 1, 2, 3], [5, 5, 5, 5]])
    assert rows.shape == (3, 2)
    assert rows[:, 1].tolist() == [5, 5, 5]
    # Each task is drawn from by itself: with one pool for both the interval would be wide.
    tasks = np.array([0, 0, 0, 0.0]), np.array([1, 1, 1, 1.0])
    assert evaluate.bootstrap_interval(mean, *tasks).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.paper
@pytest.mark.parametrize(("n", "normal", "skewed"), [(5, 0.895, 0.89), (10, 0.93, 0.925)])
def test_coverage_of_the_intervals(n, normal, skewed):
    """How often the 95 % interval of the IQM holds the true one: less often than it says when seeds are few."""
    rng, count = np.random.default_rng(0), 10_000
    truth = ((np.log(4 / 3) + 1) * 0.75 - (np.log(4) + 1) * 0.25) / 0.5  # between the quartiles of an exponential
    for samples, true, expected in (
        (rng.normal(size=(count, n)), 0.0, normal),
        (rng.exponential(size=(count, n)), truth, skewed),
    ):
        _, low, high = evaluate.bootstrap_interval(evaluate.iqm, samples, draws=500)
        share = np.mean((low <= true) & (true <= high))
        print(f"n = {n}: {share:.3f}")
        assert share == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.9, 0.8, 1.0), (0.7, 0.6, 0.79)], "a 0.900 (0.800 to 1.000) is ahead."),
        ([(0.9, 0.8, 1.0), (0.7, 0.6, 0.8)], "no clear winner"),
        ([(1.0, 1.0, 1.0), (0.9999999, 0.9999999, 0.9999999)], "no clear winner"),  # rounding is no difference
        ([(0.7, 0.6, 0.8), (0.9, 0.85, 1.0), (0.9, 0.7, 1.0)], "no clear winner: b 0.900 (0.850 to 1.000); c"),
    ],
)
def test_verdict_follows_the_intervals(intervals, said):
    rows = [{"algorithm": name, "n": 5, "x": list(x)} for name, x in zip("abc", intervals, strict=False)]
    assert said in evaluate.verdict(rows, "x", max)


def row(name, n, *x, **more):
    return {"algorithm": name, "n": n, "x": list(x)} | more


def test_verdict_on_steps_and_on_single_seeds():
    never = row("b", 4, np.inf, np.inf, np.inf)
    assert evaluate.verdict([row("a", 4, 200, 100, 300), never], "x", min).startswith("a 200 (100 to 300) is ahead")
    assert "no clear winner" in evaluate.verdict([row("a", 4, 200, 100, np.inf), never], "x", min)
    assert "no clear winner" in evaluate.verdict([row("a", 4, np.inf, np.inf, np.inf), never], "x", min)
    one = row("c", 2, 50, np.nan, np.nan)  # of two tasks with a seed each
    assert "nothing can be said" in evaluate.verdict([never, one], "x", min)
    said = evaluate.verdict([row("a", 4, 200, 100, 300), never, one], "x", min)
    assert said == "a 200 (100 to 300) is ahead. Not compared: c (one seed)."


def test_so_few_seeds_that_their_order_may_be_chance_have_no_winner():
    for n, m, ahead in (3, 3, False), (4, 4, True), (2, 8, True), (2, 7, False):
        assert 2 / math.comb(n + m, n) < 0.05 or not ahead
        said = evaluate.verdict([row("a", n, 200, 100, 300), row("b", m, 500, 400, 600)], "x", min)
        assert ("is ahead" in said) == ahead, (n, m)
        assert ("may be chance" in said) != ahead


def test_a_run_that_was_stopped_sooner_than_the_best_got_there_is_not_behind_it():
    best, short = row("a", 10, 2000, 1000, 3000, budget=9000), row("b", 10, *[np.inf] * 3, budget=2500)
    said = evaluate.verdict([best, row("c", 10, 5000, 4000, 6000, budget=9000), short], "x", min)
    assert said == "a 2,000 (1,000 to 3,000) is ahead. Not compared: b (never in its 2,500 steps)."
    assert "is ahead." in evaluate.verdict([best, short | {"budget": 3000}], "x", min)
    assert evaluate.verdict([best, short], "x", min).startswith("nothing can be said")
    perhaps = row("a", 10, 2000, 1000, np.inf, budget=9000)
    assert "no clear winner: a 2,000 (1,000 to never); b never." in evaluate.verdict([perhaps, short], "x", min)


def test_alike_intervals_are_said_once():
    rows = [row("a", 10, 1.0, 1.0, 1.0), row("b", 10, 0.9, 0.8, 1.0), row("c", 10, 1.0, 1.0, 1.0)]
    said = "no clear winner: a, c 1.000 (1.000 to 1.000); b 0.900 (0.800 to 1.000)."
    assert evaluate.verdict(rows, "x", max) == said


def test_ratio_of_means_and_its_interval():
    rng = np.random.default_rng(0)
    scratch, better = rng.normal(0.6, 0.1, 10), rng.normal(0.9, 0.1, 10)
    ratio, low, high = evaluate.interval(evaluate.ratio_of_means, better, scratch)
    assert ratio == pytest.approx(better.mean() / scratch.mean())
    error = ratio * np.sqrt((better.std() / better.mean()) ** 2 / 10 + (scratch.std() / scratch.mean()) ** 2 / 10)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)  # the delta method
    assert low < ratio < high


def test_a_share_of_nothing_is_not_a_number():
    x, y = np.array([0.5, 0.7]), np.array([0.4, -0.1])
    assert evaluate.ratio_of_means(x, y) == pytest.approx(4)
    assert np.isnan(evaluate.ratio_of_means(x, -y))


def runs_of(algorithm, scores, task="empty 8", **args):
    """Runs of {seed: final score} as they are read."""
    return [
        evaluate.Run(f"x__{seed}", {"eval/score": np.array([[500, score]])},
                     {"seed": seed, "total_timesteps": 500} | args, algorithm, task)
        for seed, score in scores.items()
    ]  # fmt: skip


def test_tasks_weigh_the_same_whatever_seeds_are_missing():
    easy = {"a": runs_of("a", dict.fromkeys(range(1, 9), 1.0)), "b": runs_of("b", {1: 0.5}), "c": runs_of("c", {1: 1})}
    hard = {"a": runs_of("a", {2: 0.0, 3: 0.0, 9: 0.4}), "b": runs_of("b", {2: 0.5})}
    scores = evaluate.scores_together([easy, hard])
    assert [x.tolist() for x in scores.pop("a")] == [[1, 1], [0, 0]]  # seeds 2 and 3
    assert scores == {}  # b has no seed on both, c no run on one
    row, other = evaluate.summarise_tasks("both", {"a": [np.array([1, 1]), np.array([0, 0])], "b": [np.ones(2)] * 2})[
        ::-1
    ]
    assert (row["algorithm"], row["n"], row["IQM"][0]) == ("a", 2, 0.5)
    assert other["ends better than a"][0] == 0.75


def test_the_usual_settings_are_those_of_most_seeds_then_the_newer_ones():
    def chosen(*variants):
        runs = [
            evaluate.Run(f"x__{at}", {}, {"seed": seed, "total_timesteps": 5, "lr": lr}) for lr, seed, at in variants
        ]
        return [(run.args["lr"], run.args["seed"]) for run in evaluate.select(runs)]

    assert chosen((1, 1, 10), (1, 1, 11), (1, 1, 12), (2, 1, 10), (2, 2, 10)) == [(2, 1), (2, 2)]
    assert chosen((1, 1, 10), (1, 2, 11), (2, 1, 20), (2, 2, 21)) == [(2, 1), (2, 2)]
    assert chosen((2, 1, 20), (2, 2, 21), (1, 1, 10), (1, 2, 11)) == [(2, 1), (2, 2)]


def test_kept_is_what_the_last_fifth_says_and_what_a_log_lacks_is_a_dash_at_a_glance():
    runs = runs_of("a", {1: 1.0, 2: 0.0})
    late = [(100 * (i + 1), float(i == 9)) for i in range(10)]  # there at the last of ten evaluations
    runs[0].scalars["eval/score"] = np.array(late)
    (_, steps), (_, costs) = evaluate.glance([run.record() for run in (*runs, *runs_of("b", {1: 1.0, 2: 0.0}))])
    assert [row["empty 8"] for row in steps] == ["never (0/2)", "never (1/2)"]
    assert costs[0] | {"peak MB": 0} == {
        "algorithm": "a",
        "tasks": 1,
        "runs solved": "1 of 2",
        "seconds of a run": "–",
        "peak MB": 0,
    }
    assert evaluate.show(costs[0]["peak MB"]) == "–"


def test_numbers_are_shown_with_as_many_digits_as_they_need():
    shown = {
        0.12345: "0.123",
        -0.0003: "0.000",
        12.34: "12.3",
        12_345.6: "12,346",
        7: "7",
        np.inf: "never",
        -np.inf: "-∞",
        np.nan: "–",
    }
    assert {x: evaluate.show(x) for x in shown} == shown


def test_the_spread_is_that_of_a_sample():
    assert evaluate.summarise(runs_of("a", {1: 0.5, 2: 0.7}), "score")["spread"] == pytest.approx(0.02**0.5)
    assert np.isnan(evaluate.summarise(runs_of("a", {1: 0.5}), "score")["spread"])  # of one seed nothing is known


# ----------------------------------------------------------------------------- reading


def test_a_sound_run(tmp_path):
    (write_run(tmp_path / "run", seed=7) / "a folder of tfevents").mkdir()
    run = read(tmp_path / "run")
    assert (run.state, run.reason, run.algorithm, run.task) == ("complete", "", "dqn", "empty 8")
    record = run.record()
    assert (record["seed"], record["steps"], record["steps_to_kept"]) == (7, 500, 300)
    assert (record["eval/score"], record["kept_score"], record["eval/return"]) == (1.0, 1.0, 10.0)
    assert (record["system/wall_time_s"], record["charts/SPS"]) == (5.0, 1004.0)
    assert record["system/peak_memory_mb"] == 304.0


def test_a_run_of_dqn_is_read(tmp_path):
    dqn.train(dqn.Args(grid_size=3, total_timesteps=400, eval_every=200, learning_starts=100, log_dir=tmp_path, seed=3))
    (run,) = evaluate.read_runs(tmp_path)
    assert (run.state, run.reason, run.algorithm, run.task) == ("complete", "", "dqn", "empty 3")
    assert (run.args["seed"], run.record()["steps"]) == (3, 400)
    assert all(np.isfinite(x) for name, x in run.record().items() if "/" in name)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path):
    path = event_file(write_run(tmp_path / "run", score=SOUND[:2], steps=STEPS[:2]))
    sound = path.read_bytes()
    for offset in range(0, len(sound), 3):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 4]) + sound[offset + 1 :])
        run = read(path.parent)
        assert run.state == "damaged", offset
        where = int(re.search(r"damaged at byte (\d+)", run.reason)[1])
        assert where <= offset < where + 2_000
        assert path.name in run.reason


def test_a_cut_file_is_partial_and_keeps_what_was_read(tmp_path):
    path = event_file(write_run(tmp_path / "run"))
    sound = path.read_bytes()
    whole = read(path.parent).scalars
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        run = read(path.parent)
        assert run.state in ("partial", "empty")
        for tag, scalars in run.scalars.items():
            np.testing.assert_array_equal(scalars, whole[tag][: len(scalars)])
    path.write_bytes(sound[:-1])
    run = read(path.parent)
    assert re.search(r"ends inside the record at byte \d+; reached step 500 of 500, without run/completed", run.reason)
    assert run.record()["eval/score"] == 1.0


@pytest.mark.parametrize("length", [4, 5, 63, 1023, 1024, 1025, 2047, 2048, 2049, 5000])
def test_checksums_are_those_of_tensorboard(length):
    rows = np.random.default_rng(length).integers(256, size=(3, length), dtype=np.uint8)
    assert evaluate.checksums(rows).tolist() == [masked_crc32c(row.tobytes()) for row in rows]


@pytest.mark.parametrize("block", [1, 1000, 2**20])
def test_every_event_is_read_as_tensorboard_reads_it(tmp_path, monkeypatch, block):
    """Steps of one to six bytes in a varint, tags of one length, several scalars in an event, texts, a picture."""
    monkeypatch.setattr(evaluate, "BLOCK", block)
    writer = SummaryWriter(str(tmp_path))
    for step in (-1, 0, 1, 127, 128, 300, 20_000, 2**21, 2**28, 2**35 - 1, 2**35, 5, 5):
        writer.add_scalar("b/tag", np.float32(step) / 3, step)
        writer.add_scalar("a/tag", -step, step)
        writer.add_scalar("a/longer tag \x15 ü", np.nan, step)
    writer.add_image("picture", np.random.default_rng(0).integers(256, size=(3, 64, 64), dtype=np.uint8), 7)
    pair = [Summary.Value(tag="a/tag", simple_value=1.0), Summary.Value(tag="b/tag", simple_value=2.0)]
    writer.file_writer.add_summary(Summary(value=pair), 8)
    writer.add_text("text", "ä text", 9)
    writer.add_scalar("b/tag", 0.5, 10)
    writer.close()
    log = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    scalars, texts = {}, {}
    evaluate.read_events(event_file(tmp_path), scalars, texts)
    assert texts == {"text/text_summary": "ä text"}
    assert sorted(scalars) == sorted(log.Tags()["scalars"])
    for tag, tables in scalars.items():
        expected = [(event.step, event.value) for event in log.Scalars(tag)]
        np.testing.assert_array_equal(np.concatenate(tables), expected, err_msg=tag)


def test_reading_takes_little_memory(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    picture = Summary.Value(tag="picture", image=Summary.Image(encoded_image_string=bytes(range(256)) * 8_000))
    for _ in range(8):
        writer.file_writer.add_summary(Summary(value=[picture]))
    for step in range(500):
        writer.add_scalar("a", step, step)
    writer.close()
    path, scalars = event_file(tmp_path), {}
    assert path.stat().st_size > 15e6
    tracemalloc.start()
    evaluate.read_events(path, scalars, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.concatenate(scalars["a"])) == 500
    assert peak < 15e6, peak  # not the whole file; a picture has 2 MB


@pytest.mark.parametrize(
    ("state", "reason", "changes"),
    [
        ("partial", "reached step 500 of 9000, without run/completed", {"completed": False, "total_timesteps": 9000}),
        ("partial", "without eval/return", {"score": (), "steps": (), "completed": False}),
        ("foreign", "no run/about", {"about": False}),
        ("foreign", "no run/about", {"total_timesteps": float("inf")}),
        ("foreign", "no run/about", {"env_id": ["a list"]}),
        ("not finite", "losses/td_loss is NaN or infinite at step 50", {"losses": (0.1, np.inf)}),
        ("not finite", "eval/score is NaN or infinite at step 500", {"score": (0, 0, 0, 0, np.nan)}),
    ],
)
def test_unsound_runs_are_named_with_the_reason(tmp_path, state, reason, changes):
    run = read(write_run(tmp_path / "run", **changes))
    assert run.state == state
    assert reason in run.reason


def test_every_kind_of_fault_is_listed_and_only_sound_runs_are_ranked(tmp_path, capsys):
    logs = tmp_path / "logs"
    for seed in range(1, 6):
        for name in "dqn", *"abcdefg":
            write_run(logs / f"G__{name}__{seed}__100", seed=seed, exp_name=name)
    write_run(logs / "cut__dqn__6__1", seed=6, completed=False)
    write_run(logs / "nan__dqn__7__1", seed=7, losses=(np.nan,))
    write_run(logs / "budget__dqn__8__1", seed=8, total_timesteps=50)
    write_run(logs / "settings__dqn__9__1", seed=9, learning_rate=0.5)
    write_run(logs / "again__dqn__1__200", seed=1)  # newer than G__dqn__1__100
    write_run(logs / "again__dqn__1__99", seed=1)
    write_run(logs / "foreign", about=False)
    flipped = event_file(write_run(logs / "flipped", seed=10))
    flipped.write_bytes(flipped.read_bytes()[:-30] + b"?" + flipped.read_bytes()[-29:])
    (logs / "garbage").mkdir()
    (logs / "garbage" / "events.out.tfevents.1").write_bytes(b"no records here, but more than twelve bytes")
    (logs / "zero").mkdir()
    (logs / "zero" / "events.out.tfevents.1").touch()
    (logs / "nofile__dqn__1__1").mkdir(parents=True)
    growing = event_file(write_run(logs / "growing", seed=11, completed=False))
    growing.write_bytes(growing.read_bytes() + growing.read_bytes()[:20])  # half a record
    states = {
        "cut__dqn__6__1": "partial", "nan__dqn__7__1": "not finite", "budget__dqn__8__1": "other budget",
        "settings__dqn__9__1": "other settings", "G__dqn__1__100": "superseded", "again__dqn__1__99": "superseded",
        "foreign": "foreign", "growing": "partial", "flipped": "damaged", "garbage": "damaged", "zero": "empty", "nofile__dqn__1__1": "empty",
    }  # fmt: skip
    status, page, markdown, summary = report(logs, tmp_path)
    assert status == 0
    summary = json.loads(summary)
    assert [row["algorithm"] for row in summary["rows"]] == sorted(["dqn", *"abcdefg"])
    for row in summary["rows"]:
        assert (row["n"], row["final score"], row["got there"]) == (5, [1.0, 1.0, 1.0], 5)
    assert {run["folder"]: run["state"] for run in summary["runs"] if run["state"] != "complete"} == states
    for folder, state in states.items():
        assert re.search(rf'<td title="folder">{folder}</td>.*<td title="state">{state}</td>', page)
        assert re.search(rf"\| {folder} \|.*\| {state} \|", markdown)
    assert "again__dqn__1__200" in {run["folder"] for run in summary["runs"] if run["state"] == "complete"}
    assert "learning_rate 0.5" in page
    assert "total_timesteps 50" in page
    with open(tmp_path / "report" / "results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 40 + len(states)
    assert "40 runs ranked, 12 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "label"),
    [
        ({}, "empty 8"),
        ({"grid_size": "8", "layout": "empty"}, "empty 8"),
        ({"env_id": "GoalGridWorld-v0", "observation": "coords", "slip": 0.0, "layout_seed": 0}, "empty 8"),
        ({"layout": "four_rooms"}, "four_rooms 13"),
        ({"layout": "cliff"}, "cliff"),
        ({"layout": "maze", "slip": 0.1, "random_start": True}, "maze 11, slip 0.1, random start"),
        ({"step_reward": 0, "max_episode_steps": 50}, "empty 8, step reward 0, max episode steps 50"),
        ({"env_id": "CartPole-v1"}, "CartPole-v1"),
        ({"layout": "my\x1b[2Jmap"}, "my?[2Jmap"),
    ],
)
def test_task_label(args, label):
    assert evaluate.task_label(args) == label


def test_defaults_are_those_of_gridworld():
    sizes = {name: known[2] for name, known in gridworld.LAYOUTS.items() if isinstance(known, tuple)}
    assert sizes == evaluate.DEFAULT_SIZE
    defaults = {name: p.default for name, p in inspect.signature(gridworld.GridWorldEnv).parameters.items()}
    for name, value in evaluate.DEFAULTS.items():
        assert defaults.get(name) == value, name
    flags = {field.name for field in dataclasses.fields(gridworld.EnvArgs)}
    assert flags == {*evaluate.DEFAULTS, "env_id", "grid_size", "layout", "observation"}


# ----------------------------------------------------------------------------- the report


def test_overlapping_intervals_have_no_winner_and_separate_ones_have(tmp_path):
    for seed in range(1, 5):
        for name, final in ("good", 1.0), ("equal", 1.0), ("bad", 0.2 + seed / 10):
            score = (0, 0, 1, 1, final) if name == "good" else (0, 0, 0, 0, final)
            write_run(tmp_path / "logs" / f"G__{name}__{seed}__1", score, exp_name=name, seed=seed)
    _, page, _, summary = report(tmp_path / "logs", tmp_path)
    parsed = Page(page)
    advice = [
        "task",
        "fewest steps to a kept 0.95",
        "ends best",
        "solve and keep it in every seed",
        "least time of these",
    ]
    assert parsed.tables[0] == [
        advice,
        [
            "empty 8",
            "good 300 (300 to 300) is ahead.",
            "no clear winner: good, equal 1.000 (1.000 to 1.000).",
            "all but bad",
            "no clear winner: good, equal 5.000 (5.000 to 5.000).",  # bad is as fast, but solves nothing
        ],
    ]
    assert "Warning: fewer than 10 seeds, so rough intervals: 4 of good, equal, bad." in page
    rows = {row["algorithm"]: row for row in json.loads(summary)["rows"]}
    assert list(rows) == ["good", "equal", "bad"]
    assert rows["bad"]["final score"][0] == pytest.approx(0.45)  # of 0.3 0.4 0.5 0.6 the middle two
    assert rows["bad"]["worst kept"] == pytest.approx(0.3)
    assert (rows["bad"]["solved"], rows["bad"]["got there"], rows["bad"]["steps to 0.95"]) == (0, 0, [None] * 3)
    assert (rows["good"]["seconds"], rows["good"]["steps/s"], rows["good"]["peak MB"]) == ([5.0] * 3, 1004.0, 304.0)


def suite_of_runs(logs, seeds=3):
    """Runs of four algorithms on the two tasks of family complex, their transfer, options and horizons."""
    for seed, (layout, size) in itertools.product(range(1, seeds + 1), (("four_rooms", 13), ("key_door", 8))):
        task = {"layout": layout, "grid_size": size, "seed": seed}
        for name, final in ("dqn", 0.6 + seed / 10), ("good", 1.0), ("bad", -0.1), ("world", 0.9):
            if (name, layout) != ("bad", "key_door"):
                folder = write_run(logs / f"G__{name}__{layout}__{seed}", (0, 0, 0, 0.97, final), exp_name=name, **task)
                if name == "world":
                    extend(folder, {f"horizon/score_{h}": h / 10 for h in (1, 3, 5, 10)})
                if name == "good":
                    extend(folder, {f"options/greedy_usage_{(k + seed) % 3}": (0.7, 0.2, 0.1)[k] for k in range(3)})
                    extend(folder, {"options/greedy_length": 4.0 * seed})
        for method, area in ("scratch", 0.4), ("fine-tune", 0.7 + seed / 100):
            about = {"exp_name": f"transfer-{method}", "method": method, "source": "far"}
            folder = write_run(logs / f"G__{method}__{layout}__{seed}", **about, **task)
            gains = {"eval/zero_shot": area / 2, "transfer/jump_start": area / 4, "transfer/area": area}
            extend(folder, gains | ({"transfer/steps_to_kept_95": 100 * seed} if method == "fine-tune" else {}))


def extend(folder, scalars):
    """Add scalars to a run, in a second event file."""
    writer = SummaryWriter(str(folder), filename_suffix=f".{next(iter(scalars)).replace('/', '-')}")
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, 500)
    writer.close()


@pytest.fixture(scope="module")
def suite_page(tmp_path_factory):
    """The page of suite_of_runs, a run with a name that would act on the page, and three partial ones."""
    tmp_path = tmp_path_factory.mktemp("suite")
    suite_of_runs(tmp_path / "logs")
    write_run(tmp_path / "logs" / "G__x__1__1", exp_name="<script>alert(1)</script>")
    for name in "c__x__1__1", "a__x__1__1", "b__x__1__1":
        write_run(tmp_path / "logs" / name, completed=False)
    return report(tmp_path / "logs", tmp_path)[1]


def test_tasks_together_transfer_options_and_horizons(suite_page):
    page, parsed = suite_page, Page(suite_page)
    tables = {tuple(table[0]): table for table in parsed.tables}
    together = tables["algorithm", "n", "IQM", "optimality gap", "solved", "ends better than dqn"]
    assert [row[0] for row in together[1:]] == ["good", "world", "dqn"]  # bad has no run on key_door
    assert "Not on all of them, and so left out here: bad." in parsed.text
    rows = {row[0]: row for row in together[1:]}
    assert rows["good"][1:] == [
        "3",
        "1.000 (1.000 to 1.000)",
        "0.000 (0.000 to 0.000)",
        "1.000",
        "1.000 (1.000 to 1.000)",
    ]
    assert rows["dqn"][2].startswith("0.800 (")
    assert rows["dqn"][3].startswith("0.200 (")
    assert rows["dqn"][5] == "–"
    assert rows["world"][5].startswith("0.833 (")  # 0.9 against 0.7 0.8 0.9: (1 + 1 + 1 / 2) / 3
    few = "leads, but with so few seeds it may be chance."
    advice = {row[0]: dict(zip(parsed.tables[0][0][1:], row[1:], strict=True)) for row in parsed.tables[0][1:]}
    assert advice["complex, together"]["ends best"] == f"good 1.000 (1.000 to 1.000) {few}"
    assert "Together: simple" not in page
    gains = tables[
        "algorithm", "n", "zero-shot", "jump start", "area", "target steps to 0.95", "area / scratch", "steps saved"
    ]
    rows = {row[0]: row[1:] for row in gains[1:]}
    assert rows["transfer-scratch"][2:6] == [
        "0.100 (0.100 to 0.100)",
        "0.400 (0.400 to 0.400)",
        "never",
        "1.000 (1.000 to 1.000)",
    ]
    assert rows["transfer-fine-tune"][3:6] == ["0.720 (0.710 to 0.730)", "200 (100 to 300)", "1.800 (1.775 to 1.825)"]
    best = advice["key_door 8, source far"]["transfers best: area under the target's curve"]
    assert best == f"transfer-fine-tune 0.720 (0.710 to 0.730) {few}"
    fewest = advice["key_door 8, source far"]["fewest steps to a kept 0.95"]
    assert fewest == f"transfer-fine-tune 200 (100 to 300) {few}"  # on the target, not 300, those on sources counted
    steps, costs, target_steps, target_costs = parsed.tables[1:5]
    assert steps[0] == ["algorithm", "empty 8", "four_rooms 13", "key_door 8"]  # in the order of the suite
    assert ["good", "", "400 (3/3)", "400 (3/3)"] in steps
    assert ["dqn", "", "never (0/3)", "never (0/3)"] in steps
    assert ["good", "2", "6 of 6", "5.0", "304"] in costs
    assert target_steps == [
        ["algorithm", "four_rooms 13, source far", "key_door 8, source far"],
        ["transfer-scratch", "never (3/3)", "never (3/3)"],
        ["transfer-fine-tune", "200 (3/3)", "200 (3/3)"],
    ]
    assert ["transfer-fine-tune", "2", "6 of 6", "5.0", "304"] in target_costs
    said = " ".join(parsed.figures)
    for what in ("Performance profile over n seeds", "Horizon study", "Options: how much", "Options: how long",
                 "Transfer: area", "Sample efficiency", "Worst seeds", "Cost: time", "Cost: peak"):  # fmt: skip
        assert what in said, what
    assert all("(n = " in figure for figure in parsed.figures)


def test_studied_tags_are_ordered_by_their_number_and_options_by_their_use():
    def run(**last):
        return evaluate.Run("", {tag.replace("__", "/"): np.array([[5, -1.0], [9, x]]) for tag, x in last.items()})

    x, y = evaluate.studied([run(horizon__score_10=0.3, horizon__score_3=0.2, horizon__score_1=0.1)], "horizon/score")
    assert x.tolist() == [1, 3, 10]
    assert y[0].tolist() == [0.1, 0.2, 0.3]
    runs = [
        run(options__greedy_usage_0=0.7, options__greedy_usage_1=0.3),
        run(options__greedy_usage_0=0.2, options__greedy_usage_1=0.8),
    ]
    x, y = evaluate.studied(runs, "options/greedy_usage")
    assert x.tolist() == [1, 2]
    assert y[0] == pytest.approx([0.75, 0.25])  # of the one used most, whichever it was
    assert evaluate.studied(runs, "horizon/score") is None


DRIVER = """<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect())
  const table = [...document.querySelectorAll("table")].at(-1), column = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent)
  const before = column(), head = table.tHead.rows[0].cells[0]
  head.click()
  const up = column()
  head.click()
  document.title = JSON.stringify({figures: seen.length, drawn: seen.every(box => box.width > 100 && box.height > 50),
    fits: document.documentElement.scrollWidth <= innerWidth, before, up, down: column(), arrow: head.ariaSort,
    shown: document.body.innerText.includes("<script>alert(1)</" + "script>")}) })
</script>"""


@pytest.mark.parametrize("width", [1200, 500])  # headless Chromium's narrowest window
def test_the_page_in_a_browser(tmp_path, suite_page, width):
    """Chromium lays the page out and sorts a table; where it is not installed, the page's text is judged alone."""
    page, parsed = suite_page, Page(suite_page)
    assert parsed.elements.count("script") == 1
    assert "<script>alert(1)</script>" in parsed.text
    assert [row[0] for row in parsed.tables[-1]] == ["folder", "a__x__1__1", "b__x__1__1", "c__x__1__1"]
    if browser := shutil.which("chromium") or shutil.which("google-chrome"):
        path = tmp_path / "page.html"
        path.write_text(page + DRIVER, encoding="utf-8")
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "CONSOLE" not in done.stderr  # no error, no warning, and no alert that blocks
        seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
        assert seen["figures"] == len(parsed.figures)
        assert seen["drawn"]
        assert seen["fits"], "the page is wider than the window"
        assert seen["shown"]
        assert (seen["before"], seen["up"]) == (["a__x__1__1", "b__x__1__1", "c__x__1__1"],) * 2
        assert (seen["down"], seen["arrow"]) == (["c__x__1__1", "b__x__1__1", "a__x__1__1"], "descending")


def test_where_the_optimum_is_unknown_the_return_is_shown(tmp_path):
    for seed in 1, 2:
        write_run(tmp_path / "logs" / f"{seed}", known=False, env_id="CartPole-v1", grid_size=None, seed=seed)
    _, page, _, summary = report(tmp_path / "logs", tmp_path)
    assert "The optimum of this task is not known" in page
    assert json.loads(summary)["rows"][0]["final return"] == [10.0, 10.0, 10.0]


class Page(HTMLParser):
    """Elements, addresses, text and tables of a page, and the text of each figure."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.text, self.tables, self.figures = [], [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "figure":
            self.figures.append("")
        self.addresses += [value for name, value in attributes if name.endswith(("src", "href"))]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        data = data.replace("\xa0", " ")
        self.text += data
        tag = self.elements[-1] if self.elements else ""
        if tag in ("th", "td"):
            self.tables[-1][-1][-1] += data.rstrip("\n")
        elif tag in ("text", "figcaption"):
            self.figures[-1] += data.strip() + " "


HOSTILE = "<script>alert(1)</script>", "--><img src=x onerror=alert(1)>", "a|b\n| c", "=cmd()", "_$x^$", "[a](b)`", ""


def test_hostile_names_are_shown_as_text(tmp_path):
    for number, name in enumerate(HOSTILE):
        write_run(tmp_path / "logs" / f"{number}", exp_name=name)
        write_run(tmp_path / "logs" / f"={number}<b>|__x__1__1", exp_name=name, layout="<i>", completed=False)
    status, page, markdown, summary = report(tmp_path / "logs", tmp_path)
    parsed = Page(page)
    assert status == 0
    assert not {"img", "b", "i"} & set(parsed.elements)
    assert parsed.elements.count("a") == parsed.elements.count("h2")  # the table of contents
    assert parsed.elements.count("script") == 1  # the one that sorts tables
    assert "alert" not in evaluate.SORT
    assert page.endswith(evaluate.SORT)
    assert len(parsed.figures) == parsed.elements.count("svg") == 6
    assert all(address.startswith("#") for address in parsed.addresses)  # opens offline
    assert all(f"id={address[1:]}>" in page for address in parsed.addresses if address.startswith("#section"))
    for name in HOSTILE:
        assert name.replace("\n", "?") in parsed.text
    assert "<script" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        pipes = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(pipes) == 1, block
    with open(tmp_path / "report" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(HOSTILE)
    assert {"'=cmd()", "'--><img src=x onerror=alert(1)>"} <= {row["algorithm"] for row in rows}
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert {run["algorithm"] for run in json.loads(summary)["runs"]} == {name.replace("\n", "?") for name in HOSTILE}


def test_report_is_the_same_twice_and_holds_no_number_that_json_lacks(tmp_path):
    for seed in range(12):
        write_run(tmp_path / "logs" / str(seed), score=(0, 0, 0, 0, seed**0.5 / 3), seed=seed)
    first = report(tmp_path / "logs", tmp_path)
    assert first == report(tmp_path / "logs", tmp_path)
    json.loads(first[-1], parse_constant=lambda name: pytest.fail(f"{name} in summary.json"))
    assert f"![Learning curves of the greedy policy. {evaluate.BAND}](figure-0.svg)" in first[2]
    svg = (tmp_path / "report" / "figure-0.svg").read_text()
    assert svg.startswith("<?xml")
    assert "dqn (n = 12)" in svg
    assert "currentColor" in first[1]  # text of figures is dark on light and light on dark
    assert evaluate.INK not in first[1]
    assert evaluate.CARD not in first[1]


def test_no_run_is_told_in_one_line(tmp_path, capsys):
    for folder in tmp_path / "nowhere", tmp_path:
        assert evaluate.main(evaluate.Args(log_dir=folder, report_dir=tmp_path / "report")) == 2
        told = capsys.readouterr().err
        assert str(folder) in told
        assert told.count("\n") == 1
    assert not (tmp_path / "report").exists()


# ----------------------------------------------------------------------------- flags and training


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"seeds": 0}, "--seeds must be between 1 and 10000, got 0"),
        ({"jobs": 0}, "--jobs must be between 1 and 1000, got 0"),
        ({"tasks": ("empty-8", "nowhere")}, "--tasks must be of .*, got nowhere"),
        ({"algorithms": ("dqn", "../dqn")}, r"--algorithms must be of .*, got \.\./dqn"),
        ({"algorithms": ("evaluate",)}, "--algorithms must be of .*, got evaluate"),
        ({"scheduler": "host"}, "--scheduler must be like tcp://host:8786, got host"),
        ({"report_dir": Path(__file__)}, "--report-dir must be a folder"),
        ({"algorithms": ("dqn",), "tasks": ("goal-near",)}, "--algorithms and --tasks make no run of dqn, goal-near"),
        (
            {"algorithms": ("dqn", "her"), "tasks": ("empty-5", "goal-far")},
            "--algorithms and --tasks make no run of goal-far",
        ),
        (
            {"algorithms": ("dqn", "transfer-uvfa"), "tasks": ("map-changed", "empty-5")},
            "make no run of transfer-uvfa, map-changed: they",
        ),
        (
            {"algorithms": ("transfer-frozen",), "tasks": ("empty-8",)},
            "make no run of transfer-frozen, empty-8",
        ),
    ],
)
def test_bad_flags_are_refused_by_name(flags, said):
    with pytest.raises(ValueError, match=said):
        evaluate.Args(**flags)


def test_every_flag_is_documented():
    source = inspect.getsource(evaluate.Args)
    for field in dataclasses.fields(evaluate.Args):
        assert re.search(rf'^    {field.name}: .*\n    """', source, re.MULTILINE), field.name
    assert all(task in source for task in evaluate.TASKS)


def test_from_the_shell_a_bad_flag_is_an_error_box_and_torch_is_not_imported(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(evaluate.HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import sys, evaluate, tyro; assert 'torch' not in sys.modules; evaluate.main(tyro.cli(evaluate.Args))"
    for flags, said in (
        (("--jobs", "0"), "--jobs must be between 1 and 1000, got 0"),
        (
            ("--train", "--algorithms", "dqn", "--tasks", "goal-near"),
            "--algorithms and --tasks make no run of dqn, goal-near",
        ),
    ):
        command = [sys.executable, "-c", code, *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


FAKE = """
import os, pathlib, shutil, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
logs, seed, here = pathlib.Path(args["--log-dir"]), args["--seed"], pathlib.Path("FOLDER")
with open(here / "started", "a") as file:
    print(seed, args["--grid-size"], os.environ["OMP_NUM_THREADS"], file=file)
if seed == "3":
    print("about to fail")
    sys.exit("no luck <today>")
if seed != "4":  # 4 ends well, but logs nothing
    shutil.copytree(here / "template" / seed, logs / f"G__fake__{seed}__99")
"""


class StubExecutor(ThreadPoolExecutor):
    """Of a cluster that loses seed 5 with its workers."""

    def submit(self, work, name, *rest):
        lost = name.endswith("__5")
        return super().submit(lambda: 1 / 0) if lost else super().submit(work, name, *rest)


def stub_client(address):
    assert address == "tcp://stub:1"
    return SimpleNamespace(get_executor=lambda pure: StubExecutor(2))


@pytest.mark.parametrize("cluster", [False, True])
def test_train_runs_what_is_missing_and_survives_a_failure(tmp_path, monkeypatch, capsys, cluster):
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "fake.py").write_text(FAKE.replace("FOLDER", str(tmp_path)))
    for seed in 1, 2:
        write_run(tmp_path / "template" / str(seed), exp_name="fake", seed=seed, grid_size=5)
    logs = tmp_path / "logs"
    write_run(logs / "of any name", exp_name="fake", seed=1, grid_size=5)  # the arguments count, not the name
    write_run(logs / "G__fake__2__1", exp_name="fake", seed=2, grid_size=5, completed=False)
    flags = {"train": True, "algorithms": ("fake",), "tasks": ("empty-5",), "seeds": 4, "jobs": 2}
    if cluster:
        flags["scheduler"] = "tcp://stub:1"
        (tmp_path / "gridworld.py").touch()
        flags["seeds"] = 5
        monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=stub_client))
    status, page, _, summary = report(logs, tmp_path, **flags)
    assert status == 1
    started = (tmp_path / "started").read_text().splitlines()
    assert sorted(started) == ["2 5 1", "3 5 1", "4 5 1"]  # seed, grid size, threads
    failures = json.loads(summary)["failures"]
    assert failures["fake__empty-5__3"] == "exit code 1: no luck <today"
    assert "without a complete, sound log" in failures["fake__empty-5__4"]
    assert failures.get("fake__empty-5__5") == ("ZeroDivisionError: division by zero" if cluster else None)
    assert "no luck &lt;today" in page
    assert json.loads(summary)["rows"][0]["n"] == 2
    assert "about to fail" in (logs / "output" / "fake__empty-5__3.txt").read_text()
    assert "no luck" in capsys.readouterr().err

    flags["seeds"] = 2
    assert report(logs, tmp_path, **flags)[0] == 0
    assert (tmp_path / "started").read_text().splitlines() == started  # nothing is missing now


def test_workers_that_name_their_folders_alike_cost_no_run(tmp_path, monkeypatch):
    """Runs of one seed on two tasks that start in the same second have one name, each in a folder of its worker."""
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=stub_client))
    (tmp_path / "gridworld.py").touch()
    for size in 5, 8:
        write_run(tmp_path / "template" / str(size), exp_name="fake", seed=1, grid_size=size)
    copy = f"shutil.copytree({str(tmp_path / 'template')!r} + '/' + size, 'G__fake__1__99')"
    (tmp_path / "fake.py").write_text(f"import shutil, sys\nsize = sys.argv[sys.argv.index('--grid-size') + 1]\n{copy}")
    flags = {"train": True, "algorithms": ("fake",), "tasks": ("empty-5", "empty-8"), "seeds": 1}
    status, *_, summary = report(tmp_path / "logs", tmp_path, **flags, scheduler="tcp://stub:1")
    assert status == 0
    assert sorted(row["task"] for row in json.loads(summary)["rows"]) == ["empty 5", "empty 8"]


def test_train_reports_when_nothing_came_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    (tmp_path / "fake.py").write_text(
        "raise SystemExit('│ --seed \x1b[1mis bad │\\n│ For full helptext, see │\\n╰────╯')"
    )
    flags = {"train": True, "algorithms": ("fake",), "tasks": ("empty-8",), "seeds": 1}
    status, page, *_ = report(tmp_path / "logs", tmp_path, **flags)
    assert status == 1
    assert "exit code 1: seed ?[1mis bad" in page  # no escape sequence reaches page or terminal


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name in evaluate.STEPS])
def test_every_command_of_the_suites_is_accepted_and_logs_the_task_that_is_looked_for(script, tmp_path):
    args = importlib.import_module(script).Args
    assert evaluate.STEPS[script][1] == args.total_timesteps  # the full budget is the default one
    rows = tuple(row for row in evaluate.ROWS if row.split("-")[0] == script)
    for suite, row in itertools.product(evaluate.SUITES, rows):
        tasks = tuple(task for task in evaluate.TASKS if evaluate.suits(row, task))
        wanted = evaluate.Args(suite=suite, algorithms=(row,), tasks=tasks, seeds=1, log_dir=tmp_path)
        jobs = evaluate.missing(wanted, [])
        assert jobs
        for name, (file, *flags) in jobs.items():
            logged = json.loads(json.dumps(dataclasses.asdict(tyro.cli(args, args=flags)), default=str))
            run = evaluate.Run(name, {}, logged, logged["exp_name"], evaluate.task_label(logged))
            assert file == f"{script}.py"
            assert name not in evaluate.missing(wanted, [run]), "it would be trained again and again"


def test_the_suites_compare_like_with_like(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    for script in evaluate.STEPS:
        (tmp_path / f"{script}.py").touch()
    for suite, budget in ("quick", 10_000), ("full", 15_000):
        jobs = evaluate.missing(evaluate.Args(suite=suite), [])
        made = {tuple(name.split("__")) for name in jobs}
        for row, task, _ in made:
            assert (task in evaluate.FAMILIES["transfer"]) == row.startswith("transfer-"), (row, task)
        for method, steps in ("scratch", budget), ("fine-tune", 2 * budget):  # half of these on the sources
            command = " ".join(jobs[f"transfer-{method}__goal-near__1"])
            assert f"--method {method} --seed 1 --total-timesteps {steps} --exp-name transfer-{method}" in command
    rows, tasks, _ = map(set, zip(*made, strict=True))
    assert rows == set(evaluate.ROWS)
    assert tasks == {task for family in evaluate.FAMILIES if family != "other" for task in evaluate.FAMILIES[family]}


@pytest.mark.parametrize(
    ("changes", "state", "missing"),
    [
        ({}, "complete", False),
        ({}, "superseded", False),
        ({}, "partial", True),
        ({}, "not finite", True),
        ({}, "other settings", True),
        ({"total_timesteps": 10_000}, "complete", True),  # of the quick suite
        ({"seed": 2}, "complete", True),
        ({"grid_size": 5}, "complete", True),
        ({"exp_name": "other"}, "complete", True),
    ],
)
def test_what_counts_as_made(changes, state, missing):
    args = {"exp_name": "dqn", "seed": 1, "grid_size": 8, "total_timesteps": 30_000} | changes
    run = evaluate.Run("", {}, args, args["exp_name"], evaluate.task_label(args), state)
    wanted = evaluate.Args(suite="full", algorithms=("dqn",), tasks=("empty-8",), seeds=1)
    assert bool(evaluate.missing(wanted, [run])) == missing


def test_without_dask_or_scheduler_it_ends_in_one_line(tmp_path, monkeypatch):
    def client(address):
        raise OSError(f"Timed out trying to connect to {address} after 30 s")

    for module, said in (None, "needs Dask, pip install distributed"), (SimpleNamespace(Client=client), "Timed out"):
        monkeypatch.setitem(sys.modules, "distributed", module)
        args = evaluate.Args(log_dir=tmp_path, train=True, tasks=("empty-5",), seeds=1, scheduler="tcp://none:1")
        with pytest.raises(SystemExit, match=said) as ended:
            evaluate.main(args)
        assert "\n" not in ended.value.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_runs(tmp_path, number):
    shutil.copy(evaluate.HERE / "evaluate.py", tmp_path)
    (tmp_path / "dqn.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path('ended' + sys.argv[4]).touch()))\n"
        "pathlib.Path('ready' + sys.argv[4]).touch()\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "evaluate.py", "--train", "--tasks", "empty-5", "--seeds", "3", "--jobs", "2"]
    options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    heeds = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # also where these tests are told to ignore it
    with subprocess.Popen(command, preexec_fn=heeds, **options) as child:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(number)
        assert "interrupted" in child.communicate(timeout=30)[1]
    assert child.returncode == 1
    assert sorted(path.name for path in tmp_path.glob("[re]*ed*")) == ["ended1", "ended2"]


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("below[-1] + 1 if len(below) else 0", "int(np.argmax(np.append(score, 1) >= threshold))", "steps_to_kept"),
    ("// 4 : x.shape[-1] - x.shape[-1] // 4]", "// 4 :]", "iqm_drops"),
    ("np.maximum(1 - np.concatenate(samples, axis=-1), 0)", "(1 - np.concatenate(samples, axis=-1))", "rliable"),
    ("axis=-1) > t).mean", "axis=-1) >= t).mean", "rliable"),
    ("(1 + np.sign(difference).mean(axis=(-2, -1))) / 2", "(difference > 0).mean(axis=(-2, -1))", "improvement"),
    ("y[..., None, :], 3)", "y[..., None, :], 9)", "improvement"),
    ("for x in samples]  # (..., draws, n)", "for x in [np.concatenate(samples, axis=-1)]]", "bootstrap_interval"),
    ("ordered[..., -1 - int(0.025 * draws)]", "ordered[..., -1 - int(0.25 * draws)]", "rliable"),
    ("sound = checksums(data) == stored.copy()", "sound = stored.copy() == stored.copy()", "flipped_byte"),
    ("kind=\"stable\"), 1:]", "kind=\"stable\")[::-1], 1:]", "every_event"),
    ("table[np.argsort(table[:, 0], kind=\"stable\"), 1:]", "table[:, 1:]", "every_event"),
    ('"losses/", "system/"', '"system/"', "unsound_runs"),
    ('EOFError(f"ends inside', 'ValueError(f"ends inside', "cut_file"),
    ('int("0" + re.search("[0-9]*$", run.folder)[0])', "run.folder", "every_kind_of_fault"),
    ("        if level[1:]:", "        if not level:", "verdict"),
    ('row.get("budget", np.inf) < best[name][2] < np.inf', "False", "stopped_sooner"),
    ("best[name][2] < np.inf", "best[name][2]", "stopped_sooner"),
    ("if orders > 40", "if orders > 0", "few_seeds"),
    ('[run for run in of[algorithm] if run.args["seed"] in seeds]', "of[algorithm]", "weigh_the_same"),
    ("(len(seeds_of(x)), ", "(len(x), ", "usual_settings"),
    (", max(map(made_at, x)))", ")", "usual_settings"),
    ("np.where(y.mean(axis=-1) > 0, y.mean(axis=-1), np.nan)", "y.mean(axis=-1)", "share_of_nothing"),
    ("np.std(final, ddof=1)", "np.std(final)", "spread"),
    ("suited and (row, task) != ", "suited or (row, task) == ", "every_command"),
    ("np.float32(record[\"kept_score\"]) >= KEPT", "np.isfinite(record[\"steps_to_kept\"])", "glance"),
    ('else "target_steps_to_kept")', 'else "steps_to_kept")', "options_and_horizons"),
    ('verdict(gains, f"target steps', 'verdict(rows, f"steps', "options_and_horizons"),
    ("+ 1e-3]", "]", "verdict"),
    ('[row for row in rows if row["solved"] == 1 and row["worst kept"] >= KEPT]', "rows", "overlapping_intervals"),
    ("[[html.escape(text) for text in row] for row in cells]", "[[text for text in row] for row in cells]", "hostile"),
    ('in ("complete", "superseded", "other budget")]', 'in STATES or run.state == "complete"]', "counts_as_made"),
    ("(row, label, seed, steps) not in present", "(row, label, seed, None) not in present", "counts_as_made"),
    ("steps //= 2", "pass", "like_with_like"),
    ("-np.sort(-y, axis=0)", "y", "studied"),
    ('*(values(x, tags["area"]) for x in (runs, *scratch))', '*(values(x, tags["area"]) for x in (*scratch, runs))', "options_and_horizons"),
]  # fmt: skip
