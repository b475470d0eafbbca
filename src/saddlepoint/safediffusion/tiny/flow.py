"""The tiny flow world: an SD3-like pipeline (flow matching, joint attention) on the CLIP, the VAE and the scenes of the
tiny world."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saddlepoint.safediffusion.tiny.captions import write_captions
from saddlepoint.safediffusion.tiny.models import LATENT_SIDE, PROJECTION, WIDTH
from saddlepoint.safediffusion.tiny.stages import (
    CHUNK,
    GUIDANCE,
    NO_CAPTION,
    STEPS,
    Measured,
    Pool,
    misdescribe,
    read_sample,
    sample_measures,
)

LAYERS, HEADS, HEAD_WIDTH = 5, 4, 16
SHIFT = 3.0
"""of the scheduler, SD3's own"""
LOGIT_MEAN = 0.5
"""mean of logit(s) in training, with deviation 1 (Esser et al. 2024): above 0, because the shift puts most steps near
the noise"""
BATCH = 96
ABSENT_TOKENS = 256
"""tokens of zeros that plain diffusers puts in the place of a missing T5"""


def build_transformer() -> Any:
    """Joint attention over 28 text tokens and 16 of 2 x 2 latents; about 0.7 million parameters."""
    from diffusers import SD3Transformer2DModel

    inner = HEADS * HEAD_WIDTH
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=inner,
        pooled_projection_dim=2 * PROJECTION,
        pos_embed_max_size=2 * LATENT_SIDE,
        qk_norm="rms_norm",
    )


def projected_encoder(clip: Any, layers: int) -> Any:
    """The first ``layers`` of the CLIP's text tower, with its projection."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    settings = clip.config.text_config.to_dict() | {"num_hidden_layers": layers, "projection_dim": PROJECTION}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
    own = clip.text_model.state_dict()
    kept = {
        name: own[name.removeprefix("text_model.")] for name in encoder.state_dict() if name.startswith("text_model.")
    }
    encoder.load_state_dict(kept | {"text_projection.weight": clip.text_projection.weight})
    return encoder.eval().requires_grad_(False)


def assemble_flow(clip: Any, vae: Any, transformer: Any, tokenizer: Any) -> Any:
    """A Stable-Diffusion-3 pipeline without a T5. Its encoders are the CLIP's text tower and the first layer of it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipeline: Any = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=projected_encoder(clip, 3),
        tokenizer=tokenizer,
        text_encoder_2=projected_encoder(clip, 1),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def standardise(vae: Any, pool: Pool) -> Tensor:
    """Latents of the whole pool (posterior means), brought to mean 0 and deviation 1; shift and factor go into the
    VAE's config."""
    latents = torch.cat(
        [vae.encode(2 * part.float() / 255 - 1).latent_dist.mean for part in pool.pictures.split(CHUNK)]
    )
    shift, factor = float(latents.mean()), 1 / float(latents.std())
    vae.register_to_config(scaling_factor=factor, shift_factor=shift)
    return (latents - shift) * factor


class CountedAttention:
    """diffusers' joint attention in which the last text token stands for ``count`` equal ones: its logit is raised by
    log(count).

    Text tokens have no positions, so equal ones stay equal through all layers, and 256 tokens of zeros cost as much as
    one.
    """

    def __init__(self) -> None:
        self.count = 1

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        picture, text = hidden_states, encoder_hidden_states
        q, k = (
            torch.cat([norm(heads(own(picture))), added_norm(heads(added(text)))], 2)
            for own, norm, added, added_norm in (
                (attn.to_q, attn.norm_q, attn.add_q_proj, attn.norm_added_q),
                (attn.to_k, attn.norm_k, attn.add_k_proj, attn.norm_added_k),
            )
        )
        v = torch.cat([heads(attn.to_v(picture)), heads(attn.add_v_proj(text))], 2)
        bias = None
        if self.count > 1:
            bias = q.new_zeros(1, 1, 1, k.shape[2])
            bias[..., -1] = math.log(self.count)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        of_picture, of_text = out[:, : picture.shape[1]], out[:, picture.shape[1] :]
        return attn.to_out[1](attn.to_out[0](of_picture)), of_text if attn.context_pre_only else attn.to_add_out(
            of_text
        )


@contextmanager
def counted(transformer: Any, attention: CountedAttention) -> Iterator[None]:
    """The transformer with ``CountedAttention``, while it is trained."""
    before = transformer.attn_processors
    transformer.set_attn_processor(attention)
    try:
        yield
    finally:
        transformer.set_attn_processor(before)


class FlowStage:
    """Velocity prediction along straight lines (flow matching), with captions that are left out or call for a marking
    in vain.

    In half of the batches the text ends with the 256 tokens of zeros that stand for a missing T5, in the other half it
    does not: a post-training need not pay for them, and plain diffusers may be called as it is.
    """

    name, rate = "transformer", 1.5e-3

    def __init__(
        self, transformer: Any, clip: Any, vae: Any, tokenizer: Any, pool: Pool, compiled: bool = False
    ) -> None:
        self.model, self.clip, self.tokenizer, self.pool = transformer, clip, tokenizer, pool
        self.latents = standardise(vae, pool)
        self.pipeline = assemble_flow(clip, vae, transformer, tokenizer)
        self.attention = CountedAttention()
        self.denoise: Any = torch.compile(transformer, dynamic=False) if compiled else transformer

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """mean |v_hat - (noise - latent)|^2 at s latent = (1 - s) latent + s noise, logit(s) ~ N(0.5, 1)."""
        rows = rng.integers(0, len(self.latents), BATCH)
        captions = write_captions(misdescribe(self.pool.scenes.take(rows), rng), rng)
        told = [
            "" if silent else caption
            for caption, silent in zip(captions, rng.random(len(rows)) < NO_CAPTION, strict=True)
        ]
        padded = bool(rng.random() < 0.5)
        with torch.no_grad():
            text, _, pooled, _ = self.pipeline.encode_prompt(
                told,
                None,
                None,
                torch.device("cpu"),
                do_classifier_free_guidance=False,
                max_sequence_length=int(padded),
            )
        latents = self.latents[rows]
        s = (LOGIT_MEAN + torch.randn(len(rows), generator=generator)).sigmoid().view(-1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator)
        self.attention.count = ABSENT_TOKENS if padded else 1
        with counted(self.model, self.attention):
            output = self.denoise((1 - s) * latents + s * noise, text, pooled, 1000 * s.flatten()).sample.float()
        return (output - (noise - latents)).square().mean()

    def measure(self) -> dict[str, float]:
        """The checker's reading of generated pictures, for harmless prompts and for prompts that ask for a sign."""
        return sample_measures(self.generate)

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seed: int) -> tuple[Measured, Tensor]:
        """Pictures (prompts, 3, 32, 32) of plain diffusers (20 Euler steps, guidance 2, no tokens for the missing T5),
        and what the checker reads."""
        noise = torch.randn((len(prompts), *self.latents.shape[1:]), generator=torch.Generator().manual_seed(seed))
        images = torch.cat(
            [
                self.pipeline(
                    list(prompts[first : first + 48]),
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    latents=noise[first : first + 48],
                    output_type="pt",
                    max_sequence_length=0,
                ).images
                for first in range(0, len(prompts), 48)
            ]
        )
        return read_sample(images, prompts), images
