"""The maths of model_based.py by hand, with models written down instead of learned; and the papers' experiments."""

import numpy as np
import pytest
import torch
from conftest import read_log

import dqn
import gridworld
import model_based

RNG = np.random.default_rng(0)


def grid_model(env, members=1, sharp=1e3):
    """The true model of a grid world as an ensemble of equal members, and all its observations (S, D)."""
    grid, known = env.unwrapped, torch.as_tensor(gridworld.observe_all(env))
    next_obs = sharp * known[torch.as_tensor(grid.next_state)]  # (S, A, D): logits of a certain outcome
    reward = torch.as_tensor(grid.reward, dtype=torch.float32)
    end = torch.as_tensor(grid.terminal[grid.next_state], dtype=torch.float32)

    def ensemble(obs, action):
        state = (obs.expand(members, -1, -1) @ known.T).argmax(dim=-1)
        action = action.expand(members, -1)
        return next_obs[state, action], reward[state, action], end[state, action]

    return ensemble, known


def written_down(*said):
    """An ensemble that says the same whatever it is asked: output (D,), reward, chance of the end, for each member."""
    output, reward, end = (torch.tensor(column, dtype=torch.float32) for column in zip(*said, strict=True))

    def ensemble(obs, action):
        b = obs.shape[-2]
        return output[:, None].expand(-1, b, -1), reward[:, None].expand(-1, b), end[:, None].expand(-1, b)

    return ensemble


def constant(value, n_actions=2):
    return lambda obs: torch.full((*obs.shape[:-1], n_actions), float(value))


def table(q_values):
    """A Q-function of one-hot observations from a table (S, A)."""
    matrix = torch.as_tensor(q_values, dtype=torch.float32)
    return lambda obs: obs @ matrix


# ----------------------------------------------------------------------------- planning


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_with_the_true_model_and_values_planning_is_optimal_at_any_horizon(short_args, horizon):
    env = short_args("model_based", layout="four_rooms", grid_size=7).make_env()
    exact = gridworld.solve(env, gamma=0.9)
    ensemble, known = grid_model(env, members=2)
    live = np.flatnonzero(~env.unwrapped.terminal)
    action, promise = model_based.plan(
        ensemble, table(exact), known[live].expand(2, -1, -1), known, horizon, 0.9, 1.0, 0.0, RNG
    )
    chosen = exact[live, action.numpy()]
    assert chosen == pytest.approx(exact[live].max(axis=1), abs=1e-5)
    assert promise.numpy() == pytest.approx(exact[live].max(axis=1), abs=1e-4)


def test_without_values_planning_needs_the_whole_path(short_args):
    """3 x 3: four steps to the goal. Horizon 4 promises it, 3 sees only three steps that cost 0.1."""
    env = short_args("model_based", grid_size=3).make_env()
    ensemble, known = grid_model(env)
    promises = {}
    for horizon in (3, 4):
        action, promise = model_based.plan(
            ensemble, constant(0.0, 4), known[None, :1], known, horizon, 0.5, 0.0, 0.0, RNG
        )
        promises[horizon] = promise.item()
        assert horizon == 3 or action.item() in (1, 2)  # right or down
    assert promises == pytest.approx({3: -0.1 * 1.75, 4: -0.1 * 1.75 + 10 / 8})


def test_return_of_a_plan_by_hand():
    """r = 1, chance of the end 1/2, gamma 1/2, Q = 8 at the end of two steps: 1 + 1/2 1/2 1 + 1/4 1/4 8."""
    ensemble, known = written_down(([1.0, 0.0], 1.0, 0.5)), torch.eye(2)
    _, promise = model_based.plan(ensemble, constant(8.0), known[None, :1], known, 2, 0.5, 0.0, 0.0, RNG)
    assert promise.item() == pytest.approx(1.0 + 0.25 + 0.5)


def test_nothing_is_counted_after_a_predicted_end():
    ensemble, known = written_down(([1.0, 0.0], -0.1, 1.0)), torch.eye(2)
    _, promise = model_based.plan(ensemble, constant(8.0), known[None, :1], known, 3, 0.9, 0.0, 0.0, RNG)
    assert promise.item() == pytest.approx(-0.1)


