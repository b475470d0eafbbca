"""A Stable-Diffusion pipeline and a CLIP with random weights, in diffusers' and transformers' layouts: small enough to be made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = (
    "a", "red", "blue", "green", "square", "circle", "triangle", "sign", "scene", "with", "warning", "and", "peaceful", "of", "no", "people", "calm",
    "violent", "person", "picture",
)  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer whose merges make each of ``WORDS`` one token; other words fall into letters."""
    letters = [chr(code) for code in range(97, 123)] + list("0123456789-',.")
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            if merge not in merges:
                merges.append(merge)
            parts[:2] = ["".join(parts[:2])]
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def write_pipeline(folder: Path, scheduler: dict | None = None, width: int = 8, side: int = 4, seed: int = 0) -> Path:
    """A pipeline of side x side latents and pictures of twice that. ``scheduler`` changes its DDIM settings."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer(str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=side, in_channels=4, out_channels=4, block_out_channels=(width, 2 * width), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4, norm_num_groups=4, sample_size=2 * side,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**betas | (scheduler or {})),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of 8 x 8 pictures."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessorPil

    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer(str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=16)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config=size | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config=size | {"image_size": 8, "patch_size": 4}, projection_dim=12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder / "clip")
    return folder / "clip"
