"""What can go wrong while a run is under way: kills, full disks, vanished folders, NaN, broken environments.

A run must cost what it must and no more: what was logged stays readable, model.pt is whole or absent, a run that did
not end says so by its exit code and by a log without run/completed, and evaluate.py does not count it. Runs are forks of
this process, which saves the second that importing torch takes.
"""

import ast
import csv
import dataclasses
import errno
import importlib
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import gymnasium as gym
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 (with the line above: so that no fork has to import it)
import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import dqn
import dyna_q

# ----------------------------------------------------------------------------- runs in forks


def start(script, args, output: Path, before=lambda: None) -> int:
    """Fork a process that runs a script as the shell would; `before` is called in it. Returns its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:  # whatever happens, the child must not come back into pytest
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))  # not pytest's
        for number, handler in (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL):
            signal.signal(number, handler)
        threading.excepthook = threading.__excepthook__
        tqdm.set_lock(threading.RLock())  # that of forks is one for all: who is killed with it stops the others
        before()
        importlib.import_module(script).train(args)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:  # as Python's own end
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def end(pid: int, seconds: float = 60.0) -> int:
    """Its exit code, minus the signal that killed it; TimeoutError if it hangs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} hangs")


def check_remains(folder: Path, completed: bool = False) -> dict:
    """The scalars of a run's log: readable to its end, steps in order; the model whole or absent."""
    scalars = {}
    if list(folder.glob("*tfevents*")):
        log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        scalars = {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
        for pairs in scalars.values():
            assert [step for step, _ in pairs] == sorted(step for step, _ in pairs)
    assert ("run/completed" in scalars) == completed
    if (model := folder / "model.pt").exists():
        assert all(value.isfinite().all() for value in torch.load(model, weights_only=True).values())
    return scalars


def states(log_dir: Path, tmp_path: Path) -> dict[str, str]:
    """{folder: state} in the report of evaluate.py."""
    command = [sys.executable, "evaluate.py", "--log-dir", log_dir, "--report-dir", tmp_path / "report"]
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr, result.stderr
    with open(tmp_path / "report" / "results.csv", newline="", encoding="utf-8") as file:
        return {row["folder"]: row["state"] for row in csv.DictReader(file)}


def is_complete(folder: Path) -> bool:
    events = list(folder.glob("*tfevents*"))
    return bool(events) and "run/completed" in EventAccumulator(str(folder)).Reload().Tags()["scalars"]


def processor_time(pid: int) -> float:
    """Seconds that another process has computed: Linux's clock of it, clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def end_by(number: int, pid: int, moment: float) -> int:
    """Send the signal once the process has computed for `moment` seconds, unless it ended before; its exit code."""
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if processor_time(pid) >= moment:
            os.kill(pid, number)
            break
        time.sleep(0.001)
    return end(pid)


def whole_run(args, output: Path) -> float:
    """Seconds that a run of dyna_q computes for."""
    pid, seconds = start("dyna_q", args, output), 0.0
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        seconds = processor_time(pid)
        time.sleep(0.001)
    assert end(pid) == 0
    return seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_at_random_moments(number, short_args, tmp_path):
    """20 times between the start and the end of a run, its last picture and its model included. The moments are of the
    run's own processor time: on a busy machine, too, they come before the end.

    SIGINT and SIGTERM: exit code 130, one line, the log closed up to the last step, unless they come before or after the
    training, where they end the process as they always do.
    """
    runs, rng, told = tmp_path / "runs", np.random.default_rng(number), {}
    args = short_args("dyna_q", total_timesteps=1_000, eval_every=50, save_model=True, log_dir=runs / "whole")
    lasts = min(whole_run(args, tmp_path / "whole") for _ in range(3))  # neighbours slow some of them
    for i in range(20):
        args = dataclasses.replace(args, log_dir=runs / str(i))
        pid = start("dyna_q", args, tmp_path / str(i))
        told[args.log_dir] = end_by(number, pid, lasts * (i + rng.random()) / 20), (tmp_path / str(i)).read_text()
    report = states(runs, tmp_path)
    for log_dir, (code, said) in told.items():
        assert code in (0, -number) or (code == 130 and number != signal.SIGKILL), said
        for folder in log_dir.glob("*"):
            completed, state = is_complete(folder), report[folder.relative_to(runs).as_posix()]
            logged = check_remains(folder, completed)
            if completed:
                assert (folder / "model.pt").exists(), "the mark is the last thing that is written"
                assert state not in ("partial", "empty", "damaged", "foreign", "not finite")
            else:
                assert code != 0
                assert state in ("partial", "empty")
            if code == 130:
                assert "Traceback" not in said
                (steps,) = re.findall(r"interrupted after (\d+) steps; partial log in ", said)
                lengths = logged.get("charts/episodic_length", [(0, 0)])
                assert int(steps) - 100 <= lengths[-1][0] <= int(steps), (
                    "the last episode, of at most 100 steps, is there"
                )
    codes = [code for code, _ in told.values()]
    assert codes.count(0) <= 5, "most came before the end"
    assert number == signal.SIGKILL or codes.count(130) >= 5, "many came within the training"


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_kill_around_the_writing_of_the_model(moment, short_args, tmp_path, monkeypatch):
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def save(weights, path, real=torch.save):
        if moment == "within":
            Path(path).write_bytes(b"half a model")
            kill()
        real(weights, path)
        if moment == "before":  # it has its name
            kill()

    def replace(self, target, real=Path.replace):
        real(self, target)
        if moment == "after":
            kill()

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(Path, "replace", replace)
    args = short_args("dyna_q", save_model=True, log_dir=tmp_path / "runs")
    assert end(start("dyna_q", args, tmp_path / "output")) == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    check_remains(folder)
    assert (folder / "model.pt").exists() == (moment == "after")


def test_runs_that_start_at_once_do_not_share_a_folder(short_args, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    args = short_args("dyna_q", log_dir=tmp_path / "runs")
    pids = [start("dyna_q", args, tmp_path / "output") for _ in range(4)]
    assert [end(pid) for pid in pids] == [0] * 4
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name[-1] for folder in folders] == list("0123")
    logs = [check_remains(folder, completed=True) for folder in folders]
    assert all(log["eval/return"] == logs[0]["eval/return"] for log in logs), "none holds two runs"


# ----------------------------------------------------------------------------- disks and folders


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_full_disk_ends_the_run_and_keeps_what_was_written(size, short_args, tmp_path):
    """No file may grow beyond `size` bytes: at the first record, and after a while. One line says so."""
    args = short_args("dyna_q", total_timesteps=10**9, eval_every=50, log_dir=tmp_path / "runs", save_model=True)
    limit = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    output, told = os.pipe()  # no file
    pid = start("dyna_q", args, Path(f"/dev/fd/{told}"), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert end(pid) == 1, "it ends by itself, long before its budget"
    os.close(told)
    (folder,) = (tmp_path / "runs").iterdir()
    with open(output, encoding="utf-8") as file:
        said = file.read()
    assert said.endswith(f"\ncannot write the log in {folder}: [Errno {errno.EFBIG}] File too large\n")
    assert "Traceback" not in said
    scalars = check_remains(folder)
    assert bool(scalars) == (size > 1_000)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= size


def test_a_disk_that_is_full_when_the_model_is_written(short_args, tmp_path):
    """The log is short enough, the model is not: no model.pt, no run/completed, and the error says why."""
    args = short_args("dqn", total_timesteps=200, log_dir=tmp_path / "runs", save_model=True)
    limit = (45_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    output = tmp_path / "output"
    assert end(start("dqn", args, output, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "model.pt").exists()
    assert "eval/score" in check_remains(folder)
    assert "Error" in output.read_text()


def test_a_log_folder_that_vanishes_ends_the_run(short_args, tmp_path, monkeypatch):
    def record(self, step, reward, ended, real=dyna_q.Run.record):
        if step == 300:
            (tmp_path / "runs").rename(tmp_path / "gone")  # at once: removing races with the thread that writes
        real(self, step, reward, ended)

    monkeypatch.setattr(dyna_q.Run, "record", record)
    hook = threading.excepthook
    with pytest.raises(SystemExit, match=r"^cannot write the log in .*: .*No such file or directory: .*tfevents"):
        dyna_q.train(short_args("dyna_q", total_timesteps=10**7, log_dir=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert threading.excepthook == hook


def test_a_log_folder_that_cannot_be_written_to_is_refused(short_args, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o555)
    real, effective = os.getuid(), os.geteuid()
    if real == 0:  # root may write everywhere; access is decided by the real user
        os.setreuid(65_534, -1)
    try:
        for folder in "runs", "runs/below":
            with pytest.raises(ValueError, match="--log-dir must be a folder that can be written to"):
                short_args("dqn", log_dir=tmp_path / folder)
    finally:
        os.setreuid(real, effective)
    assert not list((tmp_path / "runs").iterdir())


# ----------------------------------------------------------------------------- environments that break

WORLD = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces

FAULT, FAULT_AT = {}, 12


class World(gym.Env):
    '''Five cells in a row, the goal at the right end. What FAULT names goes wrong at step FAULT_AT of an instance.'''

    action_space = spaces.Discrete(2)

    def __init__(self, form):
        self.form, self.steps, self.resets = form, 0, 0
        box = spaces.Box(0.0, 4.0, (4,), np.float32)
        self.observation_space = {"box": box, "index": spaces.Discrete(5)}.get(form) or spaces.Dict(
            observation=box, achieved_goal=box, desired_goal=box
        )

    def observe(self):
        cell = np.full(4, self.cell, np.float32)
        if self.broken:
            cell = FAULT.get("obs", cell)
        if self.form == "goal":
            return {"observation": cell, "achieved_goal": cell, "desired_goal": np.full(4, 4, np.float32)}
        return cell if self.form == "box" else self.cell + 99 * (self.broken and "obs" in FAULT)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.broken, self.resets = 0, False, self.resets + 1
        if "reset" in FAULT and self.resets == 2:
            raise RuntimeError("the world cannot begin again")
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.broken = self.steps >= FAULT_AT
        if self.broken and "step" in FAULT:
            raise RuntimeError("the world fell apart")
        self.cell = min(max(self.cell + (1 if action == 1 else -1), 0), 4)
        reward = FAULT["reward"] if self.broken and "reward" in FAULT else -1.0
        return self.observe(), reward, self.cell == 4 and "endless" not in FAULT, False, {}

    def compute_reward(self, achieved, desired, info=None):
        return np.full(np.shape(achieved)[:-1], -1.0)


for form in "box", "index", "goal":
    limit = None if form == "box" else 30
    gym.register(f"{form.title()}-v0", lambda form=form: World(form), max_episode_steps=limit)
"""


@pytest.fixture
def broken(short_args, tmp_path, monkeypatch):
    """broken(script, **fault): Args for a world with that fault in a form that the script takes; None if it takes none."""
    (tmp_path / "a_broken_world.py").write_text(WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_broken_world", raising=False)
    for form in "Box", "Index", "Goal":
        gym.registry.pop(f"{form}-v0", None)
    module = importlib.import_module("a_broken_world")

    def make(script, **fault):
        module.FAULT = fault
        for form in "Box", "Index", "Goal":
            try:
                env_id = f"a_broken_world:{form}-v0"
                return short_args(script, env_id=env_id, grid_size=None, eval_every=0, log_dir=tmp_path / "runs")
            except ValueError as error:
                reason = str(error)
        pytest.fail(reason) if "--env-id" not in reason else None

    return make


@pytest.mark.parametrize("fault", ["step", "reset"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_environment_that_raises(script, fault, broken, tmp_path, monkeypatch):
    """Its own error is shown, after the log has been closed."""
    closed, close = [], SummaryWriter.close
    monkeypatch.setattr(SummaryWriter, "close", lambda self: (closed.append(self), close(self)))
    if args := broken(script, **{fault: True}):
        with pytest.raises(RuntimeError, match=r"the world (fell apart|cannot begin again)"):
            importlib.import_module(script).train(args)
        for folder in (tmp_path / "runs").glob("*"):
            check_remains(folder)
            assert closed


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Gymnasium's, on observations outside their space
@pytest.mark.parametrize("shape", [(3,), (1,), (), (4, 4), (0,)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_environment_that_shows_wrong_shapes(script, shape, broken, tmp_path):
    """No number is broadcast in silence: an error ends the run."""
    if args := broken(script, obs=np.zeros(shape, np.float32)):
        with pytest.raises((ValueError, RuntimeError, IndexError, TypeError)):
            importlib.import_module(script).train(args)
        for folder in (tmp_path / "runs").glob("*"):
            check_remains(folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_environment_that_never_ends(script, broken, tmp_path, monkeypatch):
    """Episodes are cut at 1000 steps, in evaluations too."""
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "study_and_draw", lambda *_: None, raising=False)  # of world_model, half a minute
    if args := broken(script, endless=True):
        module.train(args)
        (folder,) = (tmp_path / "runs").iterdir()
        length = check_remains(folder, completed=True)["eval/length"][-1][1]
        assert length == (1_000 if "Box" in args.env_id else 30)


# ----------------------------------------------------------------------------- numbers that are none


def ending(script, args) -> str:
    """What SystemExit says, after a check that the log was closed and is partial."""
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).train(args)
    assert isinstance(stop.value.code, str), "shown on stderr, with exit code 1"
    check_remains(next(args.log_dir.iterdir()))
    return stop.value.code


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reward_that_is_not_finite_ends_the_run_at_once(script, value, broken):
    if args := broken(script, reward=value):
        said = ending(script, args)
        assert "rewards are not finite at step " in said
        assert str(value) in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_loss_that_is_not_finite_ends_the_run(script, short_args):
    """The step, the loss and the likely cause. dyna_q.py and model_based.py have no step size that leads there."""
    args = short_args(script, eval_every=0)
    object.__setattr__(args, "learning_rate", 1e30)  # what --learning-rate refuses
    if script in ("dyna_q", "model_based"):
        args.log_dir.mkdir(exist_ok=True)
        run = importlib.import_module(script).Run(args)
        run.step = 500
        with pytest.raises(SystemExit) as stop:
            run.log({"eval/return": np.nan, "losses/x": np.inf})
        run.writer.close()
        said = stop.value.code
    else:
        said = ending(script, args)
    assert "losses/" in said
    assert "nan at step " in said or "inf at step 500" in said
    assert "--learning-rate" in said
    assert str(args.log_dir) in said


# ----------------------------------------------------------------------------- models that are not one


class Hostile:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_model_runs_no_code(short_args, tmp_path):
    """Neither when it is loaded as the README says nor when evaluate.py meets it beside a log."""
    dyna_q.train(short_args("dyna_q", save_model=True, log_dir=tmp_path / "runs"))
    (model,) = (tmp_path / "runs").glob("*/model.pt")
    torch.save({"q": Hostile(tmp_path / "harmed")}, model)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(model, weights_only=True)
    model.write_bytes(pickle.dumps(Hostile(tmp_path / "harmed"), protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(model, weights_only=True)
    assert set(states(tmp_path / "runs", tmp_path).values()) == {"complete"}
    assert not (tmp_path / "harmed").exists()
    pickle.loads(model.read_bytes())
    assert (tmp_path / "harmed").exists(), "the trap works"


def test_a_model_that_is_cut_is_refused(short_args, tmp_path):
    dqn.train(short_args("dqn", total_timesteps=120, save_model=True, log_dir=tmp_path / "runs"))
    (model,) = (tmp_path / "runs").glob("*/model.pt")
    whole = model.read_bytes()
    assert len(torch.load(model, weights_only=True)) == 6
    for size in range(0, len(whole), 1 + len(whole) // 20):
        model.write_bytes(whole[:size])
        with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
            torch.load(model, weights_only=True)


def test_nothing_here_loads_pickles():
    """torch.load only with weights_only=True, and neither pickle nor eval and exec in what is not a test."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ("torch.load", "np.load"):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("weights_only") == "True" or (name == "np.load" and "allow_pickle" not in said), path
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "os.system")), path
            assert not (isinstance(node, ast.Import) and {"pickle", "marshal"} & {alias.name for alias in node.names})


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (file, old text, new text, the test that fails)
MUTANTS = [
    ("dyna_q", 'torch.save(weights, self.folder / "model.tmp")\n            (self.folder / "model.tmp").replace(self.folder / "model.pt")', 'torch.save(weights, self.folder / "model.pt")', "kill_around"),
    ("dyna_q", "self.folder.mkdir(parents=True)", "self.folder.mkdir(parents=True, exist_ok=True)", "start_at_once"),
    ("dyna_q", "signal.signal(signal.SIGTERM, signal.default_int_handler)  # as", "None  # as", "signals_at_random"),
    ("dyna_q", "raise SystemExit(130) from None", "raise SystemExit(0) from None", "signals_at_random"),
    ("dyna_q", "if not np.isfinite(reward).all():", "if False:", "reward_that_is_not_finite"),
    ("model_based", "if not np.isfinite(reward).all():", "if np.isnan(reward).all():", "reward_that_is_not_finite and model_based"),
    ("world_model", 'if tag.startswith("losses/") and not np.isfinite(value):', "if False:", "loss_that_is_not_finite and world_model"),
    ("dqn", 'if tag.startswith("losses/") and not np.isfinite(value):', 'if tag.startswith("losses/") and value == np.inf:', "loss_that_is_not_finite"),
    ("dyna_q", 'raise SystemExit(f"cannot write the log in {self.folder}: {error}") from None', "pass", "full_disk_ends"),
    ("dyna_q", "self.on_error, threading.excepthook = threading.excepthook, lambda _: None", "self.on_error = threading.excepthook", "full_disk_ends"),
    ("dyna_q", "threading.excepthook = self.on_error", "pass", "folder_that_vanishes"),
    ("dqn", '        if self.args.save_model:\n            torch', '        self.log({"run/completed": self.step})\n        if self.args.save_model:\n            torch', "full_when_the_model"),
    ("dqn", "            self.writer.close()", "            kind or self.writer.close()", "environment_that_raises and dqn"),
    ("dqn", "        if kind is KeyboardInterrupt:", "        if kind is RuntimeError:\n            return True\n        if kind is KeyboardInterrupt:", "environment_that_raises and dqn"),
    ("gridworld", "env = gym.wrappers.DtypeObservation(env, np.float32)\n        return env", "env = gym.wrappers.DtypeObservation(env, np.float32)\n        space = env.observation_space\n        return gym.wrappers.TransformObservation(env, lambda obs: np.resize(obs, space.shape), space)", "wrong_shapes"),
    ("gridworld", " and os.access(folder, os.W_OK)", "", "cannot_be_written_to"),
    ("gridworld", "env = gym.wrappers.TimeLimit(env, 1_000)", "env = gym.wrappers.TimeLimit(env, 1_500)", "never_ends"),
]  # fmt: skip