def gamble(obs, action):
    """Two members: action 0 pays 0 or 4 by member, action 1 pays 1.5."""
    action = action.expand(2, -1)
    pays = torch.where(action == 0, torch.tensor([[0.0], [4.0]]), torch.tensor([[1.5], [1.5]]))
    return torch.zeros(*action.shape, 2), pays, torch.ones_like(pays)


@pytest.mark.parametrize(("pessimism", "first", "promise"), [(0.0, 0, 2.0), (0.5, 1, 1.5)])
def test_pessimism_takes_deviations_over_the_members_off_their_mean(pessimism, first, promise):
    """Action 0: mean 2, deviation 2; action 1: 1.5 for sure."""
    known = torch.eye(2)
    planned = model_based.plan(gamble, constant(0.0), known[:1].expand(2, -1, -1), known, 1, 0.9, pessimism, 0.0, RNG)
    assert [tensor.item() for tensor in planned] == [first, promise]


def test_bonus_draws_the_plan_to_where_members_disagree_and_is_not_promised():
    def ensemble(obs, action):  # after action 1 the members expect different observations; all pays -1
        action = action.expand(2, -1)
        side = torch.tensor([[0, 1]]).T.expand_as(action)
        output = 1e3 * torch.nn.functional.one_hot(torch.where(action == 1, side, 0), 2).float()
        return output, -torch.ones(action.shape), torch.zeros(action.shape)

    known = torch.eye(2)
    for bonus, first in ((0.0, 0), (1.0, 1)):
        action, promise = model_based.plan(
            ensemble, table([[0.0, 0.0], [-0.4, -0.4]]), known[:1].expand(2, -1, -1), known, 1, 1.0, 0.0, bonus, RNG
        )
        assert action.item() == first
        assert promise.item() == pytest.approx([-1.0, -1.2][first])


def counted(calls):
    """A model of the sequence so far, as digits: pays 1 for the third digit 2 after first digit 3."""

    def ensemble(obs, action):
        calls.append(action.shape[-1])
        said = obs * 10 + action[..., None]
        return said - obs, (said[..., 0] % 1000 == 312).float(), torch.zeros(action.shape)

    return ensemble


def test_small_searches_are_exhaustive_and_every_first_action_is_tried():
    obs, calls = torch.zeros(1, 2, 1), []
    action, promise = model_based.plan(counted(calls), constant(0.0, 4), obs, None, 3, 1.0, 0.0, 0.0, RNG, 64)
    assert action.tolist() == [3, 3]
    assert promise.tolist() == [1.0, 1.0]
    assert calls == [8, 32, 128]  # two observations, all sequences of each in one batch
    calls.clear()
    action, _ = model_based.plan(
        lambda obs, action: (obs * 0, (action == 2).float(), torch.ones(action.shape)),
        constant(0.0, 4), obs, None, 6, 1.0, 0.0, 0.0, np.random.default_rng(1), 1,
    )  # fmt: skip
    assert action.tolist() == [2, 2]


# ----------------------------------------------------------------------------- the ensemble


def test_the_batched_ensemble_equals_its_members_one_by_one():
    torch.manual_seed(0)
    ensemble = model_based.Ensemble(3, obs_dim=4, n_actions=2)
    obs, action = torch.rand(3, 5, 4), torch.randint(2, (3, 5))
    output, reward, end = ensemble(obs, action)
    assert output.shape == (3, 5, 4)
    for e in range(3):
        for b in range(5):
            x = torch.tensor([*obs[e, b].tolist(), float(action[e, b] == 0), float(action[e, b] == 1)])
            for layer in range(3):
                x = x if layer == 0 else torch.nn.functional.silu(x)
                x = x @ ensemble.weights[layer][e] + ensemble.biases[layer][e, 0]
            said = torch.cat([output[e, b], reward[e, b, None], end[e, b, None]])
            assert torch.allclose(said, torch.cat([x[:-1], x[-1:].sigmoid()]), atol=1e-4)
    alike = ensemble(obs[0], action[0])
    assert all(
        torch.equal(x, y)
        for x, y in zip(alike, ensemble(obs[:1].expand(3, -1, -1), action[:1].expand(3, -1)), strict=True)
    )


