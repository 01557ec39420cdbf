"""The teachers by hand, the levels that they set, and the experiments of the papers."""

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
import torch
from conftest import read_log

import curriculum
import dqn
import gridworld

SAME = "td_target td_loss linear_schedule times_due QNetwork ReplayBuffer".split()


@pytest.mark.parametrize("name", SAME)
def test_the_learner_is_dqn(name):
    """tests/test_dqn.py works these out by hand."""
    assert inspect.getsource(getattr(curriculum, name)) == inspect.getsource(getattr(dqn, name))


def test_without_a_teacher_it_is_dqn_to_the_weight(short_args):
    task = {"random_start": True, "slip": 0.1}
    args = short_args("curriculum", teacher="none", anneal_lr=False, **task)
    mine = curriculum.train(args)
    flags = {f.name: getattr(args, f.name) for f in dataclasses.fields(dqn.Args) if f.name != "exp_name"}
    other = dqn.train(dqn.Args(**flags))
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


# ----------------------------------------------------------------------------- the teachers


def test_slope_over_uneven_times_by_hand():
    # t - mean t = -2, -1, 3 and x - mean x = -1, 0, 1: (2 + 0 + 3) / (4 + 1 + 9); as if evenly spaced it would be 1
    assert curriculum.slope([0, 1, 5], [0, 1, 2]) == pytest.approx(5 / 14)
    assert curriculum.slope([10, 12, 14], [1.0, 0.5, 0.0]) == pytest.approx(-0.25)


@pytest.mark.parametrize("times", [[3], [3, 3]])
def test_slope_is_unknown_at_one_time(times):
    assert curriculum.slope(times, [0.0, 1.0][: len(times)]) == np.inf


def test_the_fastest_progress_is_chosen_and_a_forgotten_level_comes_back():
    chances = curriculum.progress_distribution(np.array([0.1, -0.5, 0.2, 0.0]), 0.2)
    assert chances.tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])  # 0.8 for the steepest, 0.2 / 4 for each


def test_levels_of_equal_progress_are_alike_and_untried_ones_come_first():
    assert curriculum.progress_distribution(np.zeros(4), 0.0).tolist() == [0.25] * 4
    assert curriculum.progress_distribution(np.array([0.9, np.inf, np.inf]), 0.0).tolist() == [0, 0.5, 0.5]


def test_review_is_of_easier_levels():
    assert curriculum.review_distribution(3, 5, 0.3).tolist() == pytest.approx([0.1, 0.1, 0.1, 0.7, 0])
    assert curriculum.review_distribution(0, 3, 0.3).tolist() == [1, 0, 0]


def test_timetable_gives_all_levels_but_the_last_equally_long():
    levels = [curriculum.manual_level(step, 100, 5) for step in (0, 24, 25, 50, 99, 100, 5_000)]
    assert levels == [0, 0, 1, 2, 3, 4, 4]
    assert curriculum.manual_level(0, 0, 5) == 4


@pytest.mark.parametrize(
    ("level", "successes", "then"),
    [
        (2, 10 * [1], 3),
        (2, 8 * [1] + 2 * [0], 3),  # exactly at the bound
        (2, 7 * [1] + 3 * [0], 2),
        (2, 3 * [1] + 7 * [0], 2),  # not below the bound
        (2, 2 * [1] + 8 * [0], 1),
        (2, 9 * [1], 2),  # the window is not full
        (2, 9 * [0], 2),
        (0, 10 * [0], 0),
        (4, 10 * [1], 4),
    ],
)
def test_threshold(level, successes, then, short_args):
    assert curriculum.threshold_level(level, successes, short_args("curriculum"), 5) == then


def teacher_of(short_args, kind, n_levels=4, **flags):
    return curriculum.Teacher(short_args("curriculum", teacher=kind, **flags), n_levels)


