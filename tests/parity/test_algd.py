"""ALGD's ``parity`` presets against numbers recorded from the released agents (VE-SDE and DDPM). All sizes come from the files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saddlepoint.algd.agent import ALGD
from saddlepoint.algd.config import PARITY, PARITY_VP
from saddlepoint.algd.energy import Constraint, augmented
from saddlepoint.algd.losses import UpdateNoise
from saddlepoint.algd.policy import ChainNoise
from saddlepoint.constrained.budget import CostBudget, discounted_budget
from saddlepoint.constrained.lagrangian import augmented_penalty, effective_multiplier
from saddlepoint.constrained.risk import ensemble_risk
from saddlepoint.diffusion.energy_score import energy_score, energy_weights, propose
from saddlepoint.diffusion.schedule import linear_betas, ve_schedule, vp_schedule
from saddlepoint.types import Batch, EnvShape
from tests.parity.fixtures import Recording

NAMES = ("vesde", "ddpm")
HEADS = ((1, 2, 3), (4, 5, 6))


@pytest.fixture(scope="module", params=NAMES)
def recording(request) -> Recording:
    return Recording.load("algd", request.param)


def critic_state(r: Recording, net: str) -> dict[str, Tensor]:
    """The two released reward heads (weights [out, in]) as one ensemble (members, in, out)."""
    state = {}
    for layer in range(3):
        names = [f"init.{net}.linear{head[layer]}" for head in HEADS]
        state[f"weights.{layer}"] = torch.stack([r[f"{n}.weight"].T for n in names])
        state[f"biases.{layer}"] = torch.stack([r[f"{n}.bias"][None] for n in names])
    return state


def cost_state(r: Recording, net: str) -> dict[str, Tensor]:
    state = {f"weights.{i}": r[f"init.{net}.nn{i + 1}.weight"] for i in range(3)}
    return state | {f"biases.{i}": r[f"init.{net}.nn{i + 1}.bias"][:, None] for i in range(3)}


def policy_names(eps_head: bool) -> dict[str, str]:
    """Our parameter of the policy -> the released one."""
    names = {"network.embedding": "time_embedding.weight"}
    for i in range(3):
        names |= {f"network.weights.{i}": f"mlp.{2 * i}.weight", f"network.biases.{i}": f"mlp.{2 * i}.bias"}
    for head in ("score", "eps") if eps_head else ("score",):
        names |= {
            f"network.head_weights.{head}": f"{head}_head.weight",
            f"network.head_biases.{head}": f"{head}_head.bias",
        }
    return names


def agent_of(r: Recording, mode: str = "upd_sg", **changes) -> ALGD:
    """Our agent with the recorded sizes, constants and weights, in float64."""
    s = r.scalars
    vp = is_vp(r)
    hidden = int(s["score_hidden"])
    config = replace(
        PARITY_VP if vp else PARITY, steps=s["T"], proposals=s["N"], cost_members=s["E"], rho=s["rho"], beta=s["beta"],
        critic_hidden=(int(s["critic_hidden"]),) * 2, policy_hidden=(hidden,) * 3, batch_size=s["B"],
        time_embedding=r["init.policy.time_embedding.weight"].shape[1], gamma=s["gamma"], cost_gamma=s["sgamma"],
        policy_learning_rate=s["lr"], critic_learning_rate=s["lr"], cost_learning_rate=s["qc_lr"], multiplier_rate=s["lr"], polyak=s["tau"],
        target_every=s["target_update_every"], multiplier=float(torch.tensor(s["log_lambda_init"], dtype=torch.float64).exp()),
        cost_through_termination=bool(s[f"{mode}.safetygym"]), **schedule_ends(r, vp), **changes,
    )  # fmt: skip
    shape = EnvShape(s["S"], tuple(r["action_low"].tolist()), tuple(r["action_high"].tolist()), 1)
    if s[f"{mode}.safetygym"]:
        budget = CostBudget(s["sg_lim"], horizon=s["sg_len"], gamma=s["sgamma"])
    else:
        budget = CostBudget(s["vel_lim"], discounted=True, gamma=s["sgamma"])
    agent = ALGD(config, shape, (budget,), dtype=torch.float64)
    assert agent.budget.item() == pytest.approx(s[f"{mode}.target_cost"], rel=1e-12)
    agent.critic.load_state_dict(critic_state(r, "critic"))
    agent.critic_target.load_state_dict(critic_state(r, "critic_target"))
    agent.cost_critic.load_state_dict(cost_state(r, "qc"))
    agent.cost_target.load_state_dict(cost_state(r, "qc_target"))
    agent.policy.load_state_dict({ours: r[f"init.policy.{theirs}"] for ours, theirs in policy_names(vp).items()})
    return agent


def is_vp(r: Recording) -> bool:
    """Whether this is the recording of the DDPM agent."""
    return "qsample.t" in r.arrays


def schedule_ends(r: Recording, vp: bool) -> dict[str, float]:
    longest = max(int(name.split(".")[1][1:]) for name in r.arrays if name.startswith("sched.T"))
    table = r[f"sched.T{longest}.{'beta' if vp else 'sigma'}"]
    names = ("beta_first", "beta_last") if vp else ("sigma_min", "sigma_max")
    return dict(zip(names, (float(table[0]), float(table[-1]))))


def test_schedules(recording):
    vp = is_vp(recording)
    ends = list(schedule_ends(recording, vp).values())
    lengths = {int(name.split(".")[1][1:]) for name in recording.arrays if name.startswith("sched.T")}
    assert lengths
    for steps in lengths:
        if vp:
            betas = linear_betas(steps, *ends)
            schedule = vp_schedule(betas)
            recording.close(betas, f"sched.T{steps}.beta", 1e-14)
            recording.close(schedule.alpha_bar, f"sched.T{steps}.alpha_bar", 1e-14)
            recording.close(schedule.alpha, f"sched.T{steps}.sqrt_alpha_bar", 1e-14)
            recording.close(schedule.sigma, f"sched.T{steps}.sqrt_one_minus_alpha_bar", 1e-14)
            recording.close(schedule.previous().alpha_bar, f"sched.T{steps}.alpha_bar_prev", 1e-14)
        else:
            schedule = ve_schedule(steps, *ends)
            recording.close(schedule.sigma, f"sched.T{steps}.sigma", 1e-14)
            recording.close(schedule.delta_sigma2, f"sched.T{steps}.delta_sigma2", 1e-14)


def test_action_box_and_networks(recording):
    agent = agent_of(recording)
    recording.close(agent.policy.box.scale, "action_scale")
    recording.close(agent.policy.box.bias, "action_bias")
    network = agent.policy.network
    at = recording["net.state"], recording["net.x"], recording["net.t"]
    recording.close(network(*at), "net.score")
    if agent.config.prediction == "guided":
        recording.close(network(*at, "eps"), "net.eps")
    state, action = recording["la.state"], recording["la.action"]
    values = agent.critic(state, action[None])[:, 0]
    recording.close(values[0, :, None], "la.q1")
    recording.close(values[1, :, None], "la.q2")
    cost = agent.cost_critic(state, action[None])[:, 0]
    recording.close(cost[..., None], "la.qc")
    recording.close(ensemble_risk(cost)[:, None], "la.qc_risk")


def test_augmented_lagrangian_and_its_action_gradient(recording):
    agent = agent_of(recording)
    state, action = recording["la.state"], recording["la.action"][None].requires_grad_()
    reward, cost = agent.critic(state, action), agent.cost_critic(state, action)
    values, gradients, arguments = [], [], []
    lams, rhos, budgets = recording["la.lam"], recording["la.rho"], recording["la.h"]
    for i, lam in enumerate(lams):
        for j, rho in enumerate(rhos):
            for k in range(budgets.shape[2]):
                constraint = Constraint(lam[None], budgets[i, j, k][None], torch.ones(1), float(rho), 1.0)
                energy = augmented(reward, cost, constraint)[0]
                violation = constraint.risk(cost)[0, 0] - budgets[i, j, k]
                penalty = augmented_penalty(violation, lam, rho)
                torch.testing.assert_close(energy, penalty - reward[:, 0].amin(0), rtol=0, atol=1e-12)
                assert (effective_multiplier(violation, lam, rho) >= 0).all()
                values.append(energy.detach())
                gradients.append(torch.autograd.grad(energy.sum(), action, retain_graph=True)[0][0])
                arguments.append((lam + rho * violation).detach())
    grid = tuple(budgets.shape)
    recording.close(torch.stack(values).unflatten(0, grid), "la.value")
    recording.close(torch.stack(gradients).unflatten(0, grid), "la.grad_action")
    recording.close(torch.stack(arguments).unflatten(0, grid), "la.penalty_arg")


def chain_noise(r: Recording, prefix: str) -> ChainNoise:
    return ChainNoise(r[f"{prefix}.noise_init"], r[f"{prefix}.noise_steps"])


def test_reverse_chain(recording):
    agent = agent_of(recording)
    policy, state = agent.policy, recording["sample.state"]
    noise = chain_noise(recording, "traj")
    latents = policy.path(state, noise)
    recording.close(latents, "traj.x")
    recording.close(policy.box.squash(latents[0]), "traj.a0")
    recording.close(policy.box.squash(latents[recording["traj.tau"], torch.arange(len(state))]), "traj.a_tau")
    noise = chain_noise(recording, "stoch")
    recording.close(policy.path(state, noise), "stoch.x")
    recording.close(policy.sample(state, noise), "stoch.action")


def test_evaluation_chain(recording):
    agent = agent_of(recording)
    policy, state = agent.policy, recording["sample.state"]
    if agent.config.prediction == "guided":  # the released evaluation still adds noise
        zero = torch.zeros_like(recording["stoch.noise_init"])
        recording.close(policy.sample(state, ChainNoise(zero, recording["eval.noise_steps"])), "eval.action")
        recording.close(policy.mean_action(state), "eval_noiseless.action")
    else:
        recording.close(policy.mean_action(state), "eval.action")
    recording.close(
        agent.act(state, "deterministic", torch.Generator()),
        "eval_noiseless.action" if "eval_noiseless.action" in recording.arrays else "eval.action",
    )


@pytest.mark.parametrize("name", ["mc", "mc4", "mcB"])
def test_monte_carlo_score(recording, name):
    s = recording.scalars
    agent = agent_of(recording)
    point, tau = recording[f"{name}.a_tau"], recording[f"{name}.tau"]
    noise = recording[f"{name}.noise"].transpose(0, 1)
    sigma = agent.policy.at_steps(tau).sigma
    if agent.config.prediction == "guided":
        sigma = (sigma.square() + 1e-8).sqrt()
    lam, h = torch.tensor([s[f"{name}.lam"]], dtype=torch.float64), torch.tensor([s[f"{name}.h"]], dtype=torch.float64)
    state, rho, beta = recording[f"{name}.state"], s[f"{name}.rho"], s[f"{name}.beta"]
    constraint = Constraint(lam, h, torch.ones_like(h), rho, 1.0)

    def energy(actions: Tensor) -> Tensor:
        return augmented(agent.critic(state, actions), agent.cost_critic(state, actions), constraint)

    proposals = propose(point, 1.0, sigma, noise)
    recording.close(proposals.transpose(0, 1), f"{name}.a0")
    values = energy(proposals.requires_grad_())
    (gradient,) = torch.autograd.grad(values.sum(), proposals)
    recording.close(values.T, f"{name}.la")
    recording.close(gradient.transpose(0, 1), f"{name}.grad")
    recording.close(energy_weights(values, beta).T, f"{name}.weights")
    recording.close(energy_score(energy, point, 1.0, sigma, noise, beta), f"{name}.phi_star")


def to_batch(r: Recording, mode: str, call: int) -> Batch:
    def row(name: str) -> Tensor:
        return r[f"{mode}.{name}"][call]

    return Batch(row("state"), row("action"), row("reward"), row("cost")[:, None], row("next_state"), 1 - row("mask"))


def to_noise(r: Recording, mode: str, call: int) -> UpdateNoise:
    def row(name: str) -> Tensor:
        return r[f"{mode}.{name}"][call]

    return UpdateNoise(
        ChainNoise(row("noise_next_init"), row("noise_next_steps")), ChainNoise(row("noise_pi_init"), row("noise_pi_steps")),
        row("tau"), row("noise_mc").transpose(0, 1),
    )  # fmt: skip


def check_weights(agent: ALGD, r: Recording, prefix: str, grad: bool = False) -> None:
    """Every parameter (or its gradient) of every network against the recording, and that nothing recorded is left out."""
    seen = set()

    def close(got: Tensor, name: str) -> None:
        r.close(got, f"{prefix}.{name}")
        seen.add(f"{prefix}.{name}")

    def pick(p: Tensor) -> Tensor:
        return p.grad if grad else p

    networks = (
        (("critic", agent.critic),) if grad else (("critic", agent.critic), ("critic_target", agent.critic_target))
    )
    for net, module in networks:
        for layer in range(3):
            for head in range(2):
                close(pick(module.weights[layer])[head].T, f"{net}.linear{HEADS[head][layer]}.weight")
                close(pick(module.biases[layer])[head, 0], f"{net}.linear{HEADS[head][layer]}.bias")
    networks = (("qc", agent.cost_critic),) if grad else (("qc", agent.cost_critic), ("qc_target", agent.cost_target))
    for net, module in networks:
        for layer in range(3):
            close(pick(module.weights[layer]), f"{net}.nn{layer + 1}.weight")
            close(pick(module.biases[layer])[:, 0], f"{net}.nn{layer + 1}.bias")
    parameters = dict(agent.policy.named_parameters())
    for ours, theirs in policy_names(agent.config.prediction == "guided").items():
        close(pick(parameters[ours]), f"policy.{theirs}")
    recorded = {
        name
        for name in r.arrays
        if name.startswith(prefix + ".") and ".eps_head." not in name and not name.endswith("log_lam")
    }
    assert {name for name in seen if ".eps_head." not in name} == recorded


@pytest.mark.parametrize("mode", ["upd_sg", "upd_vel"])
def test_three_full_updates(recording, mode):
    agent = agent_of(recording, mode)
    calls = len(recording[f"{mode}.critic_loss"])
    found: dict[str, list[Tensor]] = {}
    for call in range(calls):
        metrics = agent.update_batch(to_batch(recording, mode, call), to_noise(recording, mode, call))
        for ours, theirs in (
            ("reward_critic_loss", "critic_loss"),
            ("cost_critic_loss", "qc_loss"),
            ("energy", "actor_loss"),
            ("score_loss", "score_loss"),
        ):
            found.setdefault(theirs, []).append(metrics[ours])
        found.setdefault("log_lam_after", []).append(agent.multiplier.log()[0])
        found.setdefault("qc_risk_mean", []).append(metrics["risk"])
        found.setdefault("lam_loss", []).append(-metrics["multiplier"] * metrics["violation"])
        if call == 0:
            check_weights(agent, recording, f"{mode}.call0.grad", grad=True)
        if f"{mode}.after{call + 1}.policy.time_embedding.weight" in recording.arrays:
            check_weights(agent, recording, f"{mode}.after{call + 1}")
    for name, values in found.items():
        recording.close(torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values]), f"{mode}.{name}")


@pytest.mark.parametrize("mode", ["upd_sg", "upd_vel"])
def test_intermediates_of_the_first_update(recording, mode):
    agent = agent_of(recording, mode)
    batch, noise = to_batch(recording, mode, 0), to_noise(recording, mode, 0)
    next_action = agent.policy.sample(batch.next_observation, noise.next)
    recording.close(next_action, f"{mode}.call0.next_action")
    replayed = batch.observation, batch.action[None]
    recording.close(agent.critic(*replayed)[0, 0, :, None], f"{mode}.call0.q1")
    recording.close(agent.cost_critic(*replayed)[:, 0, :, None], f"{mode}.call0.qc")
    latents = agent.policy.path(batch.observation, noise.policy)
    recording.close(agent.policy.box.squash(latents[0]), f"{mode}.call0.a0")
    point = latents[noise.tau, torch.arange(len(batch.reward))]
    recording.close(agent.policy.box.squash(point), f"{mode}.call0.a_tau")
    recording.close(agent.policy.score(batch.observation, point, noise.tau), f"{mode}.call0.phi_theta")


def test_budgets(recording):
    got = [discounted_budget(limit, gamma, int(length)) for limit, gamma, length in recording["budget.sg_in"].tolist()]
    recording.close(torch.tensor(got, dtype=torch.float64), "budget.sg_out", 1e-12)
    stated = [CostBudget(limit, discounted=True).critic for limit in recording["budget.vel_in"].tolist()]
    recording.close(torch.tensor(stated, dtype=torch.float64), "budget.vel_out", 1e-12)
