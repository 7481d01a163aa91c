"""Measures the world's models on scenes that none of them was trained on: ``python -m safeclip.world.measure``.

Prints the table of safeclip/world/README.md and writes the sheet of 64 pictures beside it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from safeclip.config import ImageToText, load_config
from safeclip.encoder.load import load_encoder
from safeclip.evaluation.captioner import Captioner
from safeclip.generation.images import encode_webp
from safeclip.generation.judges import WorldImageJudge, WorldTextJudge
from safeclip.world import models, scenes

SHEET = Path(__file__).parent / "sheet.webp"


def distinct_scenes(n: int, seed: int, unsafe: bool) -> list[scenes.Scene]:
    """Draws reserved scenes of which no two read the same, each with an unsafe object or with none."""
    safe, other = scenes.object_names(safe=True), scenes.object_names(safe=False)
    drawn = scenes.sample_scenes(3 * n, seed, safe, other if unsafe else safe, reserved=True)
    return list({scene.key: scene for scene in drawn}.values())[:n]


def encoder_recall(drawn: list[scenes.Scene]) -> tuple[float, float]:
    """Returns the base encoder's R@1 from texts to pictures and from pictures to texts."""
    encoder = load_encoder("world:encoder")
    images = encoder.encode_images([encode_webp(Image.fromarray(scenes.render(s))) for s in drawn])
    similarity = encoder.encode_texts([scenes.caption(s) for s in drawn]) @ images.T
    right = np.arange(len(drawn))
    return float((similarity.argmax(1) == right).mean()), float((similarity.argmax(0) == right).mean())


def judge_accuracy(drawn: list[scenes.Scene], judge: WorldImageJudge) -> float:
    """Returns the share of rendered scenes of which the judge names exactly the objects."""
    names = scenes.object_names()
    seen = judge.probabilities([encode_webp(Image.fromarray(scenes.render(s))) for s in drawn]) >= judge.threshold
    return float(
        np.mean([{names[i] for i in np.flatnonzero(r)} == set(s.objects) for r, s in zip(seen, drawn, strict=True)])
    )


def draw(drawn: list[scenes.Scene]) -> tuple[list[Image.Image], float]:
    """Returns the generator's pictures of scenes' captions, as the profile draws, and the seconds an image."""
    pipeline: Any = models.build_generator()
    pipeline.set_progress_bar_config(disable=True)
    settings = load_config(profile="embedded").generate.illustrate
    how = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
    began, pictures = time.monotonic(), []
    for start in range(0, len(drawn), 16):
        captions = [scenes.caption(s) for s in drawn[start : start + 16]]
        noise = [torch.Generator().manual_seed(start + i) for i in range(len(captions))]
        pictures += pipeline(captions, generator=noise, **how).images
    return pictures, (time.monotonic() - began) / len(drawn)


def caption_rates(drawn: list[scenes.Scene]) -> tuple[float, float]:
    """Returns the shares of rendered scenes whose caption names exactly the objects, and an unsafe one."""
    settings = ImageToText(model="world:captioner", prompt=models.CAPTION_PROMPT)
    captioner, judge = Captioner(settings), WorldTextJudge(held_out=True)
    pictures = [encode_webp(Image.fromarray(scenes.render(s))) for s in drawn]
    texts = [text for start in range(0, len(drawn), 50) for text in captioner.write(pictures[start : start + 50])]
    right = judge.says_the_same(texts, [scenes.caption(s) for s in drawn])
    return float(np.mean(right)), float(np.mean(judge.unsafe(texts, [()] * len(texts))))


def main() -> None:
    """Measures, prints and writes the sheet."""
    judge, sheet = WorldImageJudge(0.5), []
    print("| what | safe scenes | scenes with an unsafe object |\n|---|---|---|")
    kinds = (distinct_scenes(500, 11, unsafe=False), distinct_scenes(500, 12, unsafe=True))
    recalls = [encoder_recall(drawn) for drawn in kinds]
    for i, name in enumerate(("text → picture", "picture → text")):
        print(f"| encoder, R@1 {name}, of 500 | {recalls[0][i]:.3f} | {recalls[1][i]:.3f} |")
    accuracy = [judge_accuracy(drawn, judge) for drawn in kinds]
    print(f"| judge, exactly the objects shown, of 500 | {accuracy[0]:.3f} | {accuracy[1]:.3f} |")
    rates = []
    for drawn in (k[:200] for k in kinds):
        pictures, seconds = draw(drawn)
        captions = [scenes.caption(s) for s in drawn]
        verdicts = judge([encode_webp(p) for p in pictures], captions, [""] * len(drawn))
        rates.append((np.mean([v.reason is None for v in verdicts]), seconds))
        sheet += pictures[:32]
    print(f"| generator, both objects drawn, of 200, one try | {rates[0][0]:.3f} | {rates[1][0]:.3f} |")
    print(
        f"| generator, seconds an image, {torch.get_num_threads()} threads | {rates[0][1]:.3f} | {rates[1][1]:.3f} |"
    )
    captions_of = [caption_rates(drawn) for drawn in kinds]
    for i, name in enumerate(("exactly the objects named", "something unsafe named")):
        print(f"| captioner, {name}, of 500 | {captions_of[0][i]:.3f} | {captions_of[1][i]:.3f} |")
    rows = [np.concatenate([np.asarray(p) for p in sheet[i : i + 8]], 1) for i in range(0, 64, 8)]
    Image.fromarray(np.concatenate(rows)).save(SHEET, "WEBP", quality=90)
    print(f"\nwritten to {SHEET.name}: 32 safe pictures, then 32 with an unsafe object")


if __name__ == "__main__":
    main()
