"""The limit on rejected rows that every stage of the generation keeps."""

from collections import Counter

from safeclip.errors import UserError


def check_rejects(stage: str, rows: int, rejected: Counter[str], limit: float) -> None:
    """Ends a stage that rejected too large a share of its rows.

    Args:
        stage: its name, for the message.
        rows: how many it was given.
        rejected: how many of them it rejected for each reason.
        limit: the largest share allowed, `generate.max_reject_fraction`.

    Raises:
        UserError: more were rejected; the message gives the counts by reason, the most frequent first.
    """
    total = rejected.total()
    if total > limit * rows:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.most_common())
        raise UserError(
            f"{stage}: {total} of {rows} rows were rejected ({counts}); "
            f"generate.max_reject_fraction allows {limit:g} of them"
        )