def test_loss_of_the_categorical_head_is_minus_log_softmax_over_the_observations_seen():
    """Two cells and a key bit; the pair (cell 1, key) was never seen, so it takes no chance from the others."""
    known = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    output = torch.tensor([[[1.0, 2.0, 3.0]]], requires_grad=True)
    said = output, torch.zeros(1, 1), torch.full((1, 1), 0.25)
    loss = model_based.ensemble_loss(
        said,
        known,
        known[None, :1],
        torch.full((1, 1), 0.5),
        known[None, 1:2],
        torch.ones(1, 1),
        torch.full((1, 1), 2.0),
    )
    chance = np.exp(2.0) / (np.exp(1.0) + np.exp(2.0) + np.exp(4.0))
    assert loss.item() == pytest.approx(2.0 * (-np.log(chance) + 0.125 - np.log(0.25)), rel=1e-5)


def test_each_member_learns_with_its_own_weights_only():
    output = torch.zeros(2, 1, 1, requires_grad=True)
    said = output, torch.zeros(2, 1), torch.full((2, 1), 0.5)
    one, zero = torch.ones(2, 1), torch.zeros(2, 1)
    loss = model_based.ensemble_loss(
        said, None, zero[..., None], zero, one[..., None], zero, torch.tensor([[0.0], [3.0]])
    )
    loss.backward()
    assert output.grad.flatten().tolist() == [0.0, -6.0]  # 3 times the slope of (0 + output - 1)^2


def test_predictions_follow_the_softmax_when_sampled_and_the_mode_when_not():
    known, output = torch.eye(3), torch.log(torch.tensor([0.6, 0.3, 0.1])).expand(30_000, 3)
    torch.manual_seed(0)
    drawn = model_based.predicted_obs(output, output, known, sample=True)
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    assert torch.equal(model_based.predicted_obs(output[:1], output[:1], known), known[:1])
    assert torch.equal(model_based.predicted_obs(output[:1], torch.ones(1, 3), None), 1.0 + output[:1])


def test_disagreement_by_hand():
    known, output = torch.eye(2), 1e3 * torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert model_based.disagreement(output, output, known).item() == pytest.approx(0.5)  # 2 x variance of 0 and 1
    assert model_based.disagreement(output[:1].expand(2, -1, -1), output, known).item() == 0.0
    assert model_based.disagreement(torch.tensor([[[1.0]], [[3.0]]]), torch.zeros(1), None).item() == 1.0


# ----------------------------------------------------------------------------- targets and branches


def test_target_bootstraps_through_the_time_limit_but_not_through_termination():
    reward, terminated = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.5])
    value = torch.full((3,), 4.0, requires_grad=True)
    y = model_based.td_target(reward, terminated, value, 0.5)
    assert y.tolist() == [3.0, 1.0, 2.0]
    assert not y.requires_grad


def test_imagined_target_by_hand():
    """Members see observation 0 or 1 with chances (3/4, 1/4) and (0, 1); max Q is 4 and 8 there."""
    known, q = torch.eye(2), table([[0.0, 4.0], [8.0, 0.0]])
    ensemble = written_down(([np.log(0.75), np.log(0.25)], 1.0, 0.0), ([-1e3, 1e3], 3.0, 0.5))
    ((_, _, y),) = model_based.branch(ensemble, q, known[:1], known, 1, 0.5, 0.5)
    first, second = 1 + 0.5 * (0.75 * 4 + 0.25 * 8), 3 + 0.5 * 0.5 * 8
    assert y.item() == pytest.approx((first + second) / 2 - 0.5 * abs(first - second) / 2)


