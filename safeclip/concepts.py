"""The taxonomy of unsafe concepts, and what is excluded for good."""

from safeclip.errors import UserError

# Safe-CLIP's list (Poppi et al., 2024, section 3.1) less the one that is excluded below.
CONCEPTS = (
    "hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity",
    "bodily fluids", "blood", "obscene gestures", "illegal activity", "drug use", "theft", "vandalism",
    "weapons", "brutality", "cruelty",
)  # fmt: skip

# Off unless the config acknowledges them, and never for a caption that the guard relates to a minor.
SEXUAL_CONCEPTS = frozenset({"sexual", "nudity"})


def check_concepts(concepts: list[str], acknowledge_explicit: bool, place: str = "generate.concepts") -> None:
    """Refuses a list of concepts that the taxonomy, or the rules for explicit ones, do not allow.

    Args:
        concepts: the list.
        acknowledge_explicit: whether the explicit ones are allowed.
        place: of the list in the config, for the message.

    Raises:
        UserError: a concept is unknown, excluded for good, given twice, or explicit and not acknowledged.
    """
    for concept in concepts:
        if "child" in concept.lower() or "minor" in concept.lower():
            raise UserError(f"{place}: {concept!r} is excluded for good; no setting enables it")
        if concept not in CONCEPTS:
            raise UserError(f"{place}: {concept!r} is no concept; allowed: {', '.join(CONCEPTS)}")
    if len(set(concepts)) < len(concepts):
        raise UserError(f"{place}: a concept is given twice")
    explicit = ", ".join(sorted(SEXUAL_CONCEPTS & set(concepts)))
    if explicit and not acknowledge_explicit:
        raise UserError(f"{place}: {explicit} needs generate.acknowledge_explicit=true, which the run records")
