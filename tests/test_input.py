"""Every flag of every script with every kind of nonsense: exit code 2, one box that names the flag, nothing written.

The table of flags is read from the dataclasses, their bounds from what they check, so that a new flag is tested by
existing. The shell's form is tested with one value of each kind (it takes a hundredth of a second), the other values
through the dataclass.
"""

import contextlib
import dataclasses
import importlib
import math
import re
import typing

import gymnasium as gym
import numpy as np
import pytest
import tyro
from conftest import SCRIPTS, read_log
from gymnasium import spaces

import gridworld

ARGS = {"gridworld": gridworld.EnvArgs} | {name: importlib.import_module(name).Args for name in SCRIPTS}
ENV_BOUNDS = {"grid_size": (2, 128), "layout_seed": (0, 2**63 - 1), "slip": (0, 1), "max_episode_steps": (1, 1e9)}
ENV_BOUNDS |= dict.fromkeys(("step_reward", "goal_reward", "trap_reward"), (-1e6, 1e6))
# What a flag at one of its bounds needs of another.
EXCEPTIONS = {("feudal", "num_steps"): {"goal_horizon": 1}, ("curriculum", "advance"): {"fall_back": 0.0}}
NAN, INF = float("nan"), float("inf")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def kinds(cls: type) -> dict[str, typing.Any]:
    """{field: its type}, of a number or None the number's."""
    hints = typing.get_type_hints(cls)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return {
        name: next((part for part in typing.get_args(kind) if part in (int, float, str)), kind)
        if type(None) in typing.get_args(kind)
        else kind
        for name, kind in kinds.items()
    }


def bounds(cls: type, monkeypatch) -> dict[str, tuple[float, float]]:
    """{field: (low, high)} of what the dataclass checks with its default values, or 1 where the default is None."""
    checked, check = dict(ENV_BOUNDS), gridworld.EnvArgs.check
    optional = {field.name for field in dataclasses.fields(cls) if field.default is None} - set(ENV_BOUNDS)
    with monkeypatch.context() as patch:
        patch.setattr(
            gridworld.EnvArgs, "check", lambda self, **limits: (checked.update(limits), check(self, **limits))
        )
        cls()
        for name in [name for name in optional if kinds(cls)[name] in (int, float)]:
            cls(**{name: kinds(cls)[name](1)})
    return checked


def refusal(cls: type, arguments: list[str], capsys) -> str:
    """What the shell shows, on one line."""
    with pytest.raises(SystemExit) as exit_info:
        tyro.cli(cls, args=arguments)
    shown = capsys.readouterr()
    assert exit_info.value.code == 2
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert shown.err.count("For full helptext") == 1, shown.err
    return re.sub(r"[│\s]+", " ", shown.err)


class Dependent(Exception):
    """A value is refused because of another flag, which the message names."""


def accept(cls: type, name: str, value: float) -> None:
    try:
        cls(**{name: value})
    except ValueError as error:
        if re.match(r"--[a-z-]+ (must|makes)", str(error)) and not str(error).startswith(flag(name)):
            raise Dependent from None
        raise


@pytest.mark.parametrize("script", ARGS)
def test_values_of_the_wrong_kind_are_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cls = ARGS[script]
    for name, kind in kinds(cls).items():
        assert kind not in (int, float, bool, str) or type(getattr(cls, name)) in (kind, type(None)), flag(name)
        wrong = {int: ["1.5", ""], float: ["much", ""], bool: ["perhaps"], str: []}.get(kind, ["pink", ""])
        for value in wrong if "Path" not in str(kind) else []:  # any text is a path
            said = refusal(cls, [f"{flag(name)}={value}"], capsys)
            assert (value if kind is bool else flag(name)) in said, said  # "Unrecognized options: perhaps"
            assert value in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ARGS)
def test_numbers_out_of_range_are_refused_with_their_bounds(script, tmp_path, monkeypatch, capsys):
    """NaN, both infinities, just beyond each bound, far beyond it; the bounds themselves are accepted."""
    monkeypatch.chdir(tmp_path)
    cls = ARGS[script]
    limits = bounds(cls, monkeypatch)
    for name, kind in kinds(cls).items():
        if kind not in (int, float):
            continue
        assert name in limits, f"{flag(name)} of {script} has no bounds"
        low, high = (kind(limit) for limit in limits[name])
        if kind is int:
            wrong = [NAN, INF, -INF, low - 1, high + 1, -(10**30), 10**30]
        else:
            wrong = [NAN, INF, -INF, math.nextafter(low, -INF), math.nextafter(high, INF), -1e308, 1e308]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"^{flag(name)} must be ") as refused:
                cls(**{name: value})
            assert str(value) in str(refused.value)
        said = refusal(cls, [f"{flag(name)}={kind(wrong[-1])}"], capsys)
        assert f"{flag(name)} must be " in said
        for bound in limits[name]:
            assert any(text in said for text in (f"{bound:g}", f"{bound:.0e}".replace("e+0", "e"), "2^63")), said
            with contextlib.suppress(Dependent):
                accept(cls, name, kind(bound))
    assert not list(tmp_path.iterdir())