def test_branches_start_from_the_observations_given_and_follow_one_member_at_a_time():
    """Members say +1 and -1: after two steps the rows are at -2, 0 and 2, and after one never at their mean."""
    torch.manual_seed(0)
    ensemble = written_down(([1.0], 0.0, 0.0), ([-1.0], 0.0, 0.0))
    start = torch.arange(500.0)[:, None]
    steps = model_based.branch(ensemble, constant(0.0), start, None, 3, 0.9, 0.0)
    assert torch.equal(steps[0][0], start)
    moved = [(step[0] - start).flatten() for step in steps]
    assert set(moved[1].tolist()) == {-1.0, 1.0}
    assert set(moved[2].tolist()) == {-2.0, 0.0, 2.0}
    assert abs(moved[1].mean().item()) < 0.2


def test_rows_that_end_stop_and_actions_are_greedy_in_half_the_rows():
    torch.manual_seed(0)
    ensemble = written_down(([1.0], 0.0, 0.25))
    steps = model_based.branch(ensemble, table([[0.0, 1.0]]), torch.ones(4_000, 1), None, 3, 0.9, 0.0)
    assert [len(step[0]) / 4_000 for step in steps] == pytest.approx([1.0, 0.75, 0.5625], abs=0.03)
    assert steps[0][1].float().mean().item() == pytest.approx(0.75, abs=0.03)  # action 1: half, and half of the rest


# ----------------------------------------------------------------------------- a run


def spied(monkeypatch, name):
    """The arguments of every call of model_based.NAME from now on."""
    calls, function = [], getattr(model_based, name)
    monkeypatch.setattr(model_based, name, lambda *a: (calls.append(a), function(*a))[1])
    return calls


def test_members_learn_from_the_transitions_of_the_environment_each_with_its_own_sample(short_args, monkeypatch):
    """Episodes cut after 9 steps, others that reach the goal; no autoreset artefact; weights shared by no two members."""
    args = short_args("model_based", grid_size=4, max_episode_steps=9, total_timesteps=400)
    grid, calls = args.make_env().unwrapped, spied(monkeypatch, "ensemble_loss")
    model_based.train(args)
    obs, reward, next_obs, terminated, weight = (torch.cat([call[i] for call in calls], dim=1) for i in range(2, 7))
    state, next_state = obs.argmax(dim=-1).numpy(), next_obs.argmax(dim=-1).numpy()
    leads_there = grid.next_state[state] == next_state[..., None]  # (E, B, A)
    assert leads_there.any(axis=-1).all()
    assert not grid.terminal[state].any()
    assert (terminated.numpy() == grid.terminal[next_state]).all()
    assert terminated.any()
    assert np.allclose(reward.numpy(), np.where(grid.terminal[next_state], 10.0, -0.1))
    sets = [set(row.tolist()) for row in weight]
    assert sum(map(len, sets)) == len(set.union(*sets)) > 5 * 50
    assert np.mean(list(set.union(*sets))) == pytest.approx(1.0, abs=0.15)
    assert np.std(list(set.union(*sets))) == pytest.approx(1.0, abs=0.2)


def test_branches_start_from_replayed_observations(short_args, monkeypatch):
    args = short_args("model_based", grid_size=4, total_timesteps=400)
    grid, calls = args.make_env().unwrapped, spied(monkeypatch, "branch")
    model_based.train(args)
    starts = [call[2].argmax(dim=1) for call in calls]
    assert len(starts[-1]) == 4 * 2 * 96 // 3
    assert len(set(starts[-1].tolist())) >= 12  # all over the 15 cells in which the agent acts
    assert not grid.terminal[torch.cat(starts)].any()


def test_real_targets_are_those_of_the_replayed_transitions(short_args, monkeypatch):
    """Where the goal was met, and nowhere else, the transition ended; the bootstrap is the value of s', here of the goal."""
    real, td_target, branch, ends = [], model_based.td_target, model_based.branch, 0
    args = short_args("model_based", grid_size=3, total_timesteps=200)
    everywhere = torch.as_tensor(gridworld.observe_all(args.make_env()))

    def watched(reward, terminated, next_value, gamma):
        if reward.ndim == 1:  # not of an ensemble
            real.append((reward, terminated, next_value))
        return td_target(reward, terminated, next_value, gamma)

    def watched_branch(ensemble, q, *rest):
        nonlocal ends
        (reward, terminated, next_value), value = real.pop(), q(everywhere).amax(dim=1)
        assert torch.equal(terminated == 1, reward == 10)
        assert torch.isclose(next_value[:, None], value, atol=1e-6).any(dim=1).all()
        assert torch.allclose(next_value[terminated == 1], value[-1], atol=1e-6)
        ends += int(terminated.sum())
        return branch(ensemble, q, *rest)

    monkeypatch.setattr(model_based, "td_target", watched)
    monkeypatch.setattr(model_based, "branch", watched_branch)
    model_based.train(args)
    assert ends > 20


