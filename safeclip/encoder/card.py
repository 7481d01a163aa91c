"""The model card that lies beside the exports."""

from typing import Any

from safeclip.config import Config

_CARD = """# A safe encoder

A CLIP changed so that unsafe texts and pictures should land on safe ones, while safe input stays where it was.

| | |
|---|---|
| base | {source} (weights {hash}) |
| objective | {objective} |
| quadruplets | content hash {quadruplets} |
| safe pairs beside them | {preserved} |
| epochs | {epochs}; the weights are of epoch {best_epoch} |
| validation loss | {loss} |
| validation recall sum, of 6 | {recall} |

What became safe and what it cost is measured by `python -m jobs.evaluate --run {run}`; the loss above says neither.
It is no filter: an unsafe query still gets an answer, a safe one where that is possible, and concepts that no
quadruplet shows may be as unsafe as before.

`open_clip/` loads with `open_clip.create_model("local-dir:open_clip")`. Of a plain CLIP there are also
`huggingface/`, a CLIPModel with its processor, `text_encoder/` for Stable Diffusion, and `lora/`, the adapters for
the base's CLIPModel.
"""


def model_card(config: Config, content: dict[str, Any]) -> str:
    """Returns the card as Markdown.

    Args:
        config: of the run.
        content: `base`, `train`, `history`, and `quadruplets` where the hash of the data is known.
    """
    train, history = content["train"], content["history"]
    best = next((h for h in history if h["epoch"] == train["best_epoch"]), None)
    return _CARD.format(
        **content["base"],
        objective=train["objective"],
        quadruplets=content.get("quadruplets", "not recorded here"),
        preserved=train.get("preserved", "as the run's config says"),
        epochs=train["epochs"],
        best_epoch=train["best_epoch"],
        loss=f"{best['validation']['total']:.4f}" if best else "none",
        recall=f"{best['recall_sum']:.3f}" if best else "none",
        run=config.run,
    )