BAD_NAMES = ["", " ", "a b", "a/b", "a|b", "a:b", "a\nb", "a\0b", "-" * 61, "a" * 5_000]
BAD_FOLDERS = ["file", "file/below", "/dev/null", "/dev/full/runs", "a" * 300, "dangling", "dangling/runs"]
BAD_FOLDERS += ["x/" * 3_000]
BAD_LAYOUTS = ["", " ", "nowhere.txt", ".", "a" * 5_000, "/dev/null", "file", "\n", "S\n", "SG\0\n", "S?G\n", "S#G\n"]
BAD_IDS = ["", " ", ":", ":X-v0", "a:b:c", "gridworld:", "gridworld:X-v0", "..:X-v0", "no such:X-v0", "CartPole-v1 "]
BAD_IDS += ["Blackjack-v1:", "Pendulum-v1", "CartPole-v99", "CartPole-v-1", "/CartPole-v1", "x" * 5_000, "broken:X-v0"]


@pytest.mark.parametrize("script", ARGS)
def test_texts_that_make_no_sense_are_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken.py").write_text("1 +")
    (tmp_path / "dangling").symlink_to("nowhere")
    before, cls = sorted(tmp_path.rglob("*")), ARGS[script]
    known = {"exp_name": BAD_NAMES, "log_dir": BAD_FOLDERS, "layout": BAD_LAYOUTS, "env_id": BAD_IDS}
    texts = {name for name, kind in kinds(cls).items() if kind is str or "Path" in str(kind)}
    assert texts <= set(known), "a flag of text that this test does not know"
    for name in sorted(texts):
        for value in known[name]:
            said = refusal(cls, [f"{flag(name)}={value}"], capsys)
            assert flag(name) in said or re.search(r"(the map|/dev/null|file)[,:] .*line 1, column", said), said
            assert len(said) < 20_000
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "__pycache__") == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", ARGS)
def test_every_registered_environment_is_taken_or_refused_by_name(script):
    taken, refused = 0, []
    for env_id in list(gym.registry):
        try:
            ARGS[script](env_id=env_id)
            taken += 1
        except ValueError as error:
            refused.append(str(error))
    assert [text for text in refused if not text.startswith("--env-id ") or "\n" in text] == []
    assert taken >= 1  # its own


SMALL = {"total_timesteps": 32, "grid_size": 3, "max_episode_steps": 9, "eval_every": 16, "learning_starts": 8}
SMALL |= {"num_envs": 2, "num_steps": 4, "goal_horizon": 2, "batch_size": 8, "eval_episodes": 1}
SMALL |= {"num_sources": 1, "num_levels": 2}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_with_a_flag_at_its_bound_ends_well(script, short_args, tmp_path, monkeypatch):
    """The smallest value of every number of the script's own, and the largest where that is at most 1 (chances, rates).

    A step size of 1 may make the loss infinite: then the run says so and stops.
    """
    module = importlib.import_module(script)
    monkeypatch.setattr(gridworld, "draw", lambda env, panels: np.zeros((2, 2, 3), np.uint8))  # half a second each
    monkeypatch.setattr(module, "study_and_draw", lambda *_: None, raising=False)  # of world_model, a second each
    own = {name: kind for name, kind in kinds(module.Args).items() if kind in (int, float) and name not in ENV_BOUNDS}
    for name, limits in bounds(module.Args, monkeypatch).items():
        for bound in {low_high for low_high in limits if name in own and abs(low_high) <= 2}:
            flags = SMALL | {name: own[name](bound)} | EXCEPTIONS.get((script, name), {})
            args = short_args(script, **flags | {"log_dir": tmp_path / f"{name}_{bound}"})
            said = ""
            try:
                module.train(args)
            except SystemExit as stopped:
                said = str(stopped)
            assert "losses/" in said or "run/completed" in read_log(next(args.log_dir.iterdir())), (name, bound)