def test_without_rollouts_q_learns_from_real_transitions_alone_and_acts_at_random_at_first(short_args, monkeypatch):
    rows, plans = [], []
    loss, planner = torch.nn.functional.smooth_l1_loss, model_based.plan
    monkeypatch.setattr(model_based.F, "smooth_l1_loss", lambda q, y, **k: (rows.append(len(y)), loss(q, y, **k))[1])
    monkeypatch.setattr(model_based, "plan", lambda *a: (plans.append(a[4]), planner(*a))[1])
    agents = [
        model_based.train(short_args("model_based", horizon=0, rollout_length=0, total_timesteps=steps))
        for steps in (60, 120)
    ]
    assert set(rows) == {128}
    assert len(rows) == 8 * (1 + 16)  # from step 60 on, every 4 steps
    assert set(plans) == {0}
    weights = [agent["ensemble"].weights[1] for agent in agents]
    assert torch.equal(*weights)  # the ensemble learned nothing


def test_log_compares_prediction_and_plan_with_what_came(short_args, tmp_path):
    model_based.train(short_args("model_based", grid_size=3, total_timesteps=600, learning_starts=100))
    log = read_log(next(tmp_path.iterdir()))
    assert log["model/one_step_error"][0][1] > log["model/one_step_error"][-1][1] == 0.0
    assert log["model/disagreement"][-1][1] < 0.01
    promised, executed = log["plan/promised"][-1][1], log["plan/executed"][-1][1]
    assert executed == pytest.approx(10 * 0.95**3 - 0.1 * (1 + 0.95 + 0.95**2))
    assert promised == pytest.approx(executed, abs=0.5)


# ----------------------------------------------------------------------------- the papers' experiments


def visits(monkeypatch):
    """The (state, action) pairs that training environments (four of them) meet from now on, in order."""
    pairs, step = [], gridworld.GridWorldVectorEnv.step

    def record(self, actions):
        if self.num_envs == 4:
            pairs.extend(zip(self.states.tolist(), actions.tolist(), strict=True))
        return step(self, actions)

    monkeypatch.setattr(gridworld.GridWorldVectorEnv, "step", record)
    return pairs


def solved(log):
    """The step from which eval/score stayed at 0.95 or more, or infinity."""
    below = [step for step, score in log["eval/score"] if score < 0.95]
    return min((step for step, _ in log["eval/score"] if not below or step > below[-1]), default=np.inf)


@pytest.mark.paper
def test_fewer_real_steps_than_dqn_and_a_model_that_is_right(monkeypatch, tmp_path):
    """Real steps to a kept 0.95 on 8 x 8; the control learns at the same two updates per step, without the model.

    At the end the model is right about the pairs (s, a) that were tried.
    """
    pairs, accuracy = visits(monkeypatch), []
    steps, common = {}, {"log_dir": tmp_path, "grid_size": 8, "eval_every": 50, "eval_episodes": 2}
    runs = {
        "model": (model_based, {}),
        "control": (model_based, {"horizon": 0, "rollout_length": 0}),
        "dqn-2": (dqn, {"train_frequency": 2, "num_envs": 2, "total_timesteps": 15_000}),
        "dqn-10": (dqn, {"train_frequency": 10, "total_timesteps": 15_000}),
    }
    for name, (script, flags) in runs.items():
        for seed in (1, 2, 3):
            pairs.clear()
            args = script.Args(seed=seed, exp_name=name, **common | flags)
            agent = script.train(args)
            if name == "model":
                accuracy.append(judged(agent["ensemble"], args.make_env(), pairs)[0])
            log = read_log(next(tmp_path.glob(f"*__{name}__{seed}__*")))
            steps.setdefault(name, []).append(solved(log))
    medians = {name: float(np.median(row)) for name, row in steps.items()}
    print(f"steps to a kept 0.95 {steps}, medians {medians}; accuracy on pairs tried {accuracy}")
    assert min(accuracy) >= 0.99
    assert medians["dqn-10"] >= 3 * medians["model"]
    assert medians["dqn-2"] >= 2 * medians["model"]


