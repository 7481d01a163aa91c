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
from safeclip.world.scenes import ONE_OBJECT_TEMPLATES, TWO_OBJECT_TEMPLATES, Scene, caption, render

NAME_TOKENS = 4  # of an object's name that the prefix has room for
START_EPOCHS, START_BATCH, START_RATE = 16, 128, 2e-3
SHARPNESS = 20.0  # of the cosines by which a word is told from the others


def scene_pixels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Returns scenes as pictures (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_states(llava: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Returns what the projector reads of pictures (n, 3, 64, 64) in [-1, 1]: states (n, 17, 192) of the tower."""
    with torch.no_grad():
        seen = llava.model.vision_tower(models.encoder_pixels(pixels), output_hidden_states=True)
    return seen.hidden_states[llava.config.vision_feature_layer]


def told(scene: Scene) -> str:
    """Returns what the captioner says of a scene: its objects in the order of the alphabet.

    An encoder knows which objects a picture shows, and hardly which of them is on the left.
    """
    template = (ONE_OBJECT_TEMPLATES if len(scene.objects) == 1 else TWO_OBJECT_TEMPLATES)[0]
    return caption(Scene(tuple(sorted(scene.objects)), scene.background, scene.seed), template)


def prefix_tokens(scene: Scene, tokens: Callable[[str], list[int]]) -> list[int]:
    """Returns the tokens that the first parts of a scene's prefix stand for at the start.

    Args:
        scene: of one or two objects.
        tokens: of a word.

    Returns:
        The first object's name, the last one's, each repeated or cut to NAME_TOKENS, and the background.
    """
    names = [tokens(name) for name in sorted(scene.objects)]
    spelled = [[name[i % len(name)] for i in range(NAME_TOKENS)] for name in (names[0], names[-1])]
    return [*spelled[0], *spelled[1], tokens(scene.background)[0]]


def start_projector(scenes: Sequence[Scene], seed: int) -> nn.Module:
    """Returns a projector that makes of a picture the embeddings of the words that say what it shows.

    The parts of the prefix that no word is left for say nothing of the picture yet.

    Args:
        scenes: to learn from.
        seed: of the first weights and of the order of scenes.
    """
    torch.manual_seed(seed)
    projector = models.build_projector()
    llava, processor = models.build_captioner(projector)
    states = torch.cat(
        [picture_states(llava, scene_pixels(scenes[i : i + 64]))[:, :1] for i in range(0, len(scenes), 64)]
    )
    table = llava.get_input_embeddings().weight.detach()

    def tokens(word: str) -> list[int]:
        return processor.tokenizer.encode(f" {word}", add_special_tokens=False)

    wanted = torch.tensor([prefix_tokens(s, tokens) for s in scenes])
    words, labels = torch.unique(wanted, return_inverse=True)
    directions = F.normalize(table[words], dim=-1)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=START_RATE, weight_decay=0.01)
    steps = START_EPOCHS * (len(scenes) // START_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        projector.linear_2.weight[wanted.shape[1] * table.shape[1] :] = 0
    for _ in range(START_EPOCHS):
        for rows in torch.randperm(len(scenes))[: len(scenes) // START_BATCH * START_BATCH].view(-1, START_BATCH):
            spoken = projector(states[rows])[:, : wanted.shape[1]]
            likeness = SHARPNESS * F.normalize(spoken, dim=-1) @ directions.T
            loss = F.mse_loss(spoken, table[wanted[rows]]) / table.var()
            loss = loss + F.cross_entropy(likeness.flatten(0, 1), labels[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
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
            [told(scene) + tokenizer.eos_token for scene in batch["scenes"]],
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
