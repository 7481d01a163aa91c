"""The encoders that a report compares: by which label, from where, and where their report goes."""

import re
from dataclasses import dataclass
from pathlib import Path

from safeclip.artifacts import Folder, hash_of
from safeclip.config import Config
from safeclip.errors import UserError

Source = str | Folder
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}")


@dataclass(frozen=True)
class Comparison:
    """Encoders to measure side by side, the first of which the others are compared with."""

    encoders: dict[str, Source]
    """By label, what `safeclip.encoder.load.load_from` takes."""
    folder: Folder
    """Where the report goes."""
    own: bool = False
    """Whether they are the run's own, `base` and `safe`: its encoder before and after its training."""


def default_comparison(config: Config, run: Folder) -> Comparison:
    """Returns the run's own: `base` and `safe`, whose report is `report/`."""
    encoders = {"base": resolve(config.train.base), "safe": (run / "encoder" / "open_clip").everywhere()}
    return Comparison(encoders, run / "report", own=True)


def choose_comparison(config: Config, run: Folder, words: list[str]) -> Comparison:
    """Returns the comparison that a command line asks for.

    Any but the run's own goes to a folder of its own, `report-<labels>-<hash of labels and sources>`.

    Args:
        config: of the run.
        run: its folder.
        words: each `label=source`; a source is what `load_encoder` takes, a run's `encoder/`, or a URL of either.
            No word at all stands for the run's own.

    Raises:
        UserError: a word is not of that form, or a label occurs twice.
    """
    encoders: dict[str, Source] = {}
    for word in words:
        label, equals, source = word.partition("=")
        if not equals or not source or not _LABEL.fullmatch(label):
            raise UserError(
                f"--encoders {word}: write it as label=source, such as safe=runs/demo/encoder; a label is of up to "
                "20 letters, digits, dots, dashes and underscores"
            )
        if label in encoders:
            raise UserError(f"--encoders {word}: the label {label} is taken; give each encoder its own")
        encoders[label] = resolve(source)
    default = default_comparison(config, run)
    if not words or list(encoders.items()) == list(default.encoders.items()):
        return default
    given = [[label, getattr(source, "url", source)] for label, source in encoders.items()]
    return Comparison(encoders, run / f"report-{'-'.join(encoders)[:60]}-{hash_of(given)[:8]}")


def resolve(source: str) -> Source:
    """Returns a source that means the same in every process: folders by their whole path, a run's export itself."""
    if not Path(source).is_dir() and "://" not in source:
        return source
    folder = Folder(source)
    return (folder / "open_clip" if folder.exists("open_clip") else folder).everywhere()


def identify(encoders: dict[str, Source]) -> dict[str, str]:
    """Returns, for each encoder, 16 hexadecimal digits that depend on its weights and its preprocessing alone.

    Raises:
        UserError: an encoder cannot be loaded.
    """
    # Labels are checked without the time that torch takes to import.
    from safeclip.encoder.load import load_from
    from safeclip.encoder.publish import encoder_hash

    return {label: encoder_hash(load_from(source)) for label, source in encoders.items()}
