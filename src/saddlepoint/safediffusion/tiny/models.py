"""The models of the tiny world, untrained: a tokenizer, a CLIP, a VAE and a UNet in the layouts of transformers and
diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saddlepoint.safediffusion.tiny.captions import write_captions
from saddlepoint.safediffusion.tiny.scenes import SIDE, sample_scenes

TOKENS = 28
"""of a caption at most, start and end included"""
WIDTH = 96
"""of both towers of the CLIP, and so of what the UNet is told"""
PROJECTION = 64
LATENT_SIDE = 8
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CORPUS = 6000
"""captions that the tokenizer is trained on"""


def train_tokenizer(folder: Path, seed: int) -> Any:
    """Byte-pair encoding of the captions, as a CLIP tokenizer; its two files go into ``folder``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = np.random.default_rng([seed, 0])
    words = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Every byte is in the vocabulary within and at the end of a word, so that any prompt can be written.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[*(letter + "</w>" for letter in sorted(alphabet)), "<|startoftext|>", "<|endoftext|>"],
    )
    words.train_from_iterator(write_captions(sample_scenes(rng, CORPUS, 0.5), rng), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    words.model.save(str(folder))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def build_clip(tokenizer: Any) -> Any:
    """Two transformers of three layers; pictures in patches of 8 x 8 pixels."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = size | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=size | {"image_size": SIDE, "patch_size": 8}, projection_dim=PROJECTION
        )
    )


def build_vae() -> Any:
    """Pictures of 32 x 32 pixels to latents of 4 x 8 x 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def build_unet() -> Any:
    """Two levels, 8 x 8 and 4 x 4, which both attend to the caption."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def build_scheduler() -> Any:
    """DDIM with velocity prediction: of the three targets the one whose error weighs alike on all noise levels."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )


def load_world(folder: Path) -> tuple[Any, Any, Any]:
    """(CLIP, VAE, tokenizer) of a finished tiny world."""
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, CLIPModel

    clip: Any = CLIPModel.from_pretrained(folder / "clip")
    vae: Any = AutoencoderKL.from_pretrained(folder / "pipeline" / "vae")
    vae.register_to_config(_name_or_path=folder.name)  # not where it lay on this machine
    return (
        clip.eval().requires_grad_(False),
        vae.eval().requires_grad_(False),
        AutoTokenizer.from_pretrained(folder / "pipeline" / "tokenizer"),
    )


def text_encoder(clip: Any) -> Any:
    """The CLIP's text tower as a pipeline's encoder: a safety direction in the CLIP is then one in what the UNet is
    told."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(clip.config.text_config)
    prefix = "text_model." if hasattr(encoder, "text_model") else ""  # depends on the version of transformers
    encoder.load_state_dict({prefix + name: value for name, value in clip.text_model.state_dict().items()})
    return encoder.eval()


def assemble(clip: Any, vae: Any, unet: Any, tokenizer: Any) -> Any:
    """A Stable-Diffusion pipeline."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_clip(clip: Any, tokenizer: Any, folder: Path) -> None:
    """The CLIP with its tokenizer and picture settings, as ``CLIPEncoder`` reads them."""
    from transformers.models.clip import CLIPImageProcessorPil

    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    settings: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**settings, image_mean=half, image_std=half).save_pretrained(folder)