def test_successes_count_for_one_level_and_anew_after_a_change(short_args):
    teacher = teacher_of(short_args, "threshold", window=3)
    history = []
    for level, success in [
        (0, 1), (0, 1), (0, 1),  # three of three: up
        (0, 0), (0, 1), (0, 1),  # on another level: nothing
        (1, 1), (1, 1), (1, 0),  # two of three: stays
        (1, 0), (1, 0),  # none of the last three: down, where the old successes are forgotten
        (0, 1), (0, 1), (0, 1),  # so three are needed again
        (1, 1), (1, 1), (1, 1),  # and here, too
    ]:  # fmt: skip
        teacher.hear(level, bool(success))
        history.append(teacher.level)
    assert history == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("kind", "chances"),
    [
        ("none", [0, 0, 0, 1]),
        ("uniform", [0.25] * 4),
        ("manual", [0.05, 0.05, 0.9, 0]),
        ("threshold", [1, 0, 0, 0]),
        ("learning-progress", [0.25] * 4),
    ],
)
def test_first_choice_of_each_teacher(kind, chances, short_args):
    teacher = teacher_of(short_args, kind, total_timesteps=400, exploration_fraction=0.5, review=0.1)
    teacher.step = 150
    assert teacher.distribution().tolist() == pytest.approx(chances)
    drawn = np.bincount([teacher.choose() for _ in range(2_000)], minlength=4) / 2_000
    assert drawn.tolist() == pytest.approx(chances, abs=0.04)
    assert (
        np.bincount([level for step, level in teacher.lessons if step == 150], minlength=4).tolist()
        == (drawn * 2_000).tolist()
    )


def test_learning_progress_goes_by_steps_not_by_episodes(short_args):
    """Level 1 rose in fewer episodes, level 0 in fewer steps."""
    teacher = teacher_of(short_args, "learning-progress", n_levels=2, review=0.0)
    for step, level, success in [(10, 0, 0), (12, 0, 0), (14, 0, 1), (20, 1, 0), (90, 1, 1)]:
        teacher.step = step
        teacher.hear(level, bool(success))
    assert teacher.distribution().tolist() == [1, 0]


# ----------------------------------------------------------------------------- the levels


def test_distances_by_hand():
    """A trap is no goal; cells cut off from the start have no distance, though the goal can be reached from there."""
    env = curriculum.Args(layout="S..G.\n.X##.\n.....\n#####\n.....\n").make_env()
    distance, reward = curriculum.start_distances(env.unwrapped.P, env.unwrapped.initial_state_distrib)
    inf = np.inf
    assert reward == 10
    # Row 0: S 3, 2, 1, G, and the cell behind G at 1; row 1: 4, trap, 2; row 2: 5, 6, 5, 4, 3; row 4 is cut off.
    expected = [3, 2, 1, inf, 1, 4, inf, 2, 5, 6, 5, 4, 3, *[inf] * 5]
    assert distance.tolist() == expected


def test_distances_count_the_key():
    env = curriculum.Args(layout="S.K#\n..DG\n").make_env()
    distance, _ = curriculum.start_distances(env.unwrapped.P, env.unwrapped.initial_state_distrib)
    grid = env.unwrapped
    assert distance[grid.start_states[0]] == 4  # right, right (the key), down (the door), right
    with_key = {tuple(grid.cells[grid.cell_of[s]]): distance[s] for s in np.flatnonzero(grid.key_of == 1)}
    assert with_key[0, 2] == 2
    without = {tuple(grid.cells[grid.cell_of[s]]): distance[s] for s in np.flatnonzero(grid.key_of == 0)}
    assert without[1, 2] == np.inf  # nobody is in the door without the key


def classroom_of(args):
    """A classroom of all levels, its plan, and a teacher that tests command."""
    plan, goal_reward = curriculum.plan_levels(args)
    teacher = curriculum.Teacher(args, len(plan))
    return curriculum.Classroom(args, plan, goal_reward, teacher), plan, teacher


def starts_of(room, teacher, level, monkeypatch, n=200):
    """The states in which n episodes of that level start."""
    monkeypatch.setattr(teacher, "choose", lambda: level)
    room.reset(seed=1)
    grid, states = room.levels[level].unwrapped, []
    for _ in range(n):
        room.reset()
        states.append(getattr(grid, "state", None) if hasattr(grid, "state") else int(grid.s))
    return np.unique(states)


