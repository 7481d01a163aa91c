"""The architectures of the world's small models, and where their weights lie.

They are the classes that full scale uses too: an ``open_clip.CLIP``, a diffusers ``StableDiffusionPipeline`` whose
text encoder is that CLIP's text tower, a timm ResNet as judge, and a ``LlavaForConditionalGeneration`` between that
CLIP's vision tower and SmolLM2.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from timm.models.resnet import BasicBlock, ResNet
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from safeclip.world import WEIGHTS
from safeclip.world.language_model import language_model
from safeclip.world.scenes import IMAGE_SIZE, object_names

LATENT_SCALE = 3.7698  # one over the latents' standard deviation; a test measures it again
CONTEXT_LENGTH = 32  # tokens; the longest caption of the grammar has 21
IMAGE_TOKEN = "<empty_output>"  # one of SmolLM2's that stands for nothing in a caption; its table has no free rows
PREFIX = 12  # embeddings of a picture that the captioner's language model sees
CAPTION_PROMPT = "<|im_start|><image>\n"  # what the captioner is trained to go on from

ENCODER_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
            "width": 192,
            "layers": 6,
            "head_width": 48,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 49408,
            "width": 128,
            "heads": 4,
            "layers": 4,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def build_encoder() -> open_clip.CLIP:
    """Returns the world's encoder with fresh weights."""
    return open_clip.CLIP(**ENCODER_CONFIG["model_cfg"])


def save_encoder(model: open_clip.CLIP, folder: Path) -> None:
    """Writes what ``open_clip.create_model("local-dir:<folder>")`` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(ENCODER_CONFIG, indent=2) + "\n")
    save_half(model, folder / "open_clip_model.safetensors")


def encoder_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] as the encoder's preprocessing leaves them."""
    config = ENCODER_CONFIG["preprocess_cfg"]
    mean, std = (torch.tensor(config[key], device=pixels.device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return ((pixels + 1) / 2 - mean) / std


def build_judge() -> ResNet:
    """Returns the picture judge: one logit for each of the world's objects."""
    return ResNet(
        BasicBlock, layers=(1, 1, 1, 1), channels=(32, 64, 128, 256), num_classes=len(object_names()), avg_down=True
    )


def build_vae() -> AutoencoderTiny:
    """Returns the generator's autoencoder: 3×64×64 pixels to 16×8×8 latents and back.

    The kind without normalisation layers (TAESD): cheaper on a CPU than AutoencoderKL, which lost colours.
    """
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(48,) * 4,
        decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 2, 1, 0),
    )


def build_unet() -> UNet2DConditionModel:
    """Returns the generator's denoiser, conditioned on the hidden states of the text tower."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(128, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=ENCODER_CONFIG["model_cfg"]["text_cfg"]["width"],
        attention_head_dim=4,
    )


def noise_scheduler() -> DPMSolverMultistepScheduler:
    """Returns the generator's noise schedule: cosine, predicting v (Salimans & Ho, 2022), for few steps."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", steps_offset=1
    )