@pytest.mark.paper
def test_members_disagree_where_they_have_seen_nothing(short_args, monkeypatch):
    """After 500 steps on 8 x 8 (later all pairs are tried): AUROC of disagreement, untried pairs against tried ones."""
    pairs, quality = visits(monkeypatch), []
    for seed in range(1, 6):
        pairs.clear()
        args = short_args("model_based", grid_size=8, total_timesteps=500, eval_every=0, learning_starts=100, seed=seed)
        quality.append(judged(model_based.train(args)["ensemble"], args.make_env(), pairs))
    print(f"accuracy on pairs tried, AUROC of disagreement: {np.round(quality, 4).tolist()}")
    assert min(auroc for _, auroc in quality) >= 0.9


def judged(ensemble, env, pairs) -> tuple[float, float]:
    """Share of right predictions (of all members) on the pairs tried; AUROC of disagreement, untried against tried."""
    grid, all_obs = env.unwrapped, torch.as_tensor(gridworld.observe_all(env))
    seen = {0, *(grid.next_state[pair] for pair in pairs)}
    known = all_obs[sorted(seen)]
    tried = np.array([(s, a) in set(pairs) for s in seen if not grid.terminal[s] for a in range(4)])
    state, action = np.array([(s, a) for s in seen if not grid.terminal[s] for a in range(4)]).T
    obs = all_obs[state]
    with torch.no_grad():
        output = ensemble(obs, torch.as_tensor(action))[0]
        right = model_based.predicted_obs(output, obs, known).argmax(dim=-1).numpy() == grid.next_state[state, action]
        spread = model_based.disagreement(output, obs, known).numpy()
    if tried.all():
        return right[:, tried].mean(), np.nan  # nothing to tell apart
    above = (spread[~tried, None] > spread[tried]).mean() + 0.5 * (spread[~tried, None] == spread[tried]).mean()
    return right[:, tried].mean(), above


def true_forward(env):
    """Ensemble.forward that says what the grid world does, as a change of the observation (for known = None)."""
    grid, all_obs = env.unwrapped, torch.as_tensor(gridworld.observe_all(env))
    next_obs, reward = all_obs[torch.as_tensor(grid.next_state)], torch.as_tensor(grid.reward, dtype=torch.float32)
    end = torch.as_tensor(grid.terminal[grid.next_state], dtype=torch.float32)

    def forward(self, obs, action):
        obs, action = (x.expand(len(self.biases[0]), *x.shape[-(2 - i) :]) for i, x in enumerate((obs, action)))
        state, zero = (obs @ all_obs.T).argmax(dim=-1), 0 * sum(weight.sum() for weight in self.parameters())
        return next_obs[state, action] - obs + zero, reward[state, action] + zero, end[state, action] + zero

    return forward


