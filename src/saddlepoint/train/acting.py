"""A policy at work in several environments, with the memory that it may carry through an episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saddlepoint.train.episodes import stored_like
from saddlepoint.types import ActMode, CountsCost, Planner, Policy
from saddlepoint.usual import usual_torch


class Actor:
    """Acts for ``num_envs`` environments. A ``Planner``'s memory starts at zeros with every episode (``restart``); other policies carry nothing."""

    def __init__(self, policy: Policy, num_envs: int, device: torch.device | str) -> None:
        self.policy, self.device = policy, torch.device(device)
        self.planner = policy if isinstance(policy, Planner) and policy.memory_size else None
        self.counts_cost = isinstance(policy, CountsCost) and policy.counts_cost
        self.memory = torch.zeros(num_envs, self.planner.memory_size if self.planner else 0, dtype=torch.float32, device=self.device)

    def act(self, observation: np.ndarray, mode: ActMode, generator: torch.Generator) -> np.ndarray:
        """(envs, observation) -> (envs, action), in the environment's own units."""
        with usual_torch(), torch.no_grad():
            batch = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
            if self.planner is None:
                return self.policy.act(batch, mode, generator).cpu().numpy()
            action, self.memory = self.planner.act_on(batch, self.memory, mode, generator)
            return action.cpu().numpy()

    def follow(self, cost: np.ndarray, ended: np.ndarray) -> None:
        """After a step: it cost (envs, constraints), and these episodes ``ended``, (envs,) bool."""
        self.pay(cost)
        if ended.any():
            self.restart(ended)

    def pay(self, cost: np.ndarray) -> None:
        """Count what a step cost, (envs, constraints), where the policy acts by it."""
        if self.counts_cost and isinstance(self.policy, CountsCost):
            with usual_torch():
                self.memory = self.policy.paid(self.memory, torch.as_tensor(cost, dtype=torch.float32, device=self.device))

    def restart(self, ended: np.ndarray | None = None) -> None:
        """Forget what belongs to the episodes that ``ended``, (envs,) bool; all of them when None."""
        keep = np.zeros(len(self.memory), bool) if ended is None else ~ended
        with usual_torch():  # multiplying would keep a nan
            self.memory = torch.where(torch.as_tensor(keep, device=self.device)[:, None], self.memory, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """``memory`` (envs, memory_size); nothing for a policy without one."""
        return {} if self.planner is None else {"memory": self.memory.cpu().numpy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.planner is not None and "memory" in state:  # checkpoints of ALGD from before its noise was carried on have none
            self.memory = torch.as_tensor(stored_like(state["memory"], self.memory.cpu().numpy()), device=self.device)