def test_starts_move_away_from_the_goal(short_args, monkeypatch):
    """Dyna maze, 14 steps: of 4 levels the first three start 1-4, 5-7 and 8-10 steps away (rounded), the last at S."""
    args = short_args("curriculum", layout="dyna_maze", grid_size=None, num_levels=4)
    room, plan, teacher = classroom_of(args)
    distance, _ = curriculum.start_distances(
        room.levels[-1].unwrapped.P, room.levels[-1].unwrapped.initial_state_distrib
    )
    assert len(plan) == 4
    for level, (low, high) in enumerate([(0, 4), (4, 7), (7, 10)]):
        starts = starts_of(room, teacher, level, monkeypatch)
        assert set(starts) == set(np.flatnonzero((distance > low) & (distance <= high)))
        assert room.levels[level].spec.max_episode_steps == 20 + 4 * high
    assert starts_of(room, teacher, 3, monkeypatch).tolist() == room.levels[-1].unwrapped.start_states.tolist()
    assert room.levels[-1].spec.max_episode_steps == args.make_env().spec.max_episode_steps == 216


def test_other_tables_have_levels_too(short_args, monkeypatch):
    """FrozenLake: its goal is six steps away. Holes are no goal."""
    room, plan, teacher = classroom_of(short_args("curriculum", env_id="FrozenLake-v1", grid_size=None, num_levels=3))
    assert len(plan) == 3
    assert starts_of(room, teacher, 0, monkeypatch).tolist() == [10, 13, 14]
    assert starts_of(room, teacher, 1, monkeypatch).tolist() == [2, 6, 8, 9]
    assert starts_of(room, teacher, 2, monkeypatch).tolist() == [0]


def test_a_level_of_fewer_distances_than_asked_for(short_args):
    assert len(curriculum.plan_levels(short_args("curriculum", grid_size=2, num_levels=10))[0]) == 2
    assert curriculum.plan_levels(short_args("curriculum", teacher="none"))[0] == [({}, None)]


def maps_of(args):
    room, _, _ = classroom_of(args)
    return room, ["\n".join("".join(row) for row in env.unwrapped.map).replace("D", "#") for env in room.levels]


def test_smaller_grids_lie_in_the_corner_of_the_goal(short_args):
    _, maps = maps_of(short_args("curriculum", levels="size", grid_size=4, num_levels=3))
    assert maps[0] == "####\n####\n##S.\n##.G"
    assert maps[1] == "####\n#S..\n#...\n#..G"
    assert maps[2] == "S...\n....\n....\n...G"
    room, maps = maps_of(short_args("curriculum", levels="size", layout="maze", grid_size=11, num_levels=2))
    assert [len(room.levels), room.levels[0].spec.max_episode_steps] == [2, 4 * 7 * 7]
    small = gridworld.layout_rows("maze", 7, 0)
    assert [row[4:] for row in maps[0].split("\n")[4:]] == small


def test_walls_are_added_and_stay(short_args):
    args = short_args("curriculum", levels="walls", layout="four_rooms", grid_size=13, num_levels=5)
    _, maps = maps_of(args)
    walls = [{i for i, symbol in enumerate(text) if symbol == "#"} for text in maps]
    assert [len(each) for each in walls] == [0, 16, 32, 49, 65]
    assert all(fewer < more for fewer, more in itertools.pairwise(walls))
    assert maps[-1] == "\n".join(gridworld.layout_rows("four_rooms", 13))


@pytest.mark.parametrize("flags", [{"levels": "size", "grid_size": 4}, {"levels": "walls", "layout": "S.\n#.\n.G\n"}])
def test_the_same_cell_looks_the_same_on_every_level(flags, short_args, monkeypatch):
    args = short_args("curriculum", **{"grid_size": None} | flags)
    room, _, _ = classroom_of(args)
    seen = {}
    for env in room.levels:
        for state in np.flatnonzero(~env.unwrapped.terminal):
            env.unwrapped.start_states = np.array([state])
            obs, _ = env.reset()
            cell = tuple(env.unwrapped.cells[env.unwrapped.cell_of[state]].tolist())
            assert seen.setdefault(cell, tuple(obs.tolist())) == tuple(obs.tolist())
    assert len(set(seen.values())) == len(seen)
    assert room.observation_space == args.make_env().observation_space
    assert room.observation_space == args.make_vec(2).single_observation_space


def test_success_is_the_goal_alone(short_args, monkeypatch):
    """S between a trap and the goal; one way each, and a cut by the time limit."""
    args = short_args("curriculum", layout="XSG\n...\n", grid_size=None, max_episode_steps=2)
    room, _, teacher = classroom_of(args)
    heard = []
    monkeypatch.setattr(teacher, "choose", lambda: 0)
    monkeypatch.setattr(teacher, "hear", lambda level, success: heard.append((level, success)))
    for actions in [3], [1], [0, 0]:
        room.reset()
        for action in actions:
            room.step(action)
    assert heard == [(0, False), (0, True), (0, False)]


