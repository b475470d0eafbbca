"""Parts of ALGD of your own, each in one place: an energy, a critic, a score network. Run it from this folder:

    saddlepoint train algd --env saddlepoint/Toy-v0 --energy own_parts:squared_hinge
    saddlepoint train algd --env saddlepoint/Toy-v0 --critic-network own_parts:HuberCritic
    saddlepoint train algd --env saddlepoint/Toy-v0 --score-network own_parts:AttentionScore
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saddlepoint.algd.energy import Constraint, per_value
from saddlepoint.diffusion.network import ScoreNetwork
from saddlepoint.nn.critics import MLPCritic


def squared_hinge(reward: Tensor, cost: Tensor, constraint: Constraint) -> Tensor:
    """-min_j Q_j + lambda * sum_c [v_c]_+^2,  v = (R - h)/unit: nothing is paid inside the budget, and the price grows with the excess."""
    excess = constraint.violation(cost).clamp(min=0)
    price = per_value(constraint.multiplier, excess)  # (constraints,), or one for each row with --budget-range
    return (price * excess.square()).sum(0) - reward.amin(0)


class HuberCritic(MLPCritic):
    """The released MLPs, fitted by Huber's loss: an outlier pulls with a bounded force."""

    def loss(self, state: Tensor, action: Tensor, target: Tensor, scale: float) -> Tensor:
        values = self(state, action[None])[:, 0]
        return 2 * scale * F.huber_loss(values, target.expand_as(values), reduction="sum")


class AttentionScore(ScoreNetwork):
    """A score network of one attention layer over three tokens: state, latent, step."""

    def __init__(
        self, state: int, action: int, steps: int, hidden: tuple[int, ...], embedding: int, eps_head: bool, generator: torch.Generator
    ) -> None:  # fmt: skip
        super().__init__()
        width = hidden[0]
        with torch.random.fork_rng([]):  # PyTorch's layers draw from the global generator
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            self.state, self.latent, self.step = nn.Linear(state, width), nn.Linear(action, width), nn.Embedding(steps, width)
            self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, action))

    def forward(self, state: Tensor, x: Tensor, k: int | Tensor, head: str = "score") -> Tensor:
        step = torch.as_tensor(k, device=x.device).expand(len(x))
        tokens = torch.stack([self.state(state), self.latent(x), self.step(step)], 1)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(tokens[:, 1] + mixed[:, 1])
