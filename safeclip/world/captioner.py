"""How the captioner's projector learns to speak to SmolLM2: where it starts from, and its loss.

The vision tower and the language model stay as they are. A projector that starts from nothing takes most of its steps
to find any embedding that the language model reads; this one starts from the embeddings of the words themselves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from safeclip.world import models
from safeclip.world.scenes import IMAGE_SIZE, Scene, render

RIDGE = 1e-3  # of the start's least squares, as a share of the mean squared feature


def scene_pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Returns scenes as pictures (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_states(llava: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Returns what the projector reads of pictures (n, 3, 64, 64) in [-1, 1]: states (n, 17, 192) of the tower."""
    with torch.no_grad():
        seen = llava.model.vision_tower(models.encoder_pixels(pixels), output_hidden_states=True)
    return seen.hidden_states[llava.config.vision_feature_layer]


def reading(scene: Scene, tokens: Callable[[str], list[int]]) -> list[list[int]]:
    """Returns the tokens that each state of a scene's picture stands for at the start.

    The class token stands for all words at once. The first row of patches stands for the background; in the rows
    below, the halves of the picture spell what is seen in them, so that the rows read like a caption.

    Args:
        scene: of one or two objects.
        tokens: of a word.

    Returns:
        One list for the class token, then one for each patch, row by row.
    """
    side = IMAGE_SIZE // models.ENCODER_CONFIG["model_cfg"]["vision_cfg"]["patch_size"]
    background, names = tokens(scene.background), [tokens(name) for name in scene.objects]
    halves = [names[0], names[-1]]
    rows = [[background] * side]
    for row in range(side - 1):
        places = [(half, (row * side // 2 + column) % len(half)) for half in halves for column in range(side // 2)]
        rows.append([[half[place]] for half, place in places])
    return [[*background, *(t for name in names for t in name)], *(state for row in rows for state in row)]


def start_projector(scenes: Sequence[Scene], seed: int) -> nn.Module:
    """Returns a projector whose first layer is random and whose second is solved for (ridge regression).

    Args:
        scenes: whose pictures' states are mapped to the mean embedding of the words that they stand for.
        seed: of the first layer.
    """
    projector = models.build_projector()
    llava, processor = models.build_captioner(projector)
    states = torch.cat([picture_states(llava, scene_pixels(scenes[i : i + 64])) for i in range(0, len(scenes), 64)])
    table = llava.get_input_embeddings().weight.detach()

    def tokens(word: str) -> list[int]:
        return processor.tokenizer.encode(f" {word}", add_special_tokens=False)

    wanted = torch.stack([torch.stack([table[ids].mean(0) for ids in reading(s, tokens)]) for s in scenes])
    x, y = states.flatten(0, 1), wanted.flatten(0, 1)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first, second = projector.linear_1, projector.linear_2
        mean, spread = x.mean(0), x.std(0)
        first.weight.copy_(torch.randn(first.weight.shape, generator=random) / (spread * len(spread) ** 0.5))
        first.bias.copy_(torch.randn(first.bias.shape, generator=random) / 2 - first.weight @ mean)
        hidden = projector.act(first(x))
        centre, middle = hidden.mean(0), y.mean(0)
        gram = (hidden - centre).T @ (hidden - centre)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        second.weight.copy_(torch.linalg.solve(gram + ridge, (hidden - centre).T @ (y - middle)).T)
        second.bias.copy_(middle - second.weight @ centre)
    return projector


def make_captioner_loss() -> Callable[[nn.Module, dict, torch.Generator], torch.Tensor]:
    """Cross-entropy of a caption's tokens after the projected picture, in a frozen SmolLM2 (Liu et al., 2023)."""
    llava, processor = models.build_captioner(models.build_projector())
    llava.requires_grad_(False)
    language = llava.model.language_model.to(torch.bfloat16)  # shares its embeddings with the head
    language.set_attn_implementation("eager")  # whose backward pass is the faster one for so few tokens
    head, embed, tokenizer = llava.lm_head, llava.get_input_embeddings(), processor.tokenizer
    before, after = (
        embed(torch.tensor(tokenizer.encode(part, add_special_tokens=False)))
        for part in models.CAPTION_PROMPT.split("<image>")
    )

    def loss(model: nn.Module, batch: dict, random: torch.Generator) -> torch.Tensor:
        n = len(batch["pixels"])
        pictures = model(picture_states(llava, batch["pixels"]))
        texts = tokenizer(
            [text + tokenizer.eos_token for text in batch["captions"]],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        parts = [before.expand(n, -1, -1), pictures, after.expand(n, -1, -1), embed(texts.input_ids)]
        states = language(inputs_embeds=torch.cat([p.bfloat16() for p in parts], 1), use_cache=False)[0]
        said, length = texts.attention_mask.bool(), texts.input_ids.shape[1]
        # The head sees a plain matrix: a slice of three dimensions would be copied, which takes longer than the rest.
        logits = head(states[:, -length - 1 : -1][said])
        return F.cross_entropy(logits.float(), texts.input_ids[said])

    return loss