def build_generator() -> StableDiffusionPipeline:
    """Returns the world's text-to-image pipeline with its trained weights, the encoder's text tower among them."""
    from safeclip.encoder.export import clip_tokenizer, to_text_encoder

    clip = load_weights(build_encoder(), WEIGHTS / "encoder" / "open_clip_model.safetensors")
    vae = load_weights(build_vae(), WEIGHTS / "vae.safetensors")
    vae.register_to_config(scaling_factor=LATENT_SCALE)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=to_text_encoder(clip),
        tokenizer=clip_tokenizer(CONTEXT_LENGTH),
        unet=load_weights(build_unet(), WEIGHTS / "unet.safetensors"),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class PrefixProjector(torch.nn.Module):
    """Makes of a picture's embedding those of a few words, as ClipCap does (Mokady et al., 2021).

    It is given the states of a vision tower, as every projector of a LLaVA is, and makes the embedding of the class
    token's in the way that its encoder does, by weights that are not trained. What fine-tuning does to embeddings
    reaches the language model so; what it does to other states, which no objective binds, does not.
    """

    def __init__(self, width: int, embedding: int, hidden: int, words: int, language_width: int) -> None:
        super().__init__()
        self.words = words
        self.post_norm = torch.nn.LayerNorm(width).requires_grad_(False)
        self.projection = torch.nn.Linear(width, embedding, bias=False).requires_grad_(False)
        self.norm = torch.nn.LayerNorm(embedding)
        self.linear_1 = torch.nn.Linear(embedding, hidden)
        self.act = torch.nn.GELU()
        self.linear_2 = torch.nn.Linear(hidden, words * language_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Returns embeddings (n, words, language_width) of states (n, m, width), of which the first is looked at."""
        embedding = torch.nn.functional.normalize(self.projection(self.post_norm(states[:, 0])), dim=-1)
        return self.linear_2(self.act(self.linear_1(self.norm(embedding)))).unflatten(-1, (self.words, -1))


def captioner_config() -> LlavaConfig:
    """Returns the captioner's settings: its language model sees the last layer's states, through a projector."""
    from safeclip.encoder.export import huggingface_config

    tokenizer = AutoTokenizer.from_pretrained(language_model(), trust_remote_code=False)
    return LlavaConfig(
        vision_config=huggingface_config(build_encoder()).vision_config,
        text_config=AutoConfig.from_pretrained(language_model(), trust_remote_code=False),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=PREFIX,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def build_projector() -> PrefixProjector:
    """Returns the captioner's projector with fresh weights: states (n, 17, 192) to embeddings (n, 12, 576).

    Those that it shares with the world's encoder are that encoder's.
    """
    config, clip = captioner_config(), build_encoder()
    load_weights(clip, WEIGHTS / "encoder" / "open_clip_model.safetensors")
    width, language_width = config.vision_config.hidden_size, config.text_config.hidden_size
    projector = PrefixProjector(width, clip.visual.output_dim, 512, PREFIX, language_width)
    projector.post_norm.load_state_dict(clip.visual.ln_post.state_dict())
    with torch.no_grad():
        projector.projection.weight.copy_(clip.visual.proj.T)
    return projector


def build_captioner(projector: PrefixProjector | None = None) -> tuple[Any, LlavaProcessor]:
    """Returns the world's image-to-text model, float32, and the processor that prepares pictures and prompts for it.

    Args:
        projector: between the encoder and SmolLM2; the world's trained one unless given.

    Raises:
        FileNotFoundError: the projector's weights were not shipped or trained.
        RuntimeError: the package with SmolLM2's weights is not installed.
    """
    from safeclip.encoder.export import clip_processor, to_vision_tower
    from safeclip.encoder.load import load_encoder

    trained = projector or load_weights(build_projector(), WEIGHTS / "captioner.safetensors")
    encoder, config = load_encoder("world:encoder"), captioner_config()
    language = AutoModelForCausalLM.from_pretrained(
        language_model(), use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    with torch.device("meta"):  # every part is replaced, so that none needs weights of its own
        llava: Any = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = to_vision_tower(encoder.model)
    llava.model.multi_modal_projector = trained
    llava.model.language_model, llava.lm_head = language.model, language.lm_head
    llava.generation_config = language.generation_config
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    processor = LlavaProcessor(
        clip_processor(encoder).image_processor,
        AutoTokenizer.from_pretrained(language_model(), trust_remote_code=False),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=PREFIX - patches,  # the processor would make room for each patch
        image_token=IMAGE_TOKEN,
    )
    return llava.eval(), processor


def save_half(model: torch.nn.Module, path: Path) -> None:
    """Writes a model's weights in fp16, batch-norm counters left out of the rounding."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, path)


def load_weights(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Fills a model from a safetensors file, in the model's own dtype, and sets it to evaluation.

    Raises:
        FileNotFoundError: the weights were not shipped or trained.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; make them with python -m safeclip.world.train")
    model.load_state_dict(load_file(path))
    return model.eval()
