"""The maths of options_critic.py by hand and by finite differences, and the paper's moving goal."""

import runpy

import numpy as np
import pytest
import torch
from conftest import ROOT, read_log

import gridworld
import options_critic


def test_value_upon_arrival_mixes_going_on_and_choosing_anew():
    next_q = torch.tensor([[2.0, 6.0], [2.0, 6.0], [2.0, 6.0]])
    next_beta = torch.tensor([[0.25, 0.9], [0.25, 0.9], [1.0, 0.0]])
    option = torch.tensor([0, 1, 0])  # 0.75 * 2 + 0.25 * 6; going on with the best option; ending for certain
    assert options_critic.value_upon_arrival(next_q, next_beta, option).tolist() == pytest.approx([3.0, 6.0, 6.0])


def test_target_bootstraps_through_the_time_limit_but_not_through_termination():
    target = options_critic.option_target(
        torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([4.0, 4.0]), 0.5
    )
    assert target.tolist() == [3.0, 1.0]


def test_no_gradient_reaches_the_target():
    value = torch.ones(1, requires_grad=True)
    assert not options_critic.option_target(torch.zeros(1), torch.zeros(1), value, 0.9).requires_grad


def test_pick_takes_the_entries_of_each_rows_option():
    values = torch.arange(12.0).view(2, 3, 2)
    assert options_critic.pick(values, torch.tensor([2, 0])).tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_policy_loss_is_minus_log_probability_times_advantage():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    q = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = options_critic.policy_loss(log_prob, torch.tensor([3.0, 0.0]), q)
    assert loss.item() == pytest.approx(-(-1.0 * 2.0 + -2.0 * -1.0) / 2)
    loss.backward()
    assert log_prob.grad.tolist() == [-1.0, 0.5]  # a good action is made likelier by descent
    assert q.grad is None


def test_termination_loss_by_hand():
    next_q = torch.tensor([[2.0, 6.0], [2.0, 6.0], [2.0, 6.0]], requires_grad=True)
    next_beta = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]], requires_grad=True)
    option, terminated = torch.tensor([0, 1, 0]), torch.tensor([0.0, 0.0, 1.0])
    loss = options_critic.termination_loss(next_beta, next_q, option, terminated, cost=0.5)
    assert loss.item() == pytest.approx((0.5 * (2 - 6 + 0.5) + 0.25 * (0 + 0.5) + 0.0) / 3)
    loss.backward()
    assert next_q.grad is None  # the advantage is a constant of this loss
    # descent raises beta of the worse option, lowers that of the best one, and leaves the terminated row alone
    assert next_beta.grad.flatten().tolist() == pytest.approx([-3.5 / 3, 0, 0, 0.5 / 3, 0, 0])


def test_gradient_of_the_termination_logit():
    """d loss / d logit = beta (1 - beta) (A + xi) / B."""
    logit = torch.tensor([[0.3, -1.2]], dtype=torch.float64, requires_grad=True)
    next_q = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    options_critic.termination_loss(logit.sigmoid(), next_q, torch.tensor([0]), torch.zeros(1), 0.1).backward()
    beta = logit[0, 0].sigmoid().item()
    assert logit.grad[0].tolist() == pytest.approx([beta * (1 - beta) * (1.0 - 4.0 + 0.1), 0.0])


def test_intra_option_policy_gradient_by_finite_differences():
    """E_pi[-d policy_loss / d theta] equals the derivative of sum_a pi(a) Q_U(a), whatever the baseline."""
    theta = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    q_u, q = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64)
    pi = theta.softmax(0).detach()
    loss = sum(
        p * options_critic.policy_loss(theta.log_softmax(0)[a : a + 1], q_u[a : a + 1], q[:1]) for a, p in enumerate(pi)
    )
    (gradient,) = torch.autograd.grad(-loss, theta)
    step = 1e-6
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        value = [((theta.detach() + sign * shift).softmax(0) * q_u).sum().item() for sign in (1, -1)]
        assert gradient[i].item() == pytest.approx((value[0] - value[1]) / (2 * step), abs=1e-6)


