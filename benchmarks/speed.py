"""How fast the inner loops are, beside the way they are often written: CPU seconds of one thread, in turns, medians.

Run:   python benchmarks/speed.py
Writes results/speed.csv. Quote the ratios: the figures themselves depend on the machine and on who else uses it.
"""

import csv
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

import dyna_q  # noqa: E402
import evaluate  # noqa: E402
import gridworld  # noqa: E402
import per_aux_dqn  # noqa: E402


def in_turns(work: dict[str, Callable[[], None]], rounds: int = 7) -> dict[str, float]:
    """Median CPU seconds of each piece of work, done in turns, so that a slow minute of the machine is shared."""
    seconds = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            start = time.process_time()
            do()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def dyna_q_planning() -> dict[str, float]:
    """Planning updates per second from a full model of the four rooms: `dyna_q.plan` against a dict of arrays."""
    grid = gridworld.GridWorldEnv(13, "four_rooms", observation="index")
    outcomes = [
        (s, a, grid.reward.item(s, a), grid.next_state.item(s, a), grid.terminal.item(grid.next_state[s, a]))
        for s, a in np.ndindex(grid.n_states, 4)
    ]
    q, tried = ([[0.0] * 4 for _ in range(grid.n_states)] for _ in range(2))
    pairs = [[(q[s], a, r, 0.0 if end else 0.99, q[t], tried[s])] * 10 for s, a, r, t, end in outcomes]
    arrays = {s: np.zeros(4) for s in range(grid.n_states)}
    model = {(s, a): (r, t, end) for s, a, r, t, end in outcomes}
    updates, rng, generator = 50_000, random.Random(1), np.random.default_rng(1)

    def lists() -> None:
        for now in range(updates // 50):  # 50 planning steps at a time, as in a run
            dyna_q.plan(pairs, 50, 0.1, 0.0, now, rng)

    def dict_of_arrays() -> None:
        for _ in range(updates // 50):
            keys = list(model)
            for i in generator.integers(len(keys), size=50):
                s, a = keys[i]
                reward, next_s, end = model[s, a]
                arrays[s][a] += 0.1 * (reward + 0.99 * (not end) * np.max(arrays[next_s]) - arrays[s][a])

    return {name: updates / seconds for name, seconds in in_turns({"lists": lists, "arrays": dict_of_arrays}).items()}


def reading() -> dict[str, float]:
    """Scalars per second read from a log of 120 000, with checksums: `evaluate.read_run` against EventAccumulator."""
    tags = "charts/episodic_return charts/episodic_length charts/SPS eval/return eval/length eval/success eval/score"
    tags = (tags + " losses/td_loss losses/mean_target system/wall_time_s system/peak_memory_mb model/pairs").split()
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for step in range(0, 1_000_000, 100):
            for number, tag in enumerate(tags):
                writer.add_scalar(tag, step / (number + 1), step)
        writer.close()

        def records() -> None:
            assert sum(len(x) for x in evaluate.read_run(Path(folder), "").scalars.values()) == 120_000

        def accumulator() -> None:
            log = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
            assert sum(len(log.Scalars(tag)) for tag in tags) == 120_000

        work = {"records": records, "accumulator": accumulator}
        return {name: 120_000 / seconds for name, seconds in in_turns(work, rounds=5).items()}


def prioritized_replay(stored: int) -> dict[str, float]:
    """Times per second: 128 of `stored` transitions drawn and their priorities set anew, against a gradient step."""
    torch.set_num_threads(1)
    rng, network = np.random.default_rng(1), per_aux_dqn.QNetwork(64, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    buffer = per_aux_dqn.ReplayBuffer(stored, 64, prioritized=True)
    buffer.added = stored
    buffer.update(np.arange(stored), rng.random(stored))
    obs, action, y = torch.rand(128, 64), torch.randint(4, (128,)), torch.rand(128)

    def replay() -> None:
        for _ in range(500):
            rows = buffer.sample(128, 0.4, rng)[0]
            buffer.update(rows, per_aux_dqn.priority(rng.random(128), 0.6, 0.05))

    def gradient_step() -> None:
        for _ in range(500):
            loss = per_aux_dqn.td_loss(per_aux_dqn.td_error(network(obs), action, y), torch.ones(128))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return {name: 500 / seconds for name, seconds in in_turns({"replay": replay, "step": gradient_step}).items()}


if __name__ == "__main__":
    planning, read = dyna_q_planning(), reading()
    rows = [("dyna_q.py: planning updates/s", planning["lists"], "a dict of arrays", planning["arrays"])]
    rows += [("evaluate.py: scalars read/s", read["records"], "EventAccumulator", read["accumulator"])]
    for stored in 10_000, 1_000_000:
        rate = prioritized_replay(stored)
        what = f"per_aux_dqn.py: batches of 128 from {stored:,} by priority/s"
        rows.append((what, rate["replay"], "gradient steps", rate["step"]))
    with open(ROOT / "results" / "speed.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "here", "beside", "there", "ratio")])
        for what, here, beside, there in rows:
            csv.writer(file).writerow((what, f"{here:.0f}", beside, f"{there:.0f}", f"{here / there:.1f}"))
            print(f"{what}: {here:,.0f}, {beside} {there:,.0f}, ratio {here / there:.1f}")