# ----------------------------------------------------------------------------- a run


def run_and_spy(args, monkeypatch):
    """The replay buffer and the teacher at the end of a run, and what its evaluations showed first: (n, D)."""
    kept, first = [], []
    with monkeypatch.context() as patch:
        for name in "ReplayBuffer", "Teacher", "Run":
            cls = getattr(curriculum, name)
            make = cls.__init__
            patch.setattr(cls, "__init__", lambda self, *a, make=make: (make(self, *a), kept.append(self))[0])
        play = curriculum.Run.play
        patch.setattr(
            curriculum.Run,
            "play",
            lambda self, policy: play(self, lambda obs, start: (first.extend(obs[start]), policy(obs, start))[1]),
        )
        curriculum.train(args)
    kept = {type(each).__name__: each for each in kept}
    return kept["ReplayBuffer"], kept["Teacher"], kept["Run"], np.array(first)


def test_every_step_counts_and_the_task_alone_is_evaluated(short_args, monkeypatch, tmp_path):
    args = short_args("curriculum", layout="dyna_maze", grid_size=None, teacher="uniform", max_episode_steps=40)
    buffer, teacher, run, first = run_and_spy(args, monkeypatch)
    grid = args.make_env().unwrapped
    assert len(buffer) == 1_200  # all steps are replayed, and
    assert {level for _, level in teacher.lessons} == {0, 1, 2, 3}  # they were made on all levels
    assert 1_100 < teacher.lessons[-1][0] <= 1_200  # the teacher counts them, too
    assert (first.argmax(axis=1) == grid.start_states[0]).all()
    assert run.eval_envs.max_episode_steps == run.env.spec.max_episode_steps == 40
    log = read_log(next(tmp_path.iterdir()))
    assert log["run/completed"] == [(1_200, 1_200.0)]
    assert {f"curriculum/{tag}_{i:02}" for tag in ("chance", "success") for i in range(1, 5)} | {
        "curriculum/level"
    } <= set(log)
    assert {"pictures/policy", "pictures/teacher"} <= set(log["images"])


def test_stored_transitions_are_those_of_the_environment(short_args, monkeypatch):
    """On all levels: none starts at a terminal observation, none leads from an episode's end to a start."""
    args = short_args("curriculum", max_episode_steps=9, grid_size=4, total_timesteps=2_000, teacher="uniform")
    buffer, *_ = run_and_spy(args, monkeypatch)
    grid, n = args.make_env().unwrapped, len(buffer)
    state, next_state = buffer.obs[:n].argmax(1).numpy(), buffer.next_obs[:n].argmax(1).numpy()
    action, terminated = buffer.action[:n].numpy(), buffer.terminated[:n].numpy()
    assert not grid.terminal[state].any()
    assert (next_state == grid.next_state[state, action]).all()
    assert np.allclose(buffer.reward[:n], grid.reward[state, action])
    assert (terminated == grid.terminal[next_state]).all()


@pytest.mark.parametrize(("levels", "layout"), [("size", "four_rooms"), ("walls", "maze")])
def test_other_levels_run(levels, layout, short_args, tmp_path):
    curriculum.train(
        short_args("curriculum", levels=levels, layout=layout, grid_size=9, num_levels=3, capture_video=True)
    )
    assert "eval/score" in read_log(next(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"env_id": "CartPole-v1"}, "--env-id CartPole-v1 has no table P"),
        ({"levels": "size", "layout": "dyna_maze"}, "--levels size needs a --layout that has sizes, got 'dyna_maze'"),
        ({"levels": "walls", "env_id": "FrozenLake-v1"}, "--levels walls needs GridWorld-v0"),
        ({"levels": "size", "random_goal": True}, "--levels size needs GridWorld-v0, without --random-goal"),
        ({"levels": "size", "layout": "key_door"}, "--levels size needs .* without keys"),
        ({"levels": "walls"}, "--levels walls needs a map with walls"),
        ({"fall_back": 0.9}, "--fall-back must be between 0 and 0.8, got 0.9"),
        ({"window": 1}, "--window must be between 2"),
    ],
)
def test_what_cannot_be_is_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        curriculum.Args(**flags)


