"""Pipelines of every family and a CLIP with random weights, in diffusers' and transformers' layouts: small enough to be
made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = (
    "a",
    "red",
    "blue",
    "green",
    "square",
    "circle",
    "triangle",
    "sign",
    "scene",
    "with",
    "warning",
    "and",
    "peaceful",
    "of",
    "no",
    "people",
    "calm",
    "violent",
    "person",
    "picture",
)


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
    tokenizer = CLIPTokenizer(
        str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=4,
            out_channels=4,
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=2 * side,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    betas = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**betas | (scheduler or {})),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


WIDTH = 16
"""of all text encoders"""


def _words(folder: Path):
    from transformers import CLIPTokenizer

    write_tokenizer(folder / "words")
    return CLIPTokenizer(
        str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=16
    )


def _text_config(tokenizer, **more):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _vae(channels: int, side: int, **more):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=2 * side,
        **more,
    )


def _t5():
    """An encoder of the words and its tokenizer, which knows a word as one token."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=64)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config), tokenizer


def write_sdxl(folder: Path, seed: int = 0, **scheduler) -> Path:
    """SDXL: two text encoders, six time ids; DDIM that does not clip."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _words(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
        parts = {
            "vae": _vae(4, 4),
            "text_encoder": CLIPTextModel(_text_config(tokenizer)),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(tokenizer, projection_dim=WIDTH)),
        }
    betas = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    pipeline = StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**betas | scheduler),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def write_sd3(folder: Path, seed: int = 0, t5: bool = True, **scheduler) -> Path:
    """SD3 with shift 3: two CLIP encoders and, if it likes, a T5; 16 latent tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    tokenizer = _words(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        )
        encoders = [CLIPTextModelWithProjection(_text_config(tokenizer, projection_dim=WIDTH)) for _ in range(2)]
        vae = _vae(4, 4, shift_factor=0.1, scaling_factor=1.3)
        third, its_words = _t5() if t5 else (None, None)
        if third is not None:
            from transformers import T5Config, T5EncoderModel

            third = T5EncoderModel(T5Config(**third.config.to_dict() | {"d_model": 2 * WIDTH}))
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=third,
        tokenizer_3=its_words,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def write_flux(folder: Path, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """FLUX.1 with a guidance embedding and a shift by resolution."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    tokenizer = _words(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        )
        parts = {
            "vae": _vae(4, 4, shift_factor=0.1, scaling_factor=0.9),
            "text_encoder": CLIPTextModel(_text_config(tokenizer)),
        }
        t5, its_words = _t5()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    pipeline = FluxPipeline(
        **parts,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=its_words,
        transformer=transformer,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


FAMILY_WRITERS = {"sd": write_pipeline, "sdxl": write_sdxl, "sd3": write_sd3, "flux": write_flux}


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of 8 x 8 pictures."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessorPil

    write_tokenizer(folder / "words")
    tokenizer = CLIPTokenizer(
        str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=16
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=size | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config=size | {"image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(
        folder / "clip"
    )
    return folder / "clip"