def test_each_loss_reaches_its_own_part_of_the_network():
    torch.manual_seed(0)
    network = options_critic.OptionCritic(obs_dim=6, n_actions=4, n_options=3)
    obs, option = torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])

    def reached(loss):
        names = [name for name, _ in network.named_parameters()]
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        return {name.split(".")[0] for name, g in zip(names, gradients, strict=True) if g is not None and g.any()}

    (log_pi, beta), q = network.act(obs), network.q(obs)
    assert log_pi.shape == (5, 3, 4)
    assert beta.shape == q.shape == (5, 3)
    assert torch.allclose(log_pi.exp().sum(2), torch.ones(5, 3))
    assert reached(options_critic.termination_loss(beta, q, option, torch.zeros(5), 0.1)) == {"termination_head"}
    assert reached(options_critic.policy_loss(log_pi[:, 0, 0], torch.ones(5), q[:, 0])) == {"actor", "policy_head"}
    target = options_critic.option_target(
        torch.zeros(5), torch.zeros(5), options_critic.value_upon_arrival(q, beta, option), 0.9
    )
    loss = torch.nn.functional.mse_loss(options_critic.pick(q, option), target)
    assert reached(loss) == {"critic", "q_head"}


def test_actions_are_drawn_from_the_policy_and_options_go_on_until_they_end(short_args, monkeypatch):
    """Rows of the rollout: an option changes only where beta or an episode's end stopped it."""
    seen = []
    loss = options_critic.termination_loss
    monkeypatch.setattr(options_critic, "termination_loss", lambda *a: (seen.append(a), loss(*a))[1])
    monkeypatch.setattr(options_critic.OptionCritic, "act", never_ending(options_critic.OptionCritic.act), raising=True)
    options_critic.train(short_args("options_critic", num_envs=1, num_steps=20, total_timesteps=400, grid_size=4))
    option = torch.cat([a[2] for a in seen]).numpy()
    ended = torch.cat([a[3] for a in seen]).numpy() == 1
    # With beta = 0, only an episode's end (here: termination, the limit of 64 steps aside) lets the option change.
    changed = np.flatnonzero(option[1:] != option[:-1])
    cut = np.flatnonzero(ended)
    assert len(cut) > 0
    assert all(i in cut or i >= 63 for i in changed)


def test_actions_and_options_are_drawn_with_their_chances(short_args, monkeypatch):
    """Actions from pi; options greedily but for epsilon, whose draw is of all options. The best option is number 1."""
    pi, actions, options = torch.tensor([0.1, 0.2, 0.3, 0.4]), [], []
    act, step, loss = (
        options_critic.OptionCritic.act, gridworld.GridWorldVectorEnv.step, options_critic.termination_loss
    )  # fmt: skip

    def known(self, obs):
        log_pi, beta = act(self, obs)
        return 0.0 * log_pi + pi.log(), 0.0 * beta + 0.5

    monkeypatch.setattr(options_critic.OptionCritic, "act", known)
    monkeypatch.setattr(
        options_critic.OptionCritic,
        "q",
        lambda self, obs: 0.0 * self.q_head(self.critic(obs)) + torch.arange(4.0) % 2.5,
    )
    monkeypatch.setattr(gridworld.GridWorldVectorEnv, "step", lambda self, a: (actions.append(a), step(self, a))[1])
    monkeypatch.setattr(options_critic, "termination_loss", lambda *a: (options.append(a[2]), loss(*a))[1])
    args = short_args("options_critic", total_timesteps=4_000, start_e=0.4, end_e=0.4, eval_every=0, num_options=4)
    options_critic.train(args)
    share = np.bincount(np.concatenate(actions[:1_000]), minlength=4) / 4_000
    assert share.tolist() == pytest.approx(pi.tolist(), abs=0.03)
    used = np.bincount(torch.cat(options), minlength=4) / 4_000
    assert used.tolist() == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.05)  # 0, 1, 2, 0.5: the best is number 2