# ----------------------------------------------------------------------------- the papers' experiments


def open_lock(kind, n, seed, most=400_000, distractors=0, **flags):
    """The teacher after a tabular Q-learner found the code of a lock with n positions; its `step` says how long it took.

    Four actions, a wrong one ends the episode, the last right one pays 1; alpha .1, epsilon .1, gamma .9. Level i starts
    i positions before the last one. Before these levels come `distractors`, on which one step passes and nothing is won.
    """
    teacher = curriculum.Teacher(
        curriculum.Args(teacher=kind, seed=seed, total_timesteps=most, **flags), n + distractors
    )
    rng, q = np.random.default_rng(seed), np.zeros((n, 4))
    code, positions = rng.integers(4, size=n), np.arange(n)
    wrong = np.arange(4) != code[:, None]
    while teacher.step < most and not (q[positions, code] > np.where(wrong, q, -1).max(axis=1)).all():
        level = teacher.choose()
        if level < distractors:
            teacher.step += 1
            teacher.hear(level, False)
            continue
        position, goes_on = n - 1 - (level - distractors), True
        while goes_on:
            best = np.flatnonzero(q[position] == q[position].max())
            action = int(rng.integers(4)) if rng.random() < 0.1 else int(best[rng.integers(len(best))])
            right = action == code[position]
            opened = right and position == n - 1
            goes_on = right and not opened
            y = float(opened) + (0.9 * q[position + 1].max() if goes_on else 0.0)
            q[position, action] += 0.1 * (y - q[position, action])
            teacher.step, position = teacher.step + 1, position + 1
        teacher.hear(level, bool(opened))
    return teacher


@pytest.mark.paper
def test_combination_lock():
    """With the right policy exploration still spoils .46 of the episodes from the first of 8 positions, hence .5.

    TSCL does not beat uniform starts here, nor does the threshold by much: any start near the end solves the lock.
    """
    kinds = {"none": {}, "uniform": {}, "threshold": {"advance": 0.5}, "learning-progress": {}}
    steps = {
        (kind, n): [open_lock(kind, n, seed, **flags).step for seed in range(1, 11)]
        for n in (8, 12)
        for kind, flags in kinds.items()
        if (kind, n) != ("none", 12)
    }
    steps["none", 12] = [open_lock("none", 12, seed, most=200_000).step for seed in range(1, 4)]
    for (kind, n), each in steps.items():
        print(f"n={n:2} {kind:18} median {np.median(each):8.0f}  from {min(each)} to {max(each)}")
    median = {key: np.median(each) for key, each in steps.items()}
    assert median["none", 8] >= 40 * median["threshold", 8]
    assert median["none", 8] >= 8 * median["learning-progress", 8]
    assert min(steps["none", 12]) >= 200_000
    assert max(steps["threshold", 12]) <= 5_000


@pytest.mark.paper
def test_learning_progress_avoids_what_cannot_be_learned():
    """A lock of 8 positions among 24 levels on which nothing can be learned: uniform gives the lock a quarter."""
    shares = {}
    for kind in "uniform", "learning-progress":
        teachers = [open_lock(kind, 8, seed, distractors=24) for seed in range(1, 11)]
        shares[kind] = [np.mean([level >= 24 for _, level in teacher.lessons]) for teacher in teachers]
        steps = [teacher.step for teacher in teachers]
        print(f"{kind:18} share {np.round(shares[kind], 2)}, median {np.median(steps):.0f} steps")
    assert np.mean(shares["learning-progress"]) >= 2 * np.mean(shares["uniform"])
    assert min(shares["learning-progress"]) > max(shares["uniform"])