BOX = spaces.Box(0.0, 1.0, (3,), np.float64)
OBSERVED = {
    "numbers": BOX,
    "an image": spaces.Box(0, 255, (2, 2, 3), np.uint8),
    "one number": spaces.Box(-1.0, 1.0, (), np.float32),
    "states": spaces.Discrete(4),
    "states from 2": spaces.Discrete(4, start=2),
    "switches": spaces.MultiBinary(3),
    "cards": spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2))),
    "parts": spaces.Dict(a=spaces.MultiDiscrete([2, 3]), b=BOX),
    "goals": spaces.Dict(observation=BOX, achieved_goal=BOX, desired_goal=BOX),
    "words": spaces.Text(5),
    "a graph": spaces.Graph(BOX, None),
    "a sequence": spaces.Sequence(BOX),
}
ACTIONS = {"one": spaces.Discrete(1), "from 1": spaces.Discrete(3, start=1), "two": spaces.MultiDiscrete([2, 2])}


class Strange(gym.Env):
    """Observations are random, episodes have no end of their own; actions outside the space are an error."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action} is not in {self.action_space}")
        return self.observation_space.sample(), -1.0, False, False, {}

    def compute_reward(self, achieved, desired, info=None):
        return -np.ones(np.shape(achieved)[:-1])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    ("shown", "actions"),
    [(space, spaces.Discrete(2)) for space in OBSERVED.values()] + [(BOX, space) for space in ACTIONS.values()],
    ids=[*OBSERVED, *(f"actions {name}" for name in ACTIONS)],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_spaces_are_refused_by_name_or_work(script, shown, actions, short_args, tmp_path, monkeypatch):
    gym.registry.pop("Strange-v0", None)
    kwargs = {"observation_space": shown, "action_space": actions}
    gym.register("Strange-v0", Strange, max_episode_steps=8, kwargs=kwargs)
    monkeypatch.setattr(importlib.import_module(script), "study_and_draw", lambda *_: None, raising=False)
    try:
        args = short_args(script, env_id="Strange-v0", **SMALL | {"max_episode_steps": 8, "grid_size": None})
    except ValueError as error:
        args, refusal = None, str(error)
    if args is None:
        assert refusal.startswith("--env-id")
        assert "\n" not in refusal
    elif shown is BOX or script in ("dqn", "dyna_q", "her"):  # the others take the same vectors as dqn
        importlib.import_module(script).train(args)
        assert "run/completed" in read_log(next(tmp_path.iterdir()))


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (file, old text, new text, the test that fails)
MUTANTS = [
    ("gridworld", "if not low <= (value := getattr(self, name)) <= high:", "if (value := getattr(self, name)) < low or value > high:", "out_of_range"),
    ("gridworld", "if not 0.0 <= slip <= 1.0:", "if slip < 0.0 or slip > 1.0:", "out_of_range"),
    ("gridworld", "if not abs(value) <= 1e6:", "if abs(value) > 1e6:", "out_of_range"),
    ("dqn", "learning_rate=(0, 1), gamma=(0, 1)", "learning_rate=(0, 1)", "out_of_range"),
    ("gridworld", "or env.action_space.start != 0:", "or False:", "spaces_are"),
    ("dyna_q", "or space.start != 0:", "or False:", "spaces_are and dyna_q"),
    ("feudal", ", manager_gamma=(0, 1)", "", "out_of_range"),
    ("gridworld", "-]{1,60}", "-]+", "texts_that_make_no_sense"),
    ("gridworld", "except OSError:  # a name that is too long", "except KeyError:  # a name that is too long", "texts_that_make_no_sense"),
    ("gridworld", " or folder.is_symlink())", ")", "texts_that_make_no_sense"),
    ("gridworld", "ImportError, SyntaxError, TypeError", "ImportError, TypeError", "texts_that_make_no_sense"),
    ("gridworld", "SyntaxError, TypeError, ValueError) as error", "SyntaxError, TypeError) as error", "texts_that_make_no_sense"),
    ("her", '{*getattr(env.observation_space, "keys", tuple)()}', 'set(getattr(env.observation_space, "spaces", ()))', "every_registered_environment"),
    ("dqn", "return end if step >= duration else start + (end - start) * step / duration", "return start + (end - start) * min(step / duration, 1.0)", "flag_at_its_bound"),
    ("feudal", "goal_horizon=(1, self.num_steps)", "goal_horizon=(0, self.num_steps)", "flag_at_its_bound and feudal"),
    ("dqn", "batch_size: int = 64", "batch_size: float = 64", "wrong_kind"),
    ("dqn", "capture_video: bool = False", "capture_video: str = ''", "texts_that_make_no_sense"),
]  # fmt: skip