def test_greedy_policy_keeps_an_option_until_it_is_more_likely_to_end_than_not(short_args, monkeypatch):
    """Cell s has best option s; options end with chance 0.9 from cell 2 on, before it with 0.1. Option k does action k."""
    policies, play = [], options_critic.Run.play
    monkeypatch.setattr(
        options_critic.Run, "play", lambda self, policy: (policies.append(policy), play(self, policy))[1]
    )
    args = short_args("options_critic", grid_size=2, total_timesteps=40, num_options=4, eval_every=0)
    options_critic.train(args)

    def act(self, obs):
        log_pi = torch.eye(4).expand(len(obs), 4, 4)
        return log_pi, (0.1 + 0.8 * (obs.argmax(dim=1) >= 2).float())[:, None].expand(-1, 4)

    monkeypatch.setattr(options_critic.OptionCritic, "act", act)
    monkeypatch.setattr(options_critic.OptionCritic, "q", lambda self, obs: obs)
    cells, ended = [0, 1, 2, 1, 1], [True, False, False, False, True]
    obs = np.eye(4, dtype=np.float32)
    taken = [policies[0](obs[[s, s]], np.array([start] * 2))[0] for s, start in zip(cells, ended, strict=True)]
    assert taken == [0, 0, 2, 2, 1]


def test_every_part_is_taught_by_its_loss(short_args):
    """Without the entropy, too, which teaches the actor on its own."""
    args = short_args("options_critic", start_ent_coef=0.0, end_ent_coef=0.0, eval_every=0)
    network = options_critic.train(args)
    torch.manual_seed(args.seed)
    fresh = dict(options_critic.OptionCritic(25, 4, args.num_options).named_parameters())
    assert not [part for part, parameter in network.named_parameters() if torch.equal(parameter, fresh[part])]


@pytest.mark.parametrize("flags", [{"max_grad_norm": 0.0}, {"start_ent_coef": 10.0, "end_ent_coef": 10.0}])
def test_gradients_are_clipped_and_entropy_is_sought(flags, short_args, tmp_path):
    """A norm of 0 lets nothing be learned, though the loss is there; a large weight of entropy keeps policies uniform."""
    args = short_args("options_critic", learning_rate=0.01, **flags)
    network = options_critic.train(args)
    if "max_grad_norm" in flags:
        torch.manual_seed(args.seed)
        fresh = options_critic.OptionCritic(25, 4, args.num_options)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))
    else:
        log = read_log(next(tmp_path.iterdir()))
        assert min(value for _, value in log["losses/entropy"]) > 1.3  # of at most 1.386


def never_ending(act):
    def patched(self, obs):
        log_pi, beta = act(self, obs)
        return log_pi, beta * 0.0

    return patched


