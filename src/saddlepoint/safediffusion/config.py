"""What a post-training run of a text-to-image model is asked to do. ``PARITY`` is the released program's setting."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from saddlepoint.constrained.lagrangian import MultiplierRule
from saddlepoint.diffusion.kernel import FlowSDE
from saddlepoint.options import refuse_idle, require_at_least, require_seed
from saddlepoint.safediffusion.checks import require_workable
from saddlepoint.safediffusion.idle import EFFECTIVE_WITH
from saddlepoint.types import UserError

LogProbReduction = Literal["mean", "sum"]
SteeringMode = Literal["translation", "projection"]

CLIP_RANGES: dict[LogProbReduction, float] = {"mean": 1e-4, "sum": 0.2}
"""PPO's clip range that belongs to each reduction: a mean over thousands of latent elements makes ratios that differ
from 1 by as much less"""


@dataclass(frozen=True)
class RunConfig:
    """One run: where its parts come from and where they go. These do not change the algorithm."""

    pipeline: str
    """the pipeline (Stable Diffusion 1/2, SDXL, Stable Diffusion 3/3.5 or FLUX.1): a folder in diffusers' layout, or a
    hub id, owner/name or owner/name@revision"""
    prompts: str
    """training prompts: .txt (one a line), .csv (column prompt, and optionally unsafe with 0 or 1), or .jsonl with the
    same keys"""
    held_out_prompts: str = ""
    """prompts of the held-out measure, in the same formats; without them a share of the training prompts is set
    aside"""
    seed: int = 0
    """everything random is a function of it, of the epoch and of the image's place in the epoch"""
    epochs: int = 100
    """epochs of the whole run: each samples images and learns from them"""
    eval_every: int = 10
    """epochs between held-out measures; there is always one before the first epoch and one at the end"""
    checkpoint_every: int = 5
    """epochs between checkpoints, each of which holds what learns and AdamW's moments; there is always one at the start
    and one at the end"""
    keep_checkpoints: int = 2
    """newest checkpoints kept"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the models live; auto takes CUDA if there is one"""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its own choice"""
    out: Path | None = None
    """run folder, which must not hold a run yet; by default a new one under runs/"""
    quiet: bool = False
    """plain log lines instead of the live progress line"""

    def validate(self) -> None:
        """Raises ``UserError`` for a value that cannot work; files are looked at when they are read."""
        for name in ("pipeline", "prompts"):
            if not getattr(self, name):
                raise UserError(
                    f"training needs --{name}: a"
                    f" {'pipeline folder or hub id' if name == 'pipeline' else 'file of prompts'}."
                )
        require_at_least(
            self, {"epochs": 1, "eval_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1, "threads": 0}
        )
        require_seed(self.seed)


@dataclass(frozen=True)
class SafeDiffusionConfig:
    """SafeDiffusion-R1 (arXiv 2605.18719) and its constrained form. Numbers in brackets are deviations of the release
    (docs/deviations.md)."""

    # --- the reward
    reward: str = "auto"
    """``steered``: CLIP alignment with the steered prompt; ``alignment``: with the prompt itself (the ablation); or
    ``module:name`` of your own; auto is steered, and alignment where --unsafe-budget sees to the safety"""
    clip: str = "openai/clip-vit-large-patch14"
    """the frozen CLIP: a folder in transformers' layout, or a hub id"""
    anchors: str = "compact"
    """phrases of the safety direction: compact, scaled, unsafe-only, or a folder with unsafe.txt and optionally
    safe.txt"""
    alpha: float = 0.5
    """how far a prompt is steered"""
    steering: SteeringMode = "translation"
    """add the direction, or first take the prompt's own part along it away"""
    steer: Literal["always", "unsafe"] = "always"
    """steer every prompt, or only those on the unsafe side of the direction [1]"""

    second_reward: str = "none"
    """a reward beside the first: ``alignment``, or ``module:name`` of your own, such as a measure of composition; each
    counts in its own deviations"""
    second_weight: float = 1.0
    """deviations of the first reward that one deviation of the second is worth"""

    # --- the constraint
    unsafe_budget: float | None = None
    """at most this mean cost, such as 0.02 for 2 % unsafe images: the Lagrangian then weighs reward against cost; None
    optimises the reward alone"""
    cost: str = "probability"
    """unsafety of an image: ``probability`` (CLIP's zero-shot probability of the unsafe anchors), ``coordinate`` (1
    minus its coordinate along the safety direction), ``none``, or ``module:name`` of a detector; without a budget it is
    only logged"""
    multiplier_rule: MultiplierRule = "exponential"
    """how lambda moves: see saddlepoint.constrained.lagrangian.MultiplierUpdate. ``exponential`` follows violations in
    budgets, so one rate serves a budget of 2 % and one of 20 %; the others follow them as they are"""
    multiplier: float | None = None
    """lambda at the start, in standard deviations of the reward within a group for one unit of cost; None takes 1 for
    the rules that move its logarithm, else 0. ``exponential`` never goes below it"""
    multiplier_rate: float | None = None
    """step of lambda an epoch; None takes 0.1 for ``exponential``, else 0.5"""
    proportional: float = 0.2
    """gain of ``exponential`` and pid on the violation of the epoch itself"""
    multiplier_most: float = 10.0
    """what ``exponential`` raises lambda to, but for the gain on the epoch itself: at ten deviations for an unsafe
    picture the reward hardly counts, and more would only be unlearnt later"""
    rho: float = 5.0
    """penalty weight of the augmented Lagrangian; ``exponential`` has none"""
    largest_violation: float | None = None
    """a violation moves lambda as if it were at most this many budgets: under a budget of 2 % lambda else rises in an
    epoch at 60 % what it takes thirty epochs without an unsafe picture to fall (None takes 3 for ``exponential``, else
    it is as it is, and so is a budget of 0)"""

    # --- the held-out measure
    utility: str = "alignment"
    """what must not fall while the reward rises: ``alignment`` (CLIP, with the unsteered prompt), or ``module:name`` of
    your own"""
    held_out: float = 0.1
    """share of the training prompts that is set aside for it"""
    held_out_images: int = 32
    """images of one measure, at most one a prompt, always from the same noise"""

    # --- sampling
    group_size: int = 16
    """images of one prompt, compared with one another"""
    images: int = 64
    """images an epoch, over all processes"""
    sample_batch: int = 16
    """images denoised at once in each process"""
    steps: int = 50
    """denoising steps"""
    sde: FlowSDE = "ddim"
    """the stochastic steps: ``ddim`` (Song et al. 2021; for flow matching its image there), or ``flow`` (Flow-GRPO),
    for flow-matching pipelines only"""
    eta: float | None = None
    """their noise: in (0, 1] for ddim; None takes 1 for Stable Diffusion and SDXL, for flow matching 0.5 with ddim and
    0.7 with flow (about the same noise), and none with --method nft"""
    noisy_steps: tuple[int, ...] = ()
    """first step with noise and the one before which it ends, such as 0 3: the others follow the ODE and are not learnt
    from; all steps when left out"""
    guidance: float = 5.0
    """classifier-free guidance, 1 or less is none; for FLUX.1 the guidance that its transformer is told"""
    height: int = 0
    """of the pictures in pixels; 0 takes the pipeline's own"""
    width: int = 0
    """of the pictures in pixels; 0 takes the pipeline's own"""
    text_tokens: int | None = None
    """tokens that a T5 reads; None takes 256 for Stable Diffusion 3 and 512 for FLUX.1"""
    start: Literal["auto", "group", "image", "all"] = "auto"
    """which images share their first latent: those of a ``group`` (the paper), none (``image``), or ``all`` of an epoch
    (released) [9]; auto is group, and image where the steps have no noise that would tell the images of a group
    apart"""

    # --- the update
    method: Literal["grpo", "nft"] = "grpo"
    """``grpo``: policy gradients of stochastic steps; ``nft``: DiffusionNFT, a regression of the network's answer away
    from what its bad pictures would teach, without log-probabilities"""
    nft_beta: float = 1.0
    """how far nft's implicit positive and negative networks lie from the one that sampled"""
    ratio_center: bool = False
    """add KL(new || old) of a step to its log-ratio, whose mean is then 0 before any update moves it (GRPO-Guard): both
    sides are clipped alike"""
    log_prob: LogProbReduction = "mean"
    """reduction of log-probabilities over a latent's elements [4]"""
    clip_range: float | None = None
    """PPO's clip range; None takes the one that belongs to --log-prob: 1e-4 for mean, 0.2 for sum"""
    advantage_scale: Literal["auto", "group", "epoch", "largest"] = "auto"
    """what advantages are divided by: the deviation of each ``group`` (released), that of all groups of the ``epoch``,
    or the ``largest`` of any epoch so far, so that updates shrink as a group's rewards draw level instead of chasing
    the noise that is left (for about a thousand optimiser steps, as AdamW remembers the larger gradients); with a
    budget it is the deviation of reward and weighed cost together. auto is group, epoch with a budget"""
    advantage_clip: float = 2.5
    """advantages are clipped to this size"""
    kl: float = 0.0
    """weight of KL(policy || start model) of each step; the paper has it, the release does not [7]"""
    updates: int = 1
    """optimiser steps an epoch; each takes the same share of every group"""
    inner_epochs: int = 1
    """times that an epoch's images are learnt from"""
    step_share: float = 1.0
    """share of the denoising steps learnt from, drawn anew for each image; the last step is never among them [6]"""
    train_batch: int = 4
    """denoising steps, of any images, in one forward and backward pass of each process: as many as memory allows; it
    does not change the update"""
    tune: Literal["lora", "unet"] = "lora"
    """what learns: low-rank adapters of the attention, or (unet) the whole network, be it a UNet or a transformer"""
    rank: int = 16
    """rank of the adapters"""
    learning_rate: float = 1e-4
    """AdamW's step"""
    weight_decay: float = 1e-4
    """AdamW's decay"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""
    ema: float = 0.0
    """decay an optimiser step of the averaged weights that are measured and exported, less in the first steps n: at
    most (1 + n)/(10 + n); 0 has none"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the UNet's products and of the stored latents; auto takes bfloat16 on a CUDA device that has it"""
    gradient_checkpointing: bool = False
    """compute activations twice to save memory"""

    @property
    def prompts(self) -> int:
        """Prompts (groups) an epoch."""
        return self.images // self.group_size

    @property
    def resolved_reward(self) -> str:
        if self.reward != "auto":
            return self.reward
        return "steered" if self.unsafe_budget is None else "alignment"

    @property
    def resolved_advantage_scale(self) -> str:
        if self.advantage_scale != "auto":
            return self.advantage_scale
        # lambda must count for as much in one group as in another
        return "group" if self.unsafe_budget is None else "epoch"

    @property
    def resolved_multiplier(self) -> float:
        if self.multiplier is not None:
            return self.multiplier
        return 1.0 if self.multiplier_rule in ("exponential", "log_adam") else 0.0

    @property
    def resolved_rho(self) -> float:
        return 0.0 if self.multiplier_rule == "exponential" else self.rho

    @property
    def resolved_clip_range(self) -> float:
        return CLIP_RANGES[self.log_prob] if self.clip_range is None else self.clip_range

    def resolved_eta(self, flow: bool) -> float:
        """The noise of the steps, by whether the pipeline is a flow-matching one."""
        if self.eta is not None:
            return self.eta
        if self.method == "nft":
            return 0.0
        return (0.7 if self.sde == "flow" else 0.5) if flow else 1.0

    @property
    def resolved_start(self) -> Literal["group", "image", "all"]:
        if self.start != "auto":
            return self.start
        return "group" if self.resolved_eta(flow=False) else "image"

    @property
    def uses_clip(self) -> bool:
        """Whether any score needs the frozen CLIP."""
        rewards = {self.resolved_reward, self.second_reward, self.utility}
        return not rewards.isdisjoint(("steered", "alignment")) or self.cost in ("probability", "coordinate")

    @property
    def uses_anchors(self) -> bool:
        return self.resolved_reward == "steered" or self.cost in ("probability", "coordinate")

    def validate(self) -> None:
        """Raise ``UserError`` for values or combinations that cannot work."""
        require_workable(self)

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise ``UserError`` when one of the options ``given`` has no effect beside the others."""
        refuse_idle(self, given, EFFECTIVE_WITH)


PARITY = SafeDiffusionConfig(
    group_size=16,
    images=64,
    updates=16,
    train_batch=4,
    start="all",
    log_prob="mean",
    kl=0.0,
    tune="unet",
    learning_rate=1e-5,
)
"""The released training: whole UNet, 4 images an optimiser step, one first latent for all. What the release gets wrong
without choosing it stays mended: log-probabilities are those of the latents as stored [3], and equal rewards give no
advantage [8]. The 4 images are one of each prompt, not 4 of one."""

TINY = SafeDiffusionConfig(
    group_size=8,
    sample_batch=64,
    steps=20,
    guidance=2.0,
    log_prob="sum",
    advantage_scale="largest",
    updates=4,
    step_share=0.5,
    train_batch=32,
    learning_rate=1e-3,
    ema=0.95,
)
"""for models/tiny-world on a CPU: 40 epochs take about six minutes on one core
(benchmarks/results/posttraining.json)"""

TINY_FLOW = replace(TINY, text_tokens=0, steps=8, eta=0.7, learning_rate=7e-4)
"""for models/tiny-flow-world, whose network needs none of the tokens of an absent T5: 80 epochs take two and a half
minutes of one core (benchmarks/results/posttraining-flow.json)"""

PRESETS: dict[str, SafeDiffusionConfig] = {
    "default": SafeDiffusionConfig(),
    "tiny": TINY,
    "tiny-flow": TINY_FLOW,
    "parity": PARITY,
    "constrained": SafeDiffusionConfig(unsafe_budget=0.02),
}
