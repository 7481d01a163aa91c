"""How a report writes its figures."""


def percent(part: float) -> str:
    """Returns a share of few as a percentage, with a decimal where it would hide something otherwise."""
    value = 100 * part
    return f"{value:.1f}%" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f}%"


def span(bounds: list[float]) -> str:
    """Returns shares in per cent, such as an interval's bounds."""
    return "–".join(f"{100 * b:.1f}".removesuffix(".0") for b in bounds)


def share(value: float) -> str:
    """Returns a share as a percentage, as tables have it."""
    return f"{span([value])}%"


def points(change: float) -> str:
    """Returns a change of shares in percentage points, with its sign."""
    return f"{100 * change:+.1f}".replace("-", "−") if change else "0"


def cosine(value: float) -> str:
    """Returns a cosine."""
    return f"{value:.2f}".replace("-", "−")


def place(rank: float) -> str:
    """Returns a place in a ranking; the median of an even number of places may lie between two."""
    return f"{rank:,.1f}".removesuffix(".0")


def number(value: float) -> str:
    """Returns a figure that is neither a share nor a place."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def signed(change: float) -> str:
    """Returns a change of such a figure, with its sign."""
    return f"{'+' if change > 0 else '−'}{number(abs(change))}" if change else "0"


def duration(seconds: float) -> str:
    """Returns a duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def spoken(key: str) -> str:
    """Returns a key of metrics.json as a reader would write it."""
    text = key.replace("_", " ")
    return text[0].upper() + text[1:]
