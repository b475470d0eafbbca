"""An algorithm of one's own in ordinary PyTorch: TD3 (arXiv 1802.09477) whose policy pays a multiplier for estimated cost.

    cd examples
    saddlepoint train own_algorithm:td3-lag --env saddlepoint/Toy-v0 --total-steps 20000 --out runs/td3
    saddlepoint train --resume runs/td3 --total-steps 30000
    saddlepoint evaluate runs/td3
    saddlepoint export runs/td3 policy.onnx
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saddlepoint import register_system


@dataclass(frozen=True)
class TD3LagConfig:
    """Every field is a flag, and a text below it its help."""

    hidden: int = 128
    """units of each hidden layer"""
    learning_rate: float = 1e-3
    multiplier_rate: float = 1e-2
    gamma: float = 0.99
    polyak: float = 0.005
    noise: float = 0.1
    """standard deviation of exploring actions, as a share of half their range"""
    batch_size: int = 128


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def values(critics: nn.ModuleList, observation: Tensor, action: Tensor) -> Tensor:
    """(batch, 2 + constraints): two critics of the reward, then one of each cost."""
    return torch.cat([critic(torch.cat([observation, action], -1)) for critic in critics], -1)


class Actor(nn.Module):
    def __init__(self, shape, hidden):
        super().__init__()
        self.net = mlp(shape.observation, hidden, shape.action)
        low, high = torch.tensor([shape.action_low, shape.action_high])
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("scale", (high - low) / 2)

    def forward(self, observation: Tensor) -> Tensor:
        return self.center + self.scale * self.net(observation).tanh()

    def noisy(self, action: Tensor, std: float, generator: torch.Generator) -> Tensor:
        action = action + self.scale * std * torch.randn(action.shape, generator=generator, device=action.device)
        return action.clamp(self.center - self.scale, self.center + self.scale)


class TD3Lag(nn.Module):
    system, needs_cost = "td3-lag", True

    def __init__(self, config: TD3LagConfig, shape, budgets, seed, device, *, compile=False):
        super().__init__()
        self.config, self.generator = config, torch.Generator(device).manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.actor = Actor(shape, config.hidden)
            self.critics = nn.ModuleList(mlp(shape.observation + shape.action, config.hidden, 1) for _ in range(2 + len(budgets)))
        self.target_actor, self.target_critics = deepcopy(self.actor), deepcopy(self.critics)
        self.register_buffer("limit", torch.tensor([budget.critic for budget in budgets]))
        self.register_buffer("multiplier", torch.zeros(len(budgets)))
        self.to(device)
        self.slow = [*self.target_actor.parameters(), *self.target_critics.parameters()]
        self.adam = torch.optim.Adam([*self.actor.parameters(), *self.critics.parameters()], config.learning_rate)

    def act(self, observation, mode, generator):
        action = self.actor(observation)
        return action if mode == "deterministic" else self.actor.noisy(action, self.config.noise, generator)

    def observe(self, observation): ...  # no running statistics

    def update(self, replay, updates):
        c = self.config
        for _ in range(updates):
            batch = replay.sample(c.batch_size, self.generator)
            with torch.no_grad():
                following = self.target_actor.noisy(self.target_actor(batch.next_observation), 0.2, self.generator)
                v = values(self.target_critics, batch.next_observation, following)
                v = torch.cat([v[:, :2].amin(1, True).expand(-1, 2), v[:, 2:]], 1)
                target = torch.cat([batch.reward[:, None].expand(-1, 2), batch.cost], 1) + c.gamma * (1 - batch.terminated[:, None]) * v
            critic_loss = (values(self.critics, batch.observation, batch.action) - target).square().mean()
            v = values(self.critics, batch.observation, self.actor(batch.observation))
            actor_loss = (v[:, 2:] @ self.multiplier - v[:, 0]).mean() / (1 + self.multiplier.sum())
            for loss, part in ((actor_loss, self.actor), (critic_loss, self.critics)):
                for parameter, slope in zip(part.parameters(), torch.autograd.grad(loss, list(part.parameters()))):
                    parameter.grad = slope
            self.adam.step()
            with torch.no_grad():
                self.multiplier.add_(c.multiplier_rate * (v[:, 2:].mean(0) - self.limit)).clamp_(min=0)
                for slow, fast in zip(self.slow, self.adam.param_groups[0]["params"]):
                    slow.lerp_(fast, c.polyak)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "multiplier": self.multiplier.sum()}

    def state_dict(self):
        moments = {f"adam.{i}.{name}": value for i, slots in self.adam.state_dict()["state"].items() for name, value in slots.items()}
        return super().state_dict() | moments | {"rng": self.generator.get_state()}

    def load_state_dict(self, state):
        super().load_state_dict({name: state[name] for name in super().state_dict()})
        slots = {}
        for _, number, slot in (name.split(".") for name in state if name.startswith("adam.")):
            slots.setdefault(int(number), {})[slot] = state[f"adam.{number}.{slot}"].clone()
        self.adam.load_state_dict({"state": slots, "param_groups": self.adam.state_dict()["param_groups"]})
        self.generator.set_state(state["rng"])


register_system("td3-lag", TD3Lag, TD3LagConfig, export=lambda learner, mode: learner.actor)