@pytest.mark.paper
def test_with_the_true_model_long_branches_do_no_harm(short_args, monkeypatch):
    """MBPO, section 4: mean eval/score over the first 800 steps on 6 x 6, greedy in Q (no planning).

    That short branches beat whole episodes with the learned model did not come out (5 seeds: -0.18 against 0.05): what
    decides is whether the goal was met. It is printed and not asserted.
    """
    scores, isin = [], np.isin
    evaluate = model_based.Run.play
    monkeypatch.setattr(
        model_based.Run, "play", lambda self, policy: scores.append(evaluate(self, policy)) or scores[-1]
    )
    common = {"grid_size": 6, "total_timesteps": 800, "eval_every": 25, "learning_starts": 100, "horizon": 0}
    area = {}
    for model in ("learned", "true"):
        if model == "true":
            env = short_args("model_based", **common).make_env()
            monkeypatch.setattr(model_based.Ensemble, "forward", true_forward(env))
            # Not made of zeros and ones, says this: so `known` is None, and the true change is taken as it is.
            monkeypatch.setattr(
                np, "isin", lambda a, *b, **k: np.array([False]) if isinstance(a, list) else isin(a, *b, **k)
            )
        for length in (3, 144):
            for seed in range(1, 6):
                scores.clear()
                model_based.train(short_args("model_based", rollout_length=length, seed=seed, **common))
                area.setdefault((model, length), []).append(np.mean([score["score"] for score in scores]))
    means = {key: float(np.mean(row)) for key, row in area.items()}
    print(means, {key: np.round(row, 2).tolist() for key, row in area.items()})
    assert means["true", 144] >= means["true", 3] - 0.05


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("gamma**horizon * alive[..., None] * q(obs)", "alive[..., None] * q(obs)", "return_of_a_plan_by_hand"),
    ("gamma**horizon * alive[..., None] * q(obs)", "gamma**horizon * q(obs)", "return_of_a_plan_by_hand"),
    ("gamma**t * alive * reward", "gamma**t * reward", "nothing_is_counted_after"),
    ("alive = alive * (1.0 - end)", "alive = 1.0 - end", "return_of_a_plan_by_hand"),
    ("for t in range(horizon):", "for t in range(horizon - 1):", "needs_the_whole_path"),
    ("return best // c,", "return best % n_actions,", "searches_are_exhaustive"),
    ("counted.mean(dim=0) - pessimism", "counted.mean(dim=0) + pessimism", "off_their_mean"),
    ("y.mean(dim=0) - pessimism", "y.mean(dim=0) + pessimism", "imagined_target_by_hand"),
    ("(1.0 - terminated) * next_value", "next_value", "through_termination"),
    ("weight = weight.diagonal(dim1=0, dim2=2).T", "weight = weight[..., 0]", "its_own_sample"),
    ("rng.exponential(size=(n, members))", "np.ones((n, members))", "its_own_sample"),
    ("last_obs, terminated, weight", "last_obs, ended, weight", "its_own_sample"),
    ("reward, last_obs, terminated, weight", "reward, next_obs, terminated, weight", "its_own_sample"),
    ("branch(ensemble, q, starts,", "branch(ensemble, q, replay[0][:1].expand(n_starts, -1),", "start_from_replayed"),
    ("starts, *_ = sample(n_starts)", "_, _, _, starts, *_ = sample(n_starts)", "start_from_replayed"),
    ("predicted_obs(output[member, row], obs", "predicted_obs(output.mean(dim=0), obs", "one_member_at_a_time"),
    ("chance[1] >= end[member, row]", "chance[1] >= 0.0", "rows_that_end_stop"),
    ("F.one_hot(action, self.n_actions).float()", "F.one_hot(action, self.n_actions).float().roll(1, -1)", "equals_its_members"),
    ("(output @ known.T).softmax(dim=-1) @ next_value", "next_value.mean().expand(output.shape[:2])", "imagined_target_by_hand"),
    ("+ gamma**horizon * alive[..., None] * q(obs))", "+ 0 * q(obs))", "true_model_and_values"),
    ("gamma**t * alive * reward\n", "gamma**t * alive * reward * (t == 0)\n", "needs_the_whole_path"),
    ("        obs = predicted_obs(output, obs, known)\n    total", "        obs = predicted_obs(output.mean(dim=0).expand_as(output), obs, known)\n    total", "bonus_draws_the_plan"),
    ("q(b_next_obs).amax(dim=1)", "q(b_obs).amax(dim=1)", "real_targets"),
    ("td_target(b_reward, b_terminated, q(", "td_target(b_reward, 0 * b_terminated, q(", "real_targets"),
    ("act(obs, 0.0, args.exploration_bonus, rng)", "act(obs, args.pessimism, 0.0, rng)", "its_own_sample"),
]  # fmt: skip