def test_the_update_is_made_of_the_rollouts_steps(short_args, monkeypatch):
    """Policy, values and baseline are those of s, the bootstrap and the terminations those of s'."""
    args = short_args("options_critic", eval_every=0, total_timesteps=160, max_episode_steps=9)
    grid, gamma, networks, steps, policies, checked = args.make_env().unwrapped, args.gamma, [], [], [], []
    make, step = options_critic.OptionCritic.__init__, gridworld.GridWorldVectorEnv.step
    policy_loss, termination_loss = options_critic.policy_loss, options_critic.termination_loss
    everywhere = torch.as_tensor(gridworld.observe_all(args.make_env()))

    def watched(log_beta, next_q, option, terminated, cost):
        network, (s, a) = networks[0], (np.concatenate(column) for column in zip(*steps, strict=True))
        with torch.no_grad():
            (log_pi, beta), q = network.act(everywhere), network.q(everywhere)
        to, reward = grid.next_state[s, a], torch.as_tensor(grid.reward[s, a], dtype=torch.float32)
        arrival = options_critic.value_upon_arrival(q[to], beta[to], option)
        target = options_critic.option_target(reward, terminated, arrival, gamma)
        assert terminated.tolist() == grid.terminal[to].tolist()
        for said, exact in (
            *zip((log_beta, next_q), (beta[to], q[to]), strict=True),
            *zip(policies.pop(), (log_pi[s, option, a], target, q[s, option]), strict=True),
        ):
            assert torch.allclose(said, exact, atol=1e-6)
        steps.clear()
        checked.append(cost)
        return termination_loss(log_beta, next_q, option, terminated, cost)

    spies = {
        (options_critic.OptionCritic, "__init__"): lambda self, *a: (make(self, *a), networks.append(self))[0],
        (gridworld.GridWorldVectorEnv, "step"): lambda self, a: (steps.append((self.states.copy(), a)), step(self, a))[
            1
        ],
        (options_critic, "policy_loss"): lambda *a: (policies.append(a), policy_loss(*a))[1],
        (options_critic, "termination_loss"): watched,
    }
    for (owner, name), spy in spies.items():
        monkeypatch.setattr(owner, name, spy)
    options_critic.train(args)
    assert checked == [args.deliberation_cost] * 4


def test_use_of_options_by_hand():
    """Two environments; the first ends its episode after two steps, and its second episode does not count."""
    option = np.array([[0, 1], [0, 1], [2, 1], [2, 0]])
    begins = np.array([[True, True], [True, False], [True, False], [False, True]])
    start = np.array([[True, True], [False, False], [True, False], [False, False]])
    length, share, entropy = options_critic.option_use(option, begins, start, 3)
    assert length == pytest.approx(6 / 4)  # 0 for one step, 0 again for one, 1 for three, 0 for one
    assert share.tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert entropy == pytest.approx(np.log(2))


def test_log_says_how_options_are_used(short_args, tmp_path):
    options_critic.train(short_args("options_critic", num_options=3))
    log = read_log(next(tmp_path.iterdir()))
    assert sum(log[f"options/usage_{k}"][-1][1] for k in range(3)) == pytest.approx(1.0)
    assert log["options/length"][-1][1] >= 1.0
    assert sum(log[f"options/greedy_usage_{k}"][-1][1] for k in range(3)) == pytest.approx(1.0)
    assert 1.0 <= log["options/greedy_length"][-1][1] <= log["eval/length"][-1][1]
    assert 0.0 <= log["options/greedy_entropy"][-1][1] <= np.log(3) + 1e-6
    assert all(f"options/alone_score_{k}" in log for k in range(3))
    assert "pictures/options" in log["images"]


# ----------------------------------------------------------------------------- the paper's experiment, in four rooms


