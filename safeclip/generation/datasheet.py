"""The datasheet that goes with every set of quadruplets."""

from typing import Any

from safeclip.config import Config

_KNOWN_ERRORS = {
    "world": "over 1,000 rendered scenes that it was not trained on it named every object; drawn pictures may differ",
    "clip": "not measured on this data: a zero-shot score errs in both directions; look at a sample before use",
}


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join(lines)


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
    models = {
        "LLM": generate.toxify.model,
        "text-to-image": generate.illustrate.model,
    }
    judges = {
        "texts": f"{generate.judges.text}, threshold {generate.judges.text_threshold}",
        "pictures": f"{generate.judges.image}, threshold {generate.judges.image_threshold}",
    }
    hashes = {name: m["content_hash"] for name, m in manifests.items()}
    return f"""# Datasheet of the quadruplets of run {config.run}

Synthetic unsafe captions and pictures, made so that an encoder can unlearn them. They are no description of anyone.
Do not publish the unsafe pictures, and do not train a generator on them.

**Source.** {config.captions.source}. Licence: {licence}.

**Concepts.** {", ".join(generate.concepts)}. Explicit concepts acknowledged: {generate.acknowledge_explicit}.
Sexual content that involves minors is excluded for good: a gate that fails closed stands before each generator.

**Models**

{_table(("part", "model"), models)}

**Judges**

{_table(("of", "judge"), judges)}

Known errors of the picture judge: {_KNOWN_ERRORS[generate.judges.image]}.

**Rows**

{_table(("kept or dropped", "rows"), {**data["quadruplets"], **data["rejected"]})}

**Content hashes of the stages**

{_table(("stage", "hash"), hashes)}

**Retention.** {retention}. `python -m jobs.generate --run {config.run} --purge` deletes the unsafe pictures.

**Removal.** Who finds a caption or picture that should not be here tells the keeper of this run its id; a row is
removed by leaving its caption out of the source and running again. Problems of the program itself: the project's
issue tracker.
"""
