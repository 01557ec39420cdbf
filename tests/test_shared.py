"""What every script has in common: the shared block, flags, logs, determinism, bad input, interruptions."""

import ast
import dataclasses
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import unittest.mock

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, SHORT, read_log
from test_faults import end, start

import gridworld

RULE = "# " + "-" * 77 + " "
TAGS = (
    "charts/episodic_return charts/episodic_length charts/SPS eval/return eval/length eval/success eval/score "
    "system/wall_time_s system/peak_memory_mb run/completed"
).split()
RUN_FLAGS = "seed log_dir exp_name eval_every eval_episodes device save_model capture_video total_timesteps".split()


def shared_block(name: str) -> str:
    sections = (ROOT / f"{name}.py").read_text().split(RULE)
    return next(section for section in sections if section.startswith("shared by every script"))


def test_shared_blocks_are_one_text():
    assert len({shared_block(name) for name in SCRIPTS}) == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_nothing_local_but_gridworld(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    local = {path.stem for path in ROOT.glob("*.py")}
    assert imported & local == {"gridworld"}


def documented(name: str) -> dict[str, tuple[str, str | None]]:
    """{flag: (type, description)} of the dataclass of a script's flags."""
    body = next(
        node.body
        for node in ast.parse((ROOT / f"{name}.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in ("Args", "EnvArgs")
    )
    pairs = [(node, after) for node, after in itertools.pairwise(body) if isinstance(node, ast.AnnAssign)]
    return {
        node.target.id: (ast.unparse(node.annotation), getattr(getattr(after, "value", None), "value", None))
        for node, after in pairs
    }


@pytest.mark.parametrize("name", [*SCRIPTS, "gridworld", "evaluate"])
def test_every_flag_is_documented(name):
    assert [flag for flag, (_, text) in documented(name).items() if not str(text).endswith(".")] == []


def test_run_flags_are_described_alike():
    said = {flag: {documented(name)[flag] for name in SCRIPTS} for flag in RUN_FLAGS}
    assert {flag: texts for flag, texts in said.items() if len(texts) > 1} == {}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_is_longer_than_a_person_reads(name):
    """Longer are goals, three techniques on DQN, five teachers with three axes, six ways of transfer, and dreams."""
    most = {"her": 454, "per_aux_dqn": 491, "world_model": 570, "curriculum": 600, "transfer": 680}.get(name, 450)
    assert len((ROOT / f"{name}.py").read_text().splitlines()) <= most


def weights_of(folder):
    """The saved weights of a run as one vector."""
    return torch.cat([value.flatten() for value in torch.load(folder / "model.pt", weights_only=True).values()])


def without_clock(log):
    """The scalars of a log that do not depend on the clock."""
    clock = ("system/", "charts/SPS", "about", "images")
    return {tag: values for tag, values in log.items() if not tag.startswith(clock)}


def trained(script, args):
    """The weights that a run saves, and its folder."""
    before = set(args.log_dir.glob("*"))
    importlib.import_module(script).train(dataclasses.replace(args, save_model=True))
    (folder,) = set(args.log_dir.glob("*")) - before
    return weights_of(folder), folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluations_log_pictures_and_film_are_invisible_and_another_seed_is_not(script, short_args, monkeypatch):
    weights, _ = trained(script, short_args(script))
    other, _ = trained(script, short_args(script, seed=2))
    assert not torch.equal(weights, other)
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "SummaryWriter", unittest.mock.MagicMock())
    monkeypatch.setattr(gridworld, "draw", lambda env, panels: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(module, "study_and_draw", lambda *_: None, raising=False)  # of world_model
    silent, folder = trained(script, short_args(script, eval_every=0, capture_video=True))
    assert torch.equal(weights, silent)
    assert not list(folder.glob("*tfevents*"))


def flags(script):
    short = {"grid_size": 4, "eval_episodes": 2} | SHORT[script]
    return [part for name, value in short.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def run_script(script, *arguments, env=None, defaults=True):
    command = [sys.executable, f"{script}.py", *(flags(script) if defaults else ()), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", SCRIPTS)
def test_run_from_the_shell(script, short_args, tmp_path):
    """The contract of folder, tags, pictures, model, video and the last line. Weights and scalars are those of the same
    run in this process, whose hash seed and number of threads are others."""
    two = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "PYTHONHASHSEED": "2"}
    result = run_script(script, "--log-dir", tmp_path, "--save-model", "--capture-video", "--seed", 3, env=two)
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.iterdir()
    torch.set_num_threads(3)
    weights, here = trained(script, short_args(script, grid_size=4, seed=3, log_dir=tmp_path / "here"))
    assert torch.get_num_threads() == 1
    assert torch.equal(weights_of(folder), weights)
    assert without_clock(read_log(folder)) == without_clock(read_log(here))
    env_id = importlib.import_module(script).Args.env_id
    assert re.fullmatch(rf"{env_id}__{script}__3__\d+", folder.name)
    log = read_log(folder)
    assert set(TAGS) <= set(log)
    steps = log["run/completed"][0][1]
    assert SHORT[script]["total_timesteps"] <= steps == log["eval/score"][-1][0]
    assert log["about"]["args"]["grid_size"] == 4
    assert log["about"]["versions"]["torch"] == torch.__version__
    assert log["about"]["optimal_return"] == pytest.approx(9.5)
    assert 50 < log["system/peak_memory_mb"][-1][1] < 5_000
    assert log["charts/SPS"][-1][1] * log["system/wall_time_s"][-1][1] == pytest.approx(steps, rel=1e-3)
    assert {"model.pt", "video.gif"} <= {path.name for path in folder.iterdir()}
    assert "video" in log["images"]
    assert any(tag.startswith("pictures/") for tag in log["images"])
    assert any(tag.startswith("losses/") for tag in log)
    assert result.stdout.count("\n") == 1
    assert f"{script} on {env_id}: {steps:.0f} steps" in result.stdout
    assert str(folder) in result.stdout
    assert "score" in result.stderr  # the progress bar


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gamma", "nan"], ["--gamma", "between 0 and 1", "nan"]),
        (["--gamma", "1.5"], ["--gamma", "between 0 and 1", "1.5"]),
        (["--total-timesteps", "-1"], ["--total-timesteps", "1", "-1"]),
        (["--seed", "-1"], ["--seed", "0", "-1"]),
        (["--layout", "nowhere"], ["--layout", "nowhere"]),
        (["--grid-size", "1"], ["--grid-size", "2", "1"]),
        (["--grid-size", "8", "--env-id", "CartPole-v1"], ["--grid-size", "CartPole-v1"]),
        (["--env-id", "Pendulum-v1"], ["--env-id", "discrete"]),
        (["--env-id", "Nowhere-v0"], ["--env-id", "Nowhere"]),
        (["--exp-name", "a/b"], ["--exp-name", "a/b"]),
        (["--device", "cuda"], ["--device", "cuda"]),
        (["--log-dir", "/dev/null/runs"], ["--log-dir", "/dev/null/runs"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--learning-rate", "fast"], ["--learning-rate", "fast"]),
    ],
)
def test_bad_input_ends_in_one_box_and_no_run(script, arguments, words, tmp_path, monkeypatch, capsys):
    if arguments == ["--device", "cuda"] and torch.cuda.is_available():
        arguments, words = ["--device", "tpu"], ["--device", "tpu"]
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(script)
    import tyro

    with pytest.raises(SystemExit) as exit_info:
        tyro.cli(module.Args, args=arguments)
    assert exit_info.value.code == 2
    box = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert all(word in box for word in words), box
    assert "Traceback" not in box
    assert not list(tmp_path.iterdir())


def test_bad_input_from_the_shell(tmp_path):
    result = run_script("dqn", "--gamma", "nan", "--log-dir", tmp_path / "runs", defaults=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_a_readable_partial_log(script, kill, short_args, tmp_path):
    args = short_args(script, total_timesteps=10**7, max_episode_steps=20, log_dir=tmp_path / "runs")
    pid = start(script, args, tmp_path / "output")
    try:
        folder = wait_for(lambda: next(tmp_path.glob("runs/*"), None))
        wait_for(lambda: len(read_log(folder).get("charts/episodic_return", ())) > 5)
        seen = read_log(folder)["charts/episodic_return"][-1][0]
    finally:
        os.kill(pid, kill)
        code = end(pid)
    log, said = read_log(folder), (tmp_path / "output").read_text()
    assert "run/completed" not in log
    assert log["charts/episodic_return"][-1][0] >= seen
    assert code == (-kill if kill == signal.SIGKILL else 130)
    if kill != signal.SIGKILL:
        assert "Traceback" not in said
        assert f"partial log in {folder}" in said


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_from_the_shell(kill, tmp_path):
    command = f"{sys.executable} dyna_q.py --grid-size 5 --total-timesteps 10000000 --log-dir {tmp_path}".split()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    try:
        folder = wait_for(lambda: next(tmp_path.iterdir(), None))
        wait_for(lambda: len(read_log(folder).get("charts/episodic_return", ())) > 20)
        process.send_signal(kill)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"partial log in {folder}" in said


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except (KeyError, IndexError):  # the log is not that far yet
            pass
        time.sleep(0.2)
    raise TimeoutError


def test_two_runs_of_one_second_have_two_folders(short_args, monkeypatch, tmp_path):
    import dqn

    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    args = short_args("dqn", total_timesteps=200)
    dqn.train(args)
    dqn.train(args)
    assert sorted(path.name[-10:] for path in tmp_path.iterdir()) == ["1700000000", "1700000001"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Taxi-v4"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_other_environments(script, env_id, short_args, tmp_path):
    refusals = {("dyna_q", "CartPole-v1"): "--env-id must have discrete observations"}
    refusals[("curriculum", "CartPole-v1")] = "--env-id CartPole-v1 has no table P"
    for other in ("CartPole-v1", "FrozenLake-v1", "Taxi-v4"):
        refusals |= {("transfer", other): "--env-id must be a grid world", ("her", other): "--env-id must have goals"}
    if (script, env_id) in refusals:
        with pytest.raises(ValueError, match=refusals[script, env_id]):
            short_args(script, env_id=env_id, grid_size=None)
        return
    importlib.import_module(script).train(short_args(script, env_id=env_id, grid_size=None))
    log = read_log(next(tmp_path.iterdir()))
    assert ("eval/score" in log) == (env_id != "CartPole-v1")  # CartPole has no table to solve
    assert "eval/return" in log


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "task",
    [
        {"layout": "key_door", "grid_size": 5},
        {"slip": 0.2, "random_start": True},
        {"observation": "index", "random_goal": True, "grid_size": 3},
        {"layout": "....\n.S#.\n.#.X\n...G\n", "grid_size": None},
    ],
)
def test_other_tasks(script, task, short_args, tmp_path):
    if script == "transfer" and "random_goal" in task:  # its sources have other goals
        task = task | {"random_goal": False}
    importlib.import_module(script).train(short_args(script, **task))
    log = read_log(next(tmp_path.iterdir()))
    assert "eval/score" in log
    assert any(tag.startswith("pictures/") for tag in log["images"])


@pytest.mark.parametrize(
    ("script", "share"),
    [
        *((script, [0.0]) for script in ("dqn", "per_aux_dqn", "curriculum", "her")),
        ("model_based", [0.0, 0.0]),
        ("world_model", [0.05, 0.05]),
        *((script, [1 / 32]) for script in ("options_critic", "feudal")),  # of the last of 32 updates
    ],
)
def test_step_sizes_fall_over_the_run(script, share, short_args, monkeypatch):
    """What is left of them at the last update."""
    optimizers, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: (optimizers.append(adam(*a, **k)), optimizers[-1])[1])
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "study_and_draw", lambda *_: None, raising=False)  # of world_model
    module.train(short_args(script, eval_every=0, anneal_lr=True))
    left = [optimizer.param_groups[0]["lr"] / optimizer.defaults["lr"] for optimizer in optimizers]
    assert left == pytest.approx(share)


def make_run(args):
    import dqn

    return dqn.Run(args)


def test_play_scores_the_task_alone(short_args):
    """Each environment counts one episode; an optimal and a looping policy have the returns worked out by hand."""
    args = short_args("dqn", eval_episodes=3, grid_size=4)
    with make_run(args) as run:
        q = gridworld.solve(run.env)
        best = run.play(lambda obs, start: q[obs.argmax(axis=1)].argmax(axis=1))
        assert best == pytest.approx({"return": 9.5, "length": 6, "success": 1, "score": 1})
        stuck = run.play(lambda obs, start: np.zeros(len(obs), int))
        assert stuck["return"] == pytest.approx(-6.4)  # 4 x 4 x 4 steps
        assert stuck["success"] == 0


def test_play_counts_episodes_of_different_lengths_once_and_draws_them_alike(short_args):
    """From random starts, of which the first draw is each episode's: the mean of the exact returns, each time."""
    with make_run(short_args("dqn", eval_episodes=20, grid_size=4, random_start=True)) as run:
        q, grid = gridworld.solve(run.env), run.eval_envs.grid
        run.eval_envs.reset(seed=10_000)
        starts = run.eval_envs.states.copy()
        assert len(set(starts)) > 5
        for _ in range(2):
            best = run.play(lambda obs, start: q[obs.argmax(axis=1)].argmax(axis=1))
            assert best["return"] == pytest.approx(q[starts].max(axis=1).mean())
            assert best["length"] == pytest.approx(np.abs(grid.cells[starts] - [3, 3]).sum(axis=1).mean())
            assert best["score"] == pytest.approx((best["return"] - run.random) / (run.optimal - run.random))


@pytest.mark.parametrize(
    ("every", "steps"), [(10, [12, 20, 32, 40, 52, 60]), (7, [8, 16, 24, 28, 36, 44, 52, 56]), (0, [])]
)
def test_evaluations_come_at_the_first_step_from_each_multiple_on(every, steps, short_args, monkeypatch):
    with make_run(short_args("dqn", eval_every=every, total_timesteps=62)) as run:
        monkeypatch.setattr(run, "play", lambda policy: {"return": 0.0})
        for run.step in range(4, 64, 4):
            run.evaluate(None)
        assert list(run.evaluations) == steps
        run.evaluate(None, force=True)
        assert list(run.evaluations) == [*steps, *[60] * (60 not in steps)]


def test_play_tells_a_policy_where_episodes_start(short_args):
    with make_run(short_args("dqn", eval_episodes=2, max_episode_steps=3)) as run:
        starts = []
        run.play(lambda obs, start: (starts.append(start.tolist()), np.zeros(len(obs), int))[1])
    assert starts == [[True, True], [False, False], [False, False]]


def test_episodes_are_logged_whole(short_args, tmp_path):
    """Two environments; the second's episode ends one step later. Each is logged at its end, then counted anew."""
    with make_run(short_args("dqn")) as run:
        run.record(2, np.array([1.0, 2.0]), np.array([False, False]))
        run.record(4, np.array([1.0, 2.0]), np.array([True, False]))
        run.record(6, np.array([5.0, 2.0]), np.array([True, True]))
    log = read_log(next(tmp_path.iterdir()))
    assert log["charts/episodic_return"] == [(4, 2.0), (6, 5.5)]  # at 6: the mean of 5 and 2 + 2 + 2
    assert log["charts/episodic_length"] == [(4, 2.0), (6, 2.0)]


def test_saved_model_is_the_trained_one(short_args, tmp_path):
    import dqn

    network = dqn.train(short_args("dqn", save_model=True))
    (model,) = tmp_path.glob("*/model.pt")
    state = torch.load(model, weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert not list(tmp_path.glob("*/*.tmp"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_cannot_be_changed_behind_a_run(script, short_args):
    with pytest.raises(dataclasses.FrozenInstanceError):
        short_args(script).seed = 3


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (file, old text, new text, the test that fails); all but the first four are in the shared block, in one of its copies
MUTANTS = [
    ("dqn", "            run.evaluate(greedy)", "            run.evaluate(lambda obs, start: np.where(rng.random(len(obs)) < 0.05, 0, greedy(obs)))", "are_invisible and dqn"),
    ("world_model", 'draw(nets["actor"](z), sample)', 'draw(nets["actor"](z), sample or generator)', "are_invisible and world_model"),
    ("model_based", "0.0, np.random.default_rng(0))", "0.0, np.random.default_rng(torch.randint(9, ()).item()))", "are_invisible and model_based"),
    ("feudal", "network.log_pi(tensor(obs), pooled).argmax(dim=1).cpu().numpy()", "(network.log_pi(tensor(obs), pooled).cpu().numpy() + 0 * rng.gumbel()).argmax(axis=1)", "are_invisible and feudal"),
    ("her", "    torch.set_num_threads(1)", "    pass", "run_from_the_shell and her"),
    ("options_critic", "return np.random.default_rng(seed)", "return np.random.default_rng([seed, hash('seed') % 99])", "run_from_the_shell and options_critic"),
    ("curriculum", "    torch.manual_seed(seed)", "    pass", "run_from_the_shell and curriculum"),
    ("transfer", '2**20 if sys.platform == "darwin" else 2**10', "2**20", "run_from_the_shell and transfer"),
    ("dqn", "self.log({\"run/completed\": self.step})", "pass", "run_from_the_shell and dqn"),
    ("dqn", "self.eval_envs.reset(seed=10_000)", "self.eval_envs.reset()", "different_lengths"),
    ("dqn", "self.eval_envs.reset(seed=10_000)", "self.eval_envs.reset(seed=int(self.step))", "different_lengths"),
    ("dqn", "total + reward * running", "total + reward", "different_lengths"),
    ("dqn", "length + running", "length + 1", "different_lengths"),
    ("dqn", "(total.mean() - self.random) / span", "total.mean() / self.optimal", "different_lengths"),
    ("dqn", 'info["final_info"]["is_success"][start & running]', "True", "scores_the_task_alone"),
    ("dqn", "(self.step // every + 1) * every", "self.step + every", "first_step_from_each"),
    ("dqn", "self.returns[ended] = self.lengths[ended] = 0", "pass", "logged_whole"),
    ("dqn", "self.returns[ended].mean()", "self.returns.mean()", "logged_whole"),
    ("model_based", "rate = args.learning_rate * max(0.0, 1.0 - step / args.total_timesteps)", "rate = args.learning_rate", "step_sizes and model_based"),
    ("world_model", "/ 10 * fall", "/ 10", "step_sizes and world_model"),
    ("options_critic", 'optimizer.param_groups[0]["lr"] = linear_schedule(args.learning_rate, 0.0, args.total_timesteps, step)', "pass", "step_sizes and options_critic"),
    ("feudal", 'optimizer.param_groups[0]["lr"] = args.learning_rate * left', "pass", "step_sizes and feudal"),
    ("curriculum", "                if args.anneal_lr:", "                if False:", "step_sizes and curriculum"),
]  # fmt: skip