@pytest.mark.paper
def test_a_goal_that_moves_is_found_again():
    """Figure 2, with the functions of options_critic.py on tables. Mean steps over 10 seeds.

    The actor-critic, which is the same code with one option, and epsilon-greedy Q-learning are the controls: they find
    the new goal as fast as option-critic does, so this shows that the algorithm works, not that options help.
    """
    experiment = runpy.run_path(str(ROOT / "benchmarks" / "options_four_rooms.py"))
    assert experiment["optimal_steps"]() == pytest.approx((12.06, 13.86), abs=0.005)
    steps = {name: experiment["steps_per_episode"](make, seeds=10) for name, make in experiment["AGENTS"].items()}
    before, after = ({name: experiment["summary"](rows)[i] for name, rows in steps.items()} for i in (0, 1))
    for name, rows in steps.items():
        spread = np.std(rows[:, 1_050:1_100].mean(axis=1))
        print(f"{name:28} before {before[name]:6.1f}  after {after[name]:6.1f}  (deviation over seeds {spread:.1f})")
    assert before["option-critic, T = 0.1"] <= 16
    assert after["Sarsa, T = 0.01"] / after["option-critic, T = 0.01"] >= 2.5
    assert after["Sarsa, T = 0.01"] / after["actor-critic, T = 0.01"] < 2.5  # a learner that fails the demand above


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("(1.0 - beta) * pick(next_q, option) + beta * next_q.max(dim=1).values", "next_q.max(dim=1).values", "mixes_going_on"),
    ("(1.0 - beta) * pick(next_q, option) + beta *", "beta * pick(next_q, option) + (1.0 - beta) *", "mixes_going_on"),
    ("(1.0 - terminated) * arrival_value", "arrival_value", "through_termination"),
    ("arrival_value).detach()", "arrival_value)", "no_gradient_reaches"),
    ("- next_q.max(dim=1).values + cost", "+ next_q.max(dim=1).values + cost", "termination_loss_by_hand"),
    ("next_q.max(dim=1).values + cost", "next_q.max(dim=1).values - cost", "gradient_of_the_termination"),
    ("pick(next_beta, option) * advantage.detach()", "pick(next_beta, option) * advantage", "termination_loss_by_hand"),
    ("advantage.detach() * (1.0 - terminated)", "advantage.detach()", "termination_loss_by_hand"),
    ("-(log_prob * (target - q).detach())", "(log_prob * (target - q).detach())", "intra_option_policy_gradient"),
    ("(target - q).detach()).mean()", "(target - q)).mean()", "minus_log_probability"),
    ("self.termination_head(features.detach())", "self.termination_head(features)", "own_part_of_the_network"),
    ("first = start.cumsum(axis=0) == 1", "first = start.cumsum(axis=0) >= 1", "use_of_options_by_hand"),
    ("ends = start | (rng.random(n) < beta[rows, option])", "ends = np.ones(n, bool)", "go_on_until_they_end"),
    ("next_beta = network.act(b_next_obs)[1]", "next_beta = network.act(b_obs)[1]", "made_of_the_rollouts"),
    ("last_obs, np.float32(terminated))", "last_obs, np.float32(start))", "made_of_the_rollouts"),
    ("next_q = network.q(b_next_obs)", "next_q = network.q(b_obs)", "made_of_the_rollouts"),
    ("rollout.append((obs, option, action, np.float32(reward), last_obs,", "rollout.append((obs, option, action, np.float32(reward), next_obs,", "made_of_the_rollouts"),
    ("rng.integers(n_options, size=n), q.argmax(axis=1))", "rng.integers(n_options, size=n), rng.integers(n_options, size=n))", "with_their_chances"),
    ("log_pi[rows, option] + rng.gumbel", "0 * log_pi[rows, option] + rng.gumbel", "with_their_chances"),
    ("action = (log_pi[rows, option] + rng.gumbel(size=(n, n_actions))).argmax(axis=1)", "action = log_pi[rows, option].argmax(axis=1)", "with_their_chances"),
    ("ends = start | (beta[rows, option] > 0.5)", "ends = start", "keeps_an_option"),
    ("nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)", "pass", "gradients_are_clipped"),
    ("(sum(losses.values()) - ent_coef * entropy)", "(sum(losses.values()) + ent_coef * entropy)", "entropy_is_sought"),
    ('losses["termination"] = termination_loss(', 'losses["termination"] = 0.0 * termination_loss(', "every_part_is_taught"),
    ('"policy": policy_loss(', '"policy": 0.0 * policy_loss(', "every_part_is_taught"),
    ('losses = {"q": F.mse_loss(q, target)', 'losses = {"q": 0.0 * F.mse_loss(q, target)', "every_part_is_taught"),
    ("rollout.append((obs, option, action", "rollout.append((obs, chosen, action", "go_on_until_they_end"),
]  # fmt: skip