@pytest.mark.paper
def test_a_goal_that_nobody_finds_by_chance(tmp_path):
    """Maze 11 with 36 steps to the goal, a reward only there, 60 steps of time: the task alone is never solved."""
    task = {"layout": "maze", "step_reward": 0.0, "max_episode_steps": 60, "eval_every": 0}
    env = curriculum.Args(**task).make_env()
    assert gridworld.random_return(env) < 1e-8  # of 10: less than one episode in 1e9 meets the goal
    score = {}
    for kind, seed in itertools.product(("none", "threshold", "learning-progress"), (1, 2)):
        curriculum.train(curriculum.Args(teacher=kind, seed=seed, log_dir=tmp_path / kind, **task))
        (folder,) = (tmp_path / kind).glob(f"*__{seed}__*")
        score[kind, seed] = read_log(folder)["eval/score"][-1][1]
    print({key: round(value, 3) for key, value in score.items()})
    assert {value > 0.99 for (kind, _), value in score.items() if kind != "none"} == {True}
    assert {abs(value) < 0.01 for (kind, _), value in score.items() if kind == "none"} == {True}


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("self.windows[self.level].clear()", "pass", "anew_after_a_change"),
    ('and level == self.level:', 'and level <= self.level:', "anew_after_a_change"),
    ("self.windows[level].append((self.step, success))", "self.windows[self.level].append((self.step, success))", "anew_after_a_change"),
    ("    if len(successes) < args.window:\n        return level\n", "    if len(successes) == 0:\n        return level\n", "test_threshold"),
    (">= args.advance", "> args.advance", "test_threshold"),
    ("< args.fall_back", "<= args.fall_back", "test_threshold"),
    ("- int(np.mean(successes) < args.fall_back)", "", "test_threshold"),
    ("min(max(level + change, 0), n_levels - 1)", "(level + change) % n_levels", "test_threshold"),
    ("steepest = np.abs(slopes) == np.abs(slopes).max()", "steepest = slopes == slopes.max()", "forgotten_level_comes_back"),
    ("(1 - epsilon) * steepest / steepest.sum()", "(1 - epsilon) * steepest", "equal_progress_are_alike"),
    ("t = np.array(times) - np.mean(times)", "t = np.arange(len(times)) - np.mean(np.arange(len(times)))", "uneven_times"),
    ("(np.array(scores) - np.mean(scores)) / (t @ t)", "(np.array(scores) - np.mean(scores)) / len(t)", "uneven_times"),
    ("    if len(set(times)) < 2:\n        return np.inf\n", "    if len(set(times)) < 2:\n        return 0.0\n", "unknown_at_one_time"),
    ("self.windows[level].append((self.step, success))", "self.windows[level].append((len(self.windows[level]), success))", "by_steps_not_by_episodes"),
    ("chances[:level] = review / max(level, 1)", "chances[:] = review / n_levels", "review_is_of_easier"),
    ("chances[:level] = review / max(level, 1)", "pass", "review_is_of_easier"),
    ("int(step / duration * (n_levels - 1))", "int(step / duration * n_levels)", "timetable"),
    ("np.where(reward == best, 1, np.inf)", "1", "distances_by_hand"),
    ("return np.where(met, distance, np.inf), best", "return distance, best", "distances_by_hand or count_the_key"),
    ("met[target[met[source] & ~ends]] = True", "met[:] = True", "distances_by_hand or count_the_key"),
    ("(low < distance) & (distance <= high)", "distance <= high", "starts_move_away"),
    ("    return [*plan, ({}, None)], goal_reward", "    return plan, goal_reward", "starts_move_away"),
    ("bool(terminated and reward >= self.goal_reward)", "bool(terminated)", "success_is_the_goal_alone"),
    ("bool(terminated and reward >= self.goal_reward)", "bool(terminated or truncated)", "success_is_the_goal_alone"),
    ('return "\\n".join(walls).replace("#", "D")', 'return "\\n".join(walls)', "same_cell_looks_the_same"),
    ("opened[tuple(walls[kept:].T)]", "opened[tuple(walls[:kept].T)]", "walls_are_added"),
    ('["#" * edge + "".join(row) for row in rows]', '["".join(row) + "#" * edge for row in rows]', "corner_of_the_goal"),
    ("teacher.step = step\n", "teacher.step = 0\n", "every_step_counts"),
    ("        if seed is None:\n            return self.levels[self.level].reset()\n        return [env.reset(seed=seed)", "        if seed is None:\n            return self.levels[0].reset()\n        return [env.reset(seed=seed)", "starts_move_away"),
    ("buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, next_obs, terminated)", "are_those_of_the_environment"),
    ("(1.0 - terminated) * next_q", "next_q", "the_learner_is_dqn"),
    ("buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, last_obs, ended)", "are_those_of_the_environment"),
    ("with Run(args) as run:", "with Run(dataclasses.replace(args, random_start=True)) as run:", "task_alone"),
]  # fmt: skip
