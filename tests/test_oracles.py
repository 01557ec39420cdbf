"""Numeric oracles: gradients against finite differences of an objective that is solved exactly, bounds against what they
bound, targets against value iteration. All in float64, on problems small enough to enumerate.
"""

import copy
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from test_properties import MODULES, draw_map, having
from torch import Tensor, nn

import curriculum
import gridworld
import options_critic
import transfer
import world_model

torch.manual_seed(0)


def finite_differences(objective, parameter: Tensor, step: float = 1e-6) -> Tensor:
    """d objective() / d parameter, entry by entry."""
    gradient = torch.zeros_like(parameter)
    for i in range(parameter.numel()):
        values = []
        for shift in (step, -2 * step, step):
            parameter.data.view(-1)[i] += shift
            values.append(float(objective()))
        gradient.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return gradient


# ----------------------------------------------------------------------------- option-critic


class Options:
    """A world of 3 states and an end (number 3), 2 actions, 2 options, solved exactly for any policies and terminations.

    Logits: `policy` (S, K, A), `ending` (S, K).
    """

    gamma = 0.6

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.policy, self.ending = (
            torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 2, 2), (3, 2))
        )
        self.chance = torch.rand(3, 2, 4, generator=generator, dtype=torch.float64)  # of s' given s and a
        self.chance /= self.chance.sum(dim=2, keepdim=True)
        self.reward = 3.0 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
        rows = list(itertools.product(range(3), range(2), range(2), range(4)))
        self.s, self.w, self.a, self.to = torch.tensor(rows).T  # every transition, with every option

    def solve(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q_Omega (S + 1, K), Q_U (S, K, A) and beta (S + 1, K): the fixed point of the script's own targets, eqs. 1-3."""
        pi, beta = self.policy.detach().softmax(2), torch.ones(4, 2, dtype=torch.float64)
        beta[:3] = self.ending.detach().sigmoid()
        q, reward, ended = torch.zeros(4, 2, dtype=torch.float64), self.reward[self.s, self.a], (self.to == 3).double()
        for _ in range(70):
            arrival = options_critic.value_upon_arrival(q[self.to], beta[self.to], self.w)
            target = options_critic.option_target(reward, ended, arrival, self.gamma)
            q_u = (target.view(3, 2, 2, 4) * self.chance[:, None]).sum(3)
            q[:3] = (pi * q_u).sum(2)
        return q, q_u, beta

    def value(self) -> Tensor:
        """Q_Omega(0, 0), what the gradients are of."""
        return self.solve()[0][0, 0]

    def visits(self) -> tuple[Tensor, Tensor]:
        """From state 0 with option 0, discounted: how often option w acts in s, and arrives in s: (S, K) each."""
        (q, _, beta), pi = self.solve(), self.policy.softmax(2)
        step = self.gamma * torch.einsum("swa,sat->swt", pi, self.chance)[:, :, :3]  # (S, K, S'): arriving with w in s'
        best = torch.nn.functional.one_hot(q[:3].argmax(1), 2).double()  # (S, K)
        goes_on = torch.eye(2).double()[None] * (1 - beta[:3])[:, :, None]  # (S', K, K')
        chosen = goes_on + beta[:3, :, None] * best[:, None]
        transition = torch.einsum("swt,twv->swtv", step, chosen).reshape(6, 6)
        acts = torch.linalg.inv(torch.eye(6) - transition)[0].view(3, 2)
        return acts, torch.einsum("sw,swt->tw", acts, step)


@pytest.mark.parametrize("seed", range(5))
def test_intra_option_policy_gradient_theorem(seed):
    """Theorem 1: minus the gradient of policy_loss, summed over discounted visits, is that of Q_Omega(s_0, w_0)."""
    world = Options(seed)
    (q, q_u, _), (acts, _) = world.solve(), world.visits()
    log_pi = world.policy.requires_grad_().log_softmax(2)
    loss = 0.0
    for s, w, a in itertools.product(range(3), range(2), range(2)):
        row = options_critic.policy_loss(log_pi[s, w, a : a + 1], q_u[s, w, a : a + 1], q[s, w : w + 1])
        loss = loss + acts[s, w].detach() * log_pi[s, w, a].exp().detach() * row
    (gradient,) = torch.autograd.grad(-loss, world.policy)
    world.policy.requires_grad_(False)
    exact = finite_differences(world.value, world.policy)
    assert torch.allclose(gradient, exact, rtol=1e-5, atol=1e-8)
    assert exact.abs().max() > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_termination_gradient_theorem(seed):
    """Theorem 2: minus the gradient of termination_loss without its cost, summed over the discounted arrivals."""
    world = Options(seed)
    (q, _, _), (_, arrives) = world.solve(), world.visits()
    beta = world.ending.requires_grad_().sigmoid()
    loss = 0.0
    for s, w in itertools.product(range(3), range(2)):
        row = (beta[s : s + 1], q[s : s + 1], torch.tensor([w]), torch.zeros(1), 0.0)
        loss = loss + arrives[s, w].detach() * options_critic.termination_loss(*row)
    (gradient,) = torch.autograd.grad(-loss, world.ending)
    world.ending.requires_grad_(False)
    exact = finite_differences(world.value, world.ending)
    assert torch.allclose(gradient, exact, rtol=1e-5, atol=1e-8)
    assert exact.abs().max() > 0.01


# ----------------------------------------------------------------------------- actor in imagination


@pytest.mark.parametrize("seed", range(5))
def test_actor_gradient_is_that_of_the_imagined_return(seed):
    """Over all action sequences of 4 steps from 2 states, weighted by their chance, minus the gradient of actor_loss with
    lambda = 1 is that of the expected return E[sum_t g_0 ... g_(t-1) r_t + g_0 ... g_3 v_4]; a baseline changes nothing."""
    horizon, generator = 4, torch.Generator().manual_seed(seed)
    theta = torch.randn(5, 3, generator=generator, dtype=torch.float64)  # logits of 3 actions in 5 states
    to = torch.randint(5, (5, 3), generator=generator)
    reward, discount = (torch.rand(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    value, baseline = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))

    def expected() -> Tensor:
        following = value
        for _ in range(horizon):
            following = (theta.softmax(1) * (reward + discount * following[to])).sum(1)
        return following[:2].mean()

    sequences = torch.tensor(list(itertools.product(range(2), *[range(3)] * horizon))).T
    state, action = [sequences[0]], sequences[1:]  # (B,), (T, B)
    for t in range(horizon):
        state.append(to[state[t], action[t]])
    state = torch.stack(state)  # (T + 1, B)
    steps = state[:-1], action
    log_pi = theta.requires_grad_().log_softmax(1)[state[:-1]]  # (T, B, A)
    returns = world_model.lambda_returns(reward[steps], discount[steps], value[state[1:]], 1.0)
    weight = world_model.reach_weights(discount[steps])
    chance = log_pi.detach().gather(2, action[..., None])[..., 0].sum(0).exp() / 2  # of each sequence: (B,)
    assert chance.sum().item() == pytest.approx(1.0)
    advantage = returns - baseline[state[:-1]]
    loss = world_model.actor_loss(log_pi, action, advantage, weight * chance, 0.0) * action.numel()
    (gradient,) = torch.autograd.grad(-loss, theta)
    theta.requires_grad_(False)
    exact = finite_differences(expected, theta)
    assert torch.allclose(gradient, exact, rtol=1e-5, atol=1e-8)
    assert exact.abs().max() > 0.01


# ----------------------------------------------------------------------------- the ELBO


def losses_of(world, logits: Tensor, prior: Tensor) -> float:
    """E_q[the three losses at z'] + KL(q || p), with the constants of the two Gaussians: the whole negative ELBO."""
    decoded, outcome, next_obs, reward, terminated = world
    q, n = logits[0].softmax(-1), 2
    total = world_model.kl_divergence(logits, prior).item()
    for i, j in itertools.product(range(3), repeat=n):  # the two latents' classes
        z = 3 * i + j
        row = world_model.elbo_losses(decoded[z : z + 1], outcome[z : z + 1], next_obs, reward, terminated)
        total += (q[0, i] * q[1, j]).item() * sum(loss.item() for loss in row.values())
    std = world_model.OBS_STD
    return total + next_obs.shape[1] / 2 * math.log(2 * math.pi * std**2) + math.log(2 * math.pi) / 2


@pytest.mark.parametrize("terminated", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_elbo_bounds_the_evidence_and_meets_it_at_the_posterior(seed, terminated):
    """-log p(o', r, going on | z, a), summed over the nine codes of two latents of three classes, is at most the loss. The
    codes' likelihoods are products over the two latents, so that the posterior is one, too: there it is equal."""
    generator, std = torch.Generator().manual_seed(seed), world_model.OBS_STD

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    prior, next_obs, reward = normal(1, 2, 3), std * normal(1, 2), normal(1)
    each = std * normal(2, 3)  # what latent 0 says of the first entry of o', latent 1 of the second
    codes = list(itertools.product(range(3), repeat=2))
    decoded = torch.stack([torch.stack([each[0, i], each[1, j]]) for i, j in codes])
    says, goes_on = normal(3), normal(3)  # latent 0 alone says the reward, latent 1 alone whether it goes on
    outcome = torch.stack([torch.stack([says[i], goes_on[j]]) for i, j in codes])
    world = decoded, outcome, next_obs, reward, torch.tensor([terminated], dtype=torch.float64)

    p = prior[0].softmax(-1)
    likelihood = torch.distributions.Normal(each, std).log_prob(next_obs[0][:, None])
    likelihood[0] += torch.distributions.Normal(says, 1.0).log_prob(reward)
    likelihood[1] += torch.distributions.Bernoulli(logits=goes_on).log_prob(torch.tensor(1.0 - terminated).double())
    evidence = sum(math.log((p[k] * likelihood[k].exp()).sum()) for k in range(2))
    posterior = (prior[0].log_softmax(-1) + likelihood)[None]
    assert losses_of(world, posterior, prior) == pytest.approx(-evidence, abs=1e-9)
    for _ in range(20):
        other = normal(1, 2, 3)
        assert losses_of(world, other, prior) > -evidence
    assert np.isfinite(evidence)


# ----------------------------------------------------------------------------- targets


@pytest.mark.parametrize("layout", gridworld.LAYOUTS)
@pytest.mark.parametrize("script", having("td_target"))
def test_fixed_point_of_the_targets_is_the_optimum(script, layout):
    """Q = E[td_target(r, terminated, Q(s'))] over the table P of a slippery world, against backward induction."""
    env = gridworld.EnvArgs(layout=layout, slip=0.3).make_env()
    rows = [(s, a, *outcome) for s, moves in env.unwrapped.P.items() for a in moves for outcome in moves[a]]
    s, a, p, to, reward, terminated = (torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True))
    target, q = MODULES[script].td_target, torch.zeros(len(env.unwrapped.P), 4, dtype=torch.float64)
    for _ in range(150):
        next_q = q[to] if "next_q" in inspect.signature(target).parameters else q[to].max(dim=1).values
        y = target(reward, terminated.double(), next_q, 0.8)
        q = torch.zeros_like(q).index_put_((s, a), p * y, accumulate=True)
    assert np.abs(q.numpy() - gridworld.solve(env, gamma=0.8, horizon=1_000)).max() < 1e-9


def test_targets_for_all_goals_are_those_of_worlds_with_that_goal():
    """UVFA: what two worlds show, whose goals are cells 2 and 7, is enough for every goal: the fixed point of the targets
    is the optimum of the world in which that goal is G."""
    rows, rewards = np.array([list("S..."), list(".#X."), list("....")]), (10.0, -0.1)
    cells = np.argwhere(rows != "#")
    goals = [i for i, (r, c) in enumerate(cells) if rows[r, c] == "."]

    def world(goal: int) -> gridworld.GridWorldEnv:
        marked = rows.copy()
        marked[tuple(cells[goal])] = "G"
        return gridworld.GridWorldEnv(layout="\n".join(map("".join, marked)) + "\n")

    shown = []
    for own in 2, 7:
        grid = world(goals[own])
        s, a = np.divmod(np.arange(4 * grid.n_states), 4)
        s, a = s[~grid.terminal[s]], a[~grid.terminal[s]]
        to = grid.next_state[s, a]
        arrived = torch.tensor(to[:, None] == goals)
        columns = torch.tensor(grid.reward[s, a]), torch.tensor(1.0 * grid.terminal[to])
        shown.append((s, a, to, *transfer.for_all_goals(*columns, arrived, own, rewards)))
    q = torch.zeros(len(goals), len(cells), 4, dtype=torch.float64)
    for _ in range(60):
        for (s, a, to, reward, terminated), g in itertools.product(shown, range(len(goals))):
            q[g, s, a] = transfer.td_target(reward[:, g], terminated[:, g], q[g, to], 0.8)
    for g, goal in enumerate(goals):
        env = gridworld.EnvArgs(layout="\n".join(map("".join, world(goal).map)) + "\n").make_env()
        live = ~env.unwrapped.terminal
        exact = gridworld.solve(env, gamma=0.8, horizon=1_000)
        assert np.abs(q[g].numpy() - exact)[live].max() < 1e-9


def test_distances_are_those_of_value_iteration():
    """Of every state that is met from the starts of 100 drawn maps: minus the best return if each step costs 1."""
    rng, compared = np.random.default_rng(1), 0
    costs = {"step_reward": -1.0, "goal_reward": -1.0, "trap_reward": -1e6}
    while compared < 100:
        layout, slip = draw_map(rng), float(rng.choice([0.0, 0.3]))
        try:
            env, exact = gridworld.EnvArgs(layout=layout, slip=slip), gridworld.EnvArgs(layout=layout, **costs)
            table, initial = env.make_env().unwrapped.P, env.make_env().unwrapped.initial_state_distrib
        except ValueError:  # a map without a way
            continue
        best = -gridworld.solve(exact.make_env(), horizon=200).max(axis=1)
        distance, pays = curriculum.start_distances(table, initial)
        known = np.isfinite(distance)
        assert pays == 10.0
        assert known[initial > 0].all()
        if slip == 0:  # a slip may lead where no move does
            assert distance[known].tolist() == best[known].tolist()
        assert (distance[known] <= best[known]).all()
        compared += 1


# ----------------------------------------------------------------------------- transfer


def test_gradient_of_a_progressive_column_and_none_for_the_sources():
    """Of the loss of dqn.py, by finite differences, on a network of a few units; the sources' column gets nothing."""
    torch.manual_seed(1)
    network = transfer.ProgressiveQNetwork(transfer.QNetwork(3, 2, 2), 3, 2).double()
    for net in network, network.column:
        net.layer1, net.layer2 = nn.Linear(3, 5).double(), nn.Linear(5, 4).double()
    network.heads, network.lateral2 = nn.Linear(4, 2).double(), nn.Linear(5, 4, bias=False).double()
    network.lateral3 = nn.Linear(4, 2, bias=False).double()
    network.column.requires_grad_(False)
    obs, action = torch.randn(6, 3).double(), torch.randint(2, (6,))
    y = transfer.td_target(torch.randn(6).double(), torch.zeros(6).double(), network(obs)[:, 0], 0.9)

    def loss() -> Tensor:
        return transfer.td_loss(network(obs)[:, 0], action, y)

    loss().backward()
    for name, parameter in network.named_parameters():
        if name.startswith("column."):
            assert parameter.grad is None
        else:
            exact = finite_differences(lambda: loss().detach(), parameter)
            assert torch.allclose(parameter.grad, exact, rtol=1e-5, atol=1e-8), name
            assert exact.abs().max() > 1e-4, name


def test_reptile_on_quadratic_losses_is_the_closed_form():
    """|w - c|^2 / 2 for each source: k steps of size a lead from w to c + (1 - a)^k (w - c), of which theta goes a share."""
    torch.manual_seed(1)
    theta = transfer.QNetwork(2, 2).double()
    network = transfer.ReptileQNetwork(copy.deepcopy(theta) for _ in range(4))
    centres = [[torch.randn_like(w) for w in theta.parameters()] for _ in range(3)]
    expected = [w.detach().clone() for w in theta.parameters()]
    for task in (0, 1, 2) * 4:
        network.start(task)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(5):
            distance = [w - c for w, c in zip(network[task].parameters(), centres[task], strict=True)]
            optimizer.zero_grad()
            sum(part.square().sum() / 2 for part in distance).backward()
            optimizer.step()
        network.finish(task, 0.3)
        expected = [w + 0.3 * (1 - 0.9**5) * (c - w) for w, c in zip(expected, centres[task], strict=True)]
    for w, exact in zip(network.for_target().parameters(), expected, strict=True):
        assert torch.allclose(w, exact, rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------- learning progress


def test_slopes_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 20))
        times, scores = rng.integers(0, 10**6, size=n), rng.integers(2, size=n)
        if len(set(times)) < 2:
            continue
        (exact, _), *_ = np.linalg.lstsq(np.stack([times - times.mean(), np.ones(n)], axis=1), scores, rcond=None)
        assert curriculum.slope(times.tolist(), scores.tolist()) == pytest.approx(exact, rel=1e-9, abs=1e-15)


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (file, old text, new text, the test that fails)
MUTANTS = [
    ("options_critic", "return (1.0 - beta) * pick(next_q, option) + beta * next_q.max(dim=1).values", "return beta * pick(next_q, option) + (1.0 - beta) * next_q.max(dim=1).values", "termination_gradient_theorem"),
    ("options_critic", "return (1.0 - beta) * pick(next_q, option) + beta * next_q.max(dim=1).values", "return next_q.max(dim=1).values", "intra_option_policy_gradient"),
    ("options_critic", "advantage = pick(next_q, option) - next_q.max(dim=1).values", "advantage = next_q.max(dim=1).values - pick(next_q, option)", "termination_gradient_theorem"),
    ("options_critic", "advantage = pick(next_q, option) - next_q.max(dim=1).values", "advantage = pick(next_q, option) - next_q.mean(dim=1)", "termination_gradient_theorem"),
    ("options_critic", "return -(log_prob * (target - q).detach()).mean()", "return -(log_prob.exp() * (target - q).detach()).mean()", "intra_option_policy_gradient"),
    ("world_model", "torch.cat([torch.ones_like(discount[:1]), discount[:-1].cumprod(dim=0)])", "torch.ones_like(discount)", "actor_gradient"),
    ("world_model", "discount[t] * ((1 - lam)", "discount[-1] * ((1 - lam)", "actor_gradient"),
    ("world_model", "log_prob * advantage.detach()", "log_prob * advantage.detach().clamp(min=0)", "actor_gradient"),
    ("world_model", "/ (2 * OBS_STD**2)", "/ OBS_STD**2", "elbo_bounds"),
    ("world_model", "(log_q.exp() * (log_q - log_p))", "(log_p.exp() * (log_p - log_q))", "elbo_bounds"),
    ("world_model", "(log_q.exp() * (log_q - log_p)).sum(dim=(1, 2))", "(log_q.exp() * (log_q - log_p)).sum(dim=2).mean(dim=1)", "elbo_bounds"),
    ("world_model", "outcome[:, 1], 1.0 - terminated)", "outcome[:, 1], terminated)", "elbo_bounds"),
    ("transfer", "torch.where(arrived, 1.0, terminated)", "terminated.expand(arrived.shape)", "for_all_goals"),
    ("transfer", "torch.where(at_own, 0.0, terminated)[:, None]", "terminated[:, None]", "for_all_goals"),
    ("transfer", "torch.where(arrived, goal_reward, reward)", "torch.where(arrived, reward + goal_reward, reward)", "for_all_goals"),
    ("transfer", "(self.heads(h2) + self.lateral3(column2))", "(self.heads(h2) + self.lateral3(column2).detach())", "progressive_column"),
    ("transfer", "+ self.lateral2(column1))", "+ self.lateral2(column1).detach())", "progressive_column"),
    ("transfer", "theta + step_size * (phi - theta)", "theta + step_size * (theta - phi)", "reptile_on"),
    ("transfer", "self[task].load_state_dict(self[-1].state_dict())", "pass", "reptile_on"),
    ("transfer", "gamma * (1.0 - terminated)", "(1.0 - terminated)", "fixed_point and transfer"),
    ("curriculum", "next_q.max(dim=1).values).detach()", "next_q.mean(dim=1)).detach()", "fixed_point and curriculum"),
    ("curriculum", "t = np.array(times) - np.mean(times)", "t = np.array(times) - times[0]", "least_squares"),
    ("curriculum", "1 + distance[target]", "2 + distance[target]", "distances_are"),
]  # fmt: skip
