"""SafeDiffusion-R1 against numbers recorded from the released program."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from saddlepoint.diffusion.kernel import ddim_kernel
from saddlepoint.safediffusion.grpo import approximate_kl, clipped_share, group_advantages, grpo_loss, step_log_prob
from saddlepoint.safediffusion.pipeline import DenoisingTable, denoising_table
from saddlepoint.safediffusion.reward import safety_direction, steer
from saddlepoint.safediffusion.rollout import DenoisingPolicy
from tests.parity.fixtures import Recording
from tests.parity.test_r1_kernel import ends


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.load("r1", "r1")


def table(recording: Recording, timesteps: Tensor) -> DenoisingTable:
    """Ours, from the scheduler's config as the recorded levels tell it."""
    exact = recording["sched.alphas_cumprod_exact"]
    first, last = round(1 - float(exact[0]), 12), round(1 - float(exact[-1] / exact[-2]), 12)
    scheduler = {
        "_class_name": "DDIMScheduler", "num_train_timesteps": len(exact), "beta_start": first, "beta_end": last, "beta_schedule": "scaled_linear",
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": int(timesteps[-1]),
    }  # fmt: skip
    return denoising_table(scheduler, len(timesteps))


def test_denoising_tables(recording):
    alpha_bar = recording["sched.alphas_cumprod"]
    names = [name for name in recording.arrays if name.startswith("sched.timesteps")]
    assert names
    for name in names:
        timesteps = recording[name]
        steps = table(recording, timesteps)
        assert torch.equal(steps.timesteps, timesteps)
        torch.testing.assert_close(steps.alpha_bar, alpha_bar[timesteps], rtol=0, atol=1e-7)
        torch.testing.assert_close(steps.alpha_bar_prev, alpha_bar[ends(recording, timesteps, len(timesteps))], rtol=0, atol=1e-7)


def test_guided_sampling_chain(recording):
    """The policy itself, in float32, on a network that answers what was recorded."""
    steps = table(recording, recording[f"sched.timesteps{len(recording['chain.noise'])}"])
    blank, told = recording["chain.uncond"], recording["chain.text"]

    def unet(x, t, encoder_hidden_states):
        k = int((steps.timesteps == t[0]).nonzero())
        return SimpleNamespace(sample=torch.cat([blank[k], told[k]])[-len(x) :].float())  # at guidance 1 it is told alone

    policy = DenoisingPolicy(unet, steps, recording.scalars["chain.guidance_scale"], recording.scalars["chain.eta"], torch.device("cpu"), None)
    x, chain, log_probs = recording["chain.latents0"], [recording["chain.latents0"]], []
    text = torch.zeros(len(x), 1, 1)
    for k, noise in enumerate(recording["chain.noise"]):
        step = policy.step(x, torch.full((len(x),), k), text, text[0])
        x = step.sample(noise)
        log_probs.append(step_log_prob(step, x, "mean"))
        chain.append(x)
    largest = float(recording["chain.latents"].abs().max())  # grows with the guidance, and float32's rounding with it
    recording.close(torch.stack(chain, 1), "chain.latents", atol=2e-6 * largest)
    recording.close(torch.stack(log_probs, 1), "chain.log_probs", atol=1e-4)


def test_steering(recording):
    direction = safety_direction(recording["steer.safe_anchor"], recording["steer.unsafe_anchor"])
    recording.close(direction, "steer.v_safe")
    text, image = recording["steer.text"], normalize(recording["steer.image"], dim=-1)
    alphas = recording["steer.alpha"].tolist()
    translated = torch.stack([steer(text, direction, alpha) for alpha in alphas])
    recording.close(translated, "steer.translate")
    recording.close(torch.stack([steer(text, direction, alpha, mode="projection") for alpha in alphas]), "steer.project")
    recording.close(torch.einsum("id,ajd->aij", image, translated), "steer.reward")
    recording.close((image @ direction)[:, None].expand(-1, len(text)), "steer.image_safety")


def test_group_advantages(recording):
    group = int(recording.scalars["G"])
    rewards = recording["adv.rewards"].view(-1, group)
    recording.close(group_advantages(rewards, float("inf")).flatten(), "adv.advantages")
    recording.close(group_advantages(recording["adv16.rewards"], float("inf")), "adv16.advantages")
    recording.close(group_advantages(recording["adv16.rewards"], recording.scalars["ppo.adv_clip_max"]), "adv16.clipped")


def test_surrogate(recording):
    clip_range, most = recording.scalars["ppo.clip_range"], recording.scalars["ppo.adv_clip_max"]
    new, old = recording["ppo.new_log_prob"].clone().requires_grad_(), recording["ppo.old_log_prob"]
    loss = grpo_loss(new, old, recording["ppo.advantage"].clamp(-most, most), clip_range)
    recording.close(loss, "ppo.loss")
    (gradient,) = torch.autograd.grad(loss, new)
    recording.close(gradient, "ppo.grad_new_log_prob")
    recording.close(approximate_kl(new, old), "ppo.approx_kl")
    recording.close(clipped_share(new, old, clip_range), "ppo.clipfrac", atol=1e-7)


def test_end_to_end(recording):
    """Advantages, permuted steps and the loss of every minibatch and slot."""
    group, rows = int(recording.scalars["G"]), int(recording.scalars["tb"])
    clip_range, most = recording.scalars["ppo.clip_range"], recording.scalars["ppo.adv_clip_max"]
    latents, perms = recording["e2e.latents"], recording["e2e.perms"]
    recording.close(group_advantages(recording["e2e.rewards"].view(-1, group), float("inf")).flatten(), "e2e.advantages")
    advantages = group_advantages(recording["e2e.rewards"].view(-1, group), most).flatten()
    timesteps, alpha_bar = recording[f"sched.timesteps{latents.shape[1] - 1}"], recording["sched.alphas_cumprod"]
    following, eta = ends(recording, timesteps, len(timesteps)), recording.scalars["chain.eta"]
    assert torch.equal(timesteps[perms], recording["e2e.timesteps"])
    found: dict[str, list] = {"new_log_prob": [], "loss": [], "approx_kl": [], "clipfrac": []}
    for b in torch.arange(len(latents)).split(rows):
        for k in perms[b].T:
            now, then = alpha_bar[timesteps[k]], alpha_bar[following[k]]
            step = ddim_kernel(recording["e2e.new_model_output"][b, k], latents[b, k], now, then, eta, "epsilon")
            new, old = step_log_prob(step, latents[b, k + 1], "mean"), recording["e2e.old_log_probs"][b, k]
            found["new_log_prob"].append(new)
            found["loss"].append(grpo_loss(new, old, advantages[b], clip_range))
            found["approx_kl"].append(approximate_kl(new, old))
            found["clipfrac"].append(clipped_share(new, old, clip_range))
    slots = perms.shape[1]
    for name, values in found.items():
        recording.close(torch.stack(values).unflatten(0, (-1, slots)), f"e2e.{name}", atol=1e-7 if name == "clipfrac" else 1e-9)
