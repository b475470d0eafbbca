"""MBDPO's ``parity`` preset against numbers recorded from the released agent. All sizes, seeds and hyperparameters come from the files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from saddlepoint.diffusion.schedule import linear_betas, vp_schedule
from saddlepoint.mbdpo.agent import MBDPO
from saddlepoint.mbdpo.config import PARITY, heuristic_discount
from saddlepoint.mbdpo.imagine import policy_rollouts, prospects, roll
from saddlepoint.mbdpo.losses import (
    ScoreNoise,
    Sequences,
    UpdateNoise,
    contrastive_loss,
    released_target,
    running_energy,
    running_scale,
    td_target,
)
from saddlepoint.mbdpo.planner import plan_mean, plan_score, plan_weights, propose
from saddlepoint.mbdpo.search import PlanNoise
from saddlepoint.mbdpo.world_model import Tasks, time_table
from saddlepoint.nn.ops.reference_normed import mish, simnorm
from saddlepoint.nn.twohot import symexp, symlog, two_hot, two_hot_inverse, two_hot_loss
from saddlepoint.types import EnvShape
from tests.parity.fixtures import Recording

NETS = {  # ours -> released
    "encoder": "encoder", "dynamics": "dynamics", "reward_head": "reward", "termination_head": "termination", "energy_head": "F",
    "policy_head": "pi", "score_head": "score", "critics": "Q", "target_critics": "Q_target",
}  # fmt: skip


@pytest.fixture(scope="module")
def r() -> Recording:
    return Recording.load("mbdpo", "mbdpo")


def agent_of(r: Recording, letter: str = "A", **changes: Any) -> MBDPO:
    """Our agent with the recorded sizes, constants and weights, in float64."""
    s = r.scalars
    config = replace(
        PARITY, horizon=s["H"], proposals=s["NS"], elites=s["NE"], policy_rollouts=s["NP"], steps=s["TD"], beta_first=s["beta0"],
        beta_last=s["betaT"], temperature=s["temp"], action_noise=s["anoise"], energy_weight=s["eta"], energy_clip=s["contrastive_clip"],
        energy_momentum=s["contrastive_momentum"], gamma=s["A.discount"], score_proposals=s["mf"], batch_size=s["B"], learning_rate=s["cfg.lr"],
        encoder_rate=s["cfg.enc_lr_scale"], clip=s["cfg.grad_clip_norm"], temporal_decay=s["rho"], consistency_weight=s["cfg.consistency_coef"],
        reward_weight=s["cfg.reward_coef"], value_weight=s["cfg.value_coef"], termination_weight=s["cfg.termination_coef"],
        score_weight=s["cfg.score_loss_coef"], entropy_weight=s["ent"], polyak=s["cfg.tau"], encoder_layers=s["nenc"], encoder_width=s["enc"],
        width=s["mlp"], latent=s["latent"], simplex=s["simnorm"], critics=s["nq"], dropout=0.0, bins=s["bins"], bin_limit=float(s["vmax"]),
        time_embedding=s["temb"], task_embedding=s["ctask_dim"],
    )  # fmt: skip
    tasks = Tasks(tuple(s["cdims"]), tuple(s["ceps"])) if letter == "C" else None
    shape = EnvShape(s["obs"], (-1.0,) * s["A"], (1.0,) * s["A"], 0)
    agent = MBDPO(replace(config, **changes), shape, (), dtype=torch.float64, tasks=tasks)
    state = agent.model.state_dict()
    agent.model.load_state_dict({n: recorded_parameter(agent, r.arrays, f"{letter}.", n, value) for n, value in state.items()})
    agent.model.energy_mean.fill_(s["contrastive_mean0"])
    agent.model.energy_std.fill_(s["contrastive_std0"])
    return agent


def recorded_parameter(agent: MBDPO, arrays: dict[str, Tensor], prefix: str, name: str, default: Tensor) -> Tensor:
    """Our parameter ``name`` out of the recorded ones: the first layer's weight is ours in parts, an ensemble's bias without its own axis."""
    if name == "task_table":
        return arrays[f"{prefix}task_emb.weight"]
    if name == "mask":
        return arrays["C.action_mask"]
    net, *rest = name.split(".")
    if net not in NETS:
        return default
    kind, index = rest[0], int(rest[1])
    released = f"{prefix}{NETS[net]}"
    if kind == "first":
        weight = arrays.get(f"{released}.0.weight")
        if weight is None:
            return default
        widths = [w.shape[-1] for w in getattr(agent.model, net).first]
        return weight.split(widths, dim=-1)[index]
    entry = {"weights": f"{index + 1}.weight", "biases": f"{index}.bias", "gains": f"{index}.ln.weight", "shifts": f"{index}.ln.bias"}[kind]
    return arrays.get(f"{released}.{entry}", default)


def rows(value: Tensor) -> Tensor:
    """Our (...) as the recorded (..., 1)."""
    return value.unsqueeze(-1)


def test_schedule_and_discount(r):
    s = r.scalars
    default = r["sched.default.beta"]
    for name, ends in (("default", (len(default), float(default[0]), float(default[-1]))), ("this", (s["TD"], s["beta0"], s["betaT"]))):
        betas = linear_betas(*ends)
        r.close(betas, f"sched.{name}.beta")
        r.close(1 - betas, f"sched.{name}.alpha")
        r.close(vp_schedule(betas).alpha_bar, f"sched.{name}.alpha_bar")
    lengths = (1, 10, 25, 50, 100, 500, 1000, 5000)
    r.close(torch.tensor([heuristic_discount(n) for n in lengths], dtype=torch.float64), "discount_table")
    r.close(torch.tensor([heuristic_discount(n) for n in s["ceps"]], dtype=torch.float64), "C.discount")


def test_pure_functions(r):
    s = r.scalars
    ends = (float(s["vmin"]), float(s["vmax"]))
    r.close(symlog(r["pf.x"]), "pf.symlog")
    r.close(symexp(r["pf.y"]), "pf.symexp")
    r.close(two_hot(r["pf.x"], s["bins"], *ends), "pf.two_hot")
    r.close(two_hot_inverse(r["pf.logits"], *ends), "pf.two_hot_inv")
    r.close(rows(two_hot_loss(r["pf.logits"], r["pf.x"], *ends)), "pf.soft_ce")
    r.close(simnorm(r["pf.simnorm_in"], s["simnorm"]), "pf.simnorm_out")
    r.close(time_table(s["TD"], s["temb"]), "pf.time_embed")
    x = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    torch.testing.assert_close(mish(x), torch.nn.functional.mish(x), rtol=1e-12, atol=1e-12)
    scale, found = torch.ones((), dtype=torch.float64), []
    for values in r["pf.scale_in"]:
        scale = running_scale(scale, values[:, 0], s["cfg.tau"])
        found.append(scale)
    r.close(torch.stack(found), "pf.scale_value")
    r.close(r["pf.scale_in"][0] / scale, "pf.scale_apply")


def test_heads(r):
    model = agent_of(r).model
    z, a = model.encode(r["net.obs"]), r["net.action"]
    r.close(z, "net.z")
    r.close(model.next(z, a), "net.next")
    r.close(model.reward_logits(z, a), "net.reward_logits")
    r.close(rows(model.reward(z, a)), "net.reward")
    r.close(rows(model.energy(z, a)), "net.F")
    r.close(model.value_logits(z, a), "net.Q_logits")
    r.close(rows(model.values(z, a)), "net.Q_all")
    r.close(rows(model.values(z, a, target=True)), "net.Q_target_all")
    r.close(rows(model.values(z, a, chosen=r["net.q_perm_avg"][:2].tolist()).mean(0)), "net.Q_avg")
    r.close(rows(model.values(z, a, chosen=r["net.q_perm_min"][:2].tolist()).amin(0)), "net.Q_min")
    r.close(rows(model.termination_logit(z).sigmoid()), "net.termination")
    r.close(model.score_output(z, r["net.score_x"], r["net.score_tau"]), "net.score")
    check_policy(r, model.policy(z, r["net.pi_noise"]), "net.pi_")


def test_heads_of_several_tasks(r):
    model = agent_of(r, "C").model
    every = torch.arange(r.scalars["ctasks"])[:, None]
    z = model.encode(r["net.obs"].expand(len(every), -1, -1), every)
    r.close(z, "netC.z")
    sample = model.policy(z[0], r["netC.pi_noise"], r["netC.task"])
    check_policy(r, sample, "netC.pi_")
    r.close(rows(model.energy(z[0], r["net.action"], r["netC.task"])), "netC.F")
    r.close(model.task_table, "netC.task_emb_after")


def check_policy(r: Recording, sample: Any, prefix: str) -> None:
    r.close(sample.action, prefix + "action")
    r.close(sample.mean, prefix + "mean")
    r.close(sample.log_std, prefix + "log_std")
    r.close(rows(sample.entropy), prefix + "entropy")
    r.close(rows(sample.scaled_entropy), prefix + "scaled_entropy")


@pytest.mark.parametrize("case", ["est", "est_clip", "est_epi", "est_task"])
def test_value_estimate(r, case):
    s = r.scalars
    model = agent_of(r, s[f"{case}.weights"]).model
    model.energy_mean.fill_(s[f"{case}.mean"])
    model.energy_std.fill_(s[f"{case}.std"])
    task = torch.tensor([s[f"{case}.task"]]) if f"{case}.task" in s else None
    plans, episodic = r[f"{case}.actions"].transpose(0, 1), case == "est_epi"
    tasks = None if task is None else task.expand(len(plans)).unsqueeze(1)
    rolled = roll(model, r[f"{case}.z"].unsqueeze(1), plans.unsqueeze(1), tasks, episodic, costly=False)  # a plan a state
    rolled = type(rolled)(*(part if part is None else part.squeeze(1) for part in rolled))
    torch.testing.assert_close(rolled.z, r[f"{case}.z_next"][-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rows(rolled.gain), r[f"{case}.G"][-1], rtol=1e-9, atol=1e-9)
    value = prospects(model, rolled, s["H"], r[f"{case}.noise_pi"], r[f"{case}.q_perm"][:2].tolist(), task).gain
    r.close(rows(value), f"{case}.value")
    # the parts of each step
    z = r[f"{case}.z"]
    for t in range(s["H"]):
        a = r[f"{case}.actions"][t]
        logits = model.energy(z, a, task)
        parts = {
            "reward": model.reward(z, a, task), "f_score": logits, "f_norm": model.normal_energy(logits),
            "shaped_reward": model.reward(z, a, task) + s["eta"] * model.normal_energy(logits),
        }  # fmt: skip
        for name, part in parts.items():
            torch.testing.assert_close(rows(part), r[f"{case}.{name}"][t], rtol=1e-9, atol=1e-9)
        z = model.next(z, a, task)
    action = model.policy(z, r[f"{case}.noise_pi"], task).action
    r.close(rows(model.values(z, action, task, r[f"{case}.q_perm"][:2].tolist()).mean(0)), f"{case}.terminal_q")


PLANS = [f"plan{i}" for i in range(8)]


def plan_agent(r: Recording, case: str) -> MBDPO:
    s = r.scalars
    network = s[f"{case}.use_score_network"]
    return agent_of(
        r, "C" if f"{case}.task" in s else "A", planner="score" if network else "denoise", elites=s[f"{case}.num_elites"],
        policy_rollouts=s[f"{case}.num_pi_trajs"], episodic="on" if case == "plan5" else "off",
    )  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_plan(r, case):
    s = r.scalars
    agent = plan_agent(r, case)
    task = torch.tensor([s[f"{case}.task"]]) if f"{case}.task" in s else None
    levels = range(s["TD"] - 1, 0, -1)

    def by_round(name: str) -> Tensor:
        return torch.stack([r[f"{case}.{name}"][tau] for tau in levels])

    noise = PlanNoise.draw(agent.config, 1, s["A"], r[f"{case}.prev_mean"], torch.Generator())
    if f"{case}.noise_seq" in r.arrays:
        noise = noise._replace(
            proposals=by_round("noise_seq").unsqueeze(1), terminal=by_round("noise_term").unsqueeze(1), critics=by_round("q_perm")[:, :2]
        )
    if s[f"{case}.num_pi_trajs"] and f"{case}.noise_pi" in r.arrays:
        noise = noise._replace(rollouts=by_round("noise_pi").unsqueeze(2))
    if f"{case}.noise_action" in r.arrays:
        noise = noise._replace(action=r[f"{case}.noise_action"][None])
    last = r[f"{case}.prev_mean"][None]
    start = torch.zeros_like(last) if s[f"{case}.t0"] else torch.cat([last[:, 1:], torch.zeros_like(last[:, :1])], dim=1)
    z = agent.model.encode(r[f"{case}.obs"][None], task)
    with torch.no_grad():
        plan, action = agent.search.plan(z, start, noise, task, agent.episodic, None, explore=not s[f"{case}.eval_mode"])
    r.close(plan[0], f"{case}.prev_mean_new")
    r.close(action[0], f"{case}.action")


@pytest.mark.parametrize("case", [*(case for case in PLANS if case != "plan3"), "planS"])  # plan3 has no Monte-Carlo part
def test_plan_level_by_level(r, case):
    s = r.scalars
    agent = plan_agent(r, case)
    model, alpha_bar = agent.model, agent.search.alpha_bar
    task = torch.tensor([[s[f"{case}.task"]]]) if f"{case}.task" in s else None
    z = model.encode(r[f"{case}.obs"][None], None if task is None else task[0]).unsqueeze(1)
    for tau in range(1, s["TD"]):
        x = r[f"{case}.x_in"][tau]
        plans = propose(x, alpha_bar[tau], r[f"{case}.noise_seq"][tau])
        if task is not None:
            plans = model.masked(plans, task[0])
        if s[f"{case}.num_pi_trajs"]:
            ours = policy_rollouts(model, z, r[f"{case}.noise_pi"][tau].unsqueeze(1), task)[0]
            plans = torch.cat([ours, plans[len(ours) :]])
        level(r, f"{case}.candidates", tau, plans)
        if case == "planS":
            stub = r["planS.stub_values"][tau]
            values = torch.where(stub == -12345, torch.nan, stub)
            level(r, f"{case}.values", tau, values.nan_to_num(0.0))
        else:
            noise, critics = r[f"{case}.noise_term"][tau][None], r[f"{case}.q_perm"][tau][:2]
            values = agent.search.values(z, plans[None], noise, critics, task, agent.episodic, None)[0]
            level(r, f"{case}.values", tau, values)
        arguments = (s["temp"], s[f"{case}.num_elites"])
        level(r, f"{case}.weights", tau, plan_weights(values, *arguments))
        level(r, f"{case}.a_bar", tau, plan_mean(plans, values, *arguments))
        level(r, f"{case}.score_mb", tau, plan_score(x, plans, values, alpha_bar[tau], *arguments))


def level(r: Recording, name: str, tau: int, got: Tensor) -> None:
    torch.testing.assert_close(got.detach(), r[name][tau], rtol=1e-9, atol=1e-9, msg=lambda m: f"{name}[{tau}]: {m}")


@pytest.mark.parametrize("case", ["mcs", "mcs2", "mcsC"])
def test_released_score_target(r, case):
    agent = agent_of(r, "C" if case == "mcsC" else "A", planner="score")
    task = torch.tensor([r.scalars["mcsC.task"]]) if case == "mcsC" else None
    noise = score_noise(lambda name: r[f"{case}.{name}"])
    with torch.no_grad():
        target = released_target(agent.search, r[f"{case}.z"], noise, task, False, None)
    r.close(target[0], f"{case}.target")


def score_noise(recorded: Any) -> ScoreNoise:
    empty = torch.zeros(0)
    return ScoreNoise(
        recorded("tau"), recorded("x_tau")[None], empty, recorded("noise")[None], empty, recorded("noise_pi")[None], recorded("q_perm")[:2]
    )


@pytest.mark.parametrize("case", ["con", "conC", "aligned"])
def test_contrastive_loss(r, case):
    name = "con" if case == "aligned" else case
    agent = agent_of(r, "C" if case == "conC" else "A", energy_pairs="aligned" if case == "aligned" else "released")
    zs, actions = r[f"{name}.zs"], r[f"{name}.actions"]
    task = r["conC.task"] if case == "conC" else None
    noise = update_noise(lambda n: r[f"{name}.{n}"].view(*actions.shape))
    loss, logits = contrastive_loss(agent.model, zs, actions, noise, task)
    if case == "aligned":
        r.close(loss, "con.aligned_loss")
        r.close(logits[0].reshape(-1, 1), "con.aligned_pos_logits")
        return
    r.close(loss, f"{name}.loss")
    r.close(logits[0].reshape(-1, 1), f"{name}.pos_logits")
    r.close(logits[1].reshape(-1, 1), f"{name}.neg_logits")
    mean, std = running_energy(agent.model.energy_mean, agent.model.energy_std, logits, agent.config.energy_momentum)
    r.close(mean[None], f"{name}.mean_after")
    r.close(std[None], f"{name}.std_after")


def update_noise(negatives: Any, **others: Any) -> UpdateNoise:
    absent = torch.zeros(0)
    base = UpdateNoise(absent, torch.arange(2), negatives("noise_pi"), negatives("noise_neg"), negatives("uniform"), absent, absent, None, None)
    return base._replace(**others)


@pytest.mark.parametrize("case", ["td", "tdC"])
def test_td_target(r, case):
    model = agent_of(r, "C" if case == "tdC" else "A").model
    task = r["tdC.task"] if case == "tdC" else None
    next_z = r[f"{case}.next_z"]
    action = model.policy(next_z, r[f"{case}.noise_pi"], task).action
    target = td_target(model, next_z, r[f"{case}.reward"][..., 0], r[f"{case}.terminated"][..., 0], action, [0, 1], task)
    r.close(rows(target), f"{case}.target")


def update_inputs(r: Recording, case: str, call: int, task: Tensor | None, score: bool) -> tuple[Sequences, UpdateNoise]:
    """The batch and the draws of one of the two recorded updates."""

    def recorded(name: str) -> Tensor:
        return r[f"{case}.{name}"][call]

    action = recorded("action")
    no_cost = torch.zeros(0, *action.shape[:2], dtype=torch.float64)
    data = Sequences(recorded("obs"), action, recorded("reward")[..., 0], no_cost, recorded("terminated")[..., 0], task)
    names = {"noise_pi": "noise_con_pi", "noise_neg": "noise_con_neg", "uniform": "uniform_con"}
    noise = update_noise(
        lambda n: recorded(names[n]).view(*action.shape), target=recorded("noise_td"), policy=recorded("noise_pi"),
        policy_critics=recorded("q_perm_pi")[:2], score=score_noise(lambda n: recorded(f"score_{n}")) if score else None,
    )  # fmt: skip
    return data, noise


METRICS = {  # ours -> released
    "consistency_loss": "consistency_loss", "reward_loss": "reward_loss", "value_loss": "value_loss", "contrastive_loss": "contrastive_loss",
    "termination_loss": "termination_loss", "score_loss": "score_loss", "total_loss": "total_loss", "grad_norm": "grad_norm", "policy_loss": "pi_loss",
    "policy_grad_norm": "pi_grad_norm", "policy_entropy": "pi_entropy", "policy_scaled_entropy": "pi_scaled_entropy", "value_scale": "pi_scale",
    "energy_mean": "contrastive_mean_after", "energy_std": "contrastive_std_after",
}  # fmt: skip


@pytest.mark.parametrize("case", ["updA", "updS", "updE", "updC"])
def test_two_updates(r, case):
    letter = "C" if case == "updC" else "A"
    agent = agent_of(r, letter, planner="score" if case in ("updS", "updC") else "denoise", episodic="on" if case == "updE" else "off")
    for call in range(2):
        data, noise = update_inputs(r, case, call, r["updC.task"] if letter == "C" else None, agent.config.trains_score)
        metrics = agent.update_sequences(data, noise)
        for ours, released in METRICS.items():
            if ours in metrics:
                want = float(r[f"{case}.{released}"][call])
                assert float(metrics[ours]) == pytest.approx(want, rel=1e-9, abs=1e-9), ours
        if case == "updA" and call == 0:
            check_gradients(r, agent)
        if f"{case}.after{call + 1}.encoder.0.weight" in r.arrays:
            check_weights(r, agent, f"{case}.after{call + 1}.")


def check_weights(r: Recording, agent: MBDPO, prefix: str) -> None:
    """Every recorded weight after an update equals ours; ours are compared in the recorded layout."""
    compared = set()
    for name, value in agent.model.state_dict().items():
        net = name.split(".")[0]
        if net in NETS or name == "task_table":
            want = recorded_parameter(agent, r.arrays, prefix, name, value)
            torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{prefix}{n}: {m}")
            compared.add(name)
    assert len(compared) > 50


def check_gradients(r: Recording, agent: MBDPO) -> None:
    """The clipped gradients of the first update, which Adam's first moments hold: m = 0.1 g."""
    moments = {p: slots["exp_avg"] for o in (agent.model_optimiser, agent.policy_optimiser) for p, slots in o.state.items()}
    checked = 0
    for name, parameter in agent.model.named_parameters():
        want = recorded_parameter(agent, r.arrays, "updA.call0.grad.", name, torch.empty(0))
        if want.numel() and parameter in moments:
            torch.testing.assert_close(10 * moments[parameter], want, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"gradient of {n}: {m}")
            checked += 1
    assert checked > 50
