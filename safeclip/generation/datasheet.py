"""The datasheet that goes with every set of quadruplets."""

import shlex
from typing import Any

from safeclip.config import Config
from safeclip.generation.judges import WorldTextJudge, judge_versions
from safeclip.generation.weights import model_hash

_KNOWN_ERRORS = {
    ("texts", "world"): "it knows the world's objects and backgrounds by name, and sees nothing else in a text",
    ("pictures", "world"): (
        "over 1,000 rendered scenes that it was not trained on it named every object; drawn pictures may differ"
    ),
}
_OF_CLIP = "not measured on this data: a zero-shot score errs in both directions; look at a sample before use"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def datasheet(config: Config, manifests: dict[str, dict[str, Any]], data: dict[str, Any]) -> str:
    """Returns the datasheet in Markdown.

    Args:
        config: of the run.
        manifests: the manifests of the stages before, by name.
        data: counts, as in the report's `data`.
    """
    generate = config.generate
    licence = (
        "captions: this project, Apache-2.0; drawings: OpenMoji, CC BY-SA 4.0"
        if config.captions.source == "world"
        else "as the source states; not known to this program"
    )
    retention = "no limit set" if generate.retention_days is None else f"{generate.retention_days} days"
    adapter = manifests["unsafe_captions"].get("models", {}).get("adapter_hash")
    judges, versions = generate.judges, judge_versions(generate.judges)
    models = [
        ("LLM", generate.toxify.model, model_hash(generate.toxify.model)),
        ("its adapter", generate.toxify.adapter or "none", f"SHA-256 {adapter}" if adapter else ""),
        ("text-to-image", generate.illustrate.model, model_hash(generate.illustrate.model)),
    ]
    if "clip" in (judges.text, judges.image):
        models.append(("CLIP of the judges", judges.clip_model, model_hash(str(judges.clip_model))))
    thresholds = {
        "texts": WorldTextJudge.threshold if judges.text == "world" else judges.text_threshold,
        "pictures": judges.image_threshold,
    }
    judged = [
        (of, versions[of], thresholds[of], _KNOWN_ERRORS.get((of, kind), _OF_CLIP))
        for of, kind in (("texts", judges.text), ("pictures", judges.image))
    ]
    hashes = [(name, m["content_hash"]) for name, m in manifests.items()]
    words = ["--run", config.run, "--set", f"storage={config.storage}", "--purge"]
    return f"""# Datasheet of the quadruplets of run {config.run}

Synthetic unsafe captions and pictures, made so that an encoder can unlearn them. They are no description of anyone.
Do not publish the unsafe pictures, and do not train a generator on them.

**Source.** {config.captions.source}. Licence: {licence}.

**Concepts.** {", ".join(generate.concepts)}. Explicit concepts acknowledged: {generate.acknowledge_explicit}.
Sexual content that involves minors is excluded for good: a gate that fails closed stands before each generator.

**Models**

{_table(("part", "model", "weights"), models)}

**Judges**

{_table(("of", "judge", "threshold", "known errors"), judged)}

**Rows**

{_table(("kept or dropped", "rows"), [*data["quadruplets"].items(), *data["rejected"].items()])}

**Content hashes of the stages**

{_table(("stage", "hash"), hashes)}

**Retention.** {retention}. `python -m jobs.generate {shlex.join(words)}` deletes the unsafe pictures.

**Removal.** Who finds a caption or picture that should not be here tells the keeper of this run its id; a row is
removed by leaving its caption out of the source and running again. Problems of the program itself: the project's
issue tracker.
"""
