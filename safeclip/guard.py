"""The fail-closed gate before every generator: no sexual content with minors or people of ambiguous age, ever.

A text is dropped when it combines a term for a minor or an ambiguous age with a sexual concept or a sexual term.
Both are looked for after folding what disguises a word: case, accents, look-alike letters, digits and signs for
letters, repeated letters, and signs or spaces between letters. Where in doubt it drops, so ordinary texts are lost,
too. It is a list of words, no proof: it sees neither what a text implies nor languages that the lists leave out.
"""

import functools
import html
import re
import unicodedata

from safeclip import guard_terms as terms
from safeclip.concepts import CONCEPTS, SEXUAL_CONCEPTS, check_concepts
from safeclip.errors import UserError

WITH_CONCEPT = "guard: possible minor with a sexual concept"
WITH_TERM = "guard: possible minor with a sexual term"
EXCLUDED_TERM = "guard: excluded term"
NO_CONCEPT = "guard: no concept of the taxonomy"
TOO_LONG = "guard: text too long"
ERROR = "guard error"
EXPLICIT = "explicit, and generate.acknowledge_explicit is off"
LONGEST = 1000  # characters; a longer text is no caption, and the search would take long

# Letters and signs that look like Latin letters and that Unicode does not decompose into them.
_LOOKALIKES = {
    **dict(zip("авекмнорстухіѕјԁһӏԛԝ", "abekmhopctyxisjdhlqw", strict=True)),  # Cyrillic
    **dict(zip("αβεηικνορτυχω", "abenikvoptuxw", strict=True)),  # Greek
    **dict(zip("օսոցհ", "oungh", strict=True)),  # Armenian
    **dict(zip("ɑɡɩıłøđ∂¢€£¥ƒ©®×ǀǃꞌ℮ϳ", "agiiloddcelyfcrxli'ej", strict=True)),
}
# Those that also stand for themselves, in words of their alphabet or before a word: a text is read both ways.
_LIKE_LATIN = {
    "a": "Ꭺꓮ", "b": "ьъбѣხᏴꓐ฿", "c": "ҫςᏟꓚ₵", "d": "δժძᎠᏧꓓ", "e": "эәєҽзҙӡξᎬꓰ", "f": "ғꓝ", "g": "Ꮐꓖ₲", "h": "ңҥᎻᏂꓧ",
    "i": "¡ւᎥꓲ", "j": "յᎫꓙ", "k": "қҝҡҟӄᏦꓗ₭", "l": "լᏞꓡ", "m": "ӎᎷꓟ", "n": "пиռղπꓠ₦∩", "o": "өѳҩσθφიꓳ∅", "p": "ҏᏢꓑ₱",
    "q": "գզ", "r": "гяᎡꓣ", "s": "ᏕᏚꓢ", "t": "եᎢᏔꓔ₮", "u": "цџμꓴ∪", "v": "ѵᏙꓦ", "w": "шщѡψᎳꓪ₩", "x": "ҳꓫ",
    "y": "үұγყᎩꓬ", "z": "ζᏃꓜ",
}  # fmt: skip
_TO_LATIN = {ord(c): letter for letter, alike in _LIKE_LATIN.items() for c in alike}
# Digits and signs that stand for a letter in disguised writing; a star stands for any vowel.
_LEET = {
    "a": "4@*", "b": "86", "c": "(", "e": "3*", "g": "96", "h": "#", "i": "1!|*", "l": "1|!", "o": "0*", "s": "5$",
    "t": "7+", "u": "*", "z": "2",
}  # fmt: skip
_MIXED_UP = {"i": "l", "l": "i"}  # once each, so that "public" does not read as a word with one letter less
_KEPT_SIGNS = {c for chars in _LEET.values() for c in chars if not c.isalnum()} | {"<"}
_PICTURES = {
    **dict.fromkeys("👧👦👶🧒🍼🚸", "child"),
    **dict.fromkeys("🔞🍆🍑", "sexual"),
}
_INVISIBLE = {"\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\u0640"}  # show nothing, or stretch a word
_LETTER = r"[^\W\d_]"
_START, _END = rf"(?<!{_LETTER})", rf"(?!{_LETTER})"
_PLURAL = r"(?:[ -]?(?:[sz5$]|[e3][sn5$]|e))?"
_NAMED_LETTER = re.compile(
    r"(?:LATIN|REGIONAL INDICATOR|NEGATIVE|MODIFIER).*(?:LETTER|CAPITAL|SMALL)"
    r" (?:(?:TURNED|REVERSED|INVERTED|SIDEWAYS|OPEN|CLOSED|DOTLESS|LONG|BARRED|SCRIPT) )*([A-Z])(?: WITH .*)?"
)


@functools.lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf") or character in _INVISIBLE:
        return ""
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    if character in _PICTURES:
        return f" {_PICTURES[character]} "
    if category == "Nd":
        return str(unicodedata.digit(character))
    named = _NAMED_LETTER.fullmatch(unicodedata.name(character, ""))
    if named:
        return named[1].lower()
    # What Unicode calls a letter though it is an apostrophe or another sign would go on a word.
    return "'" if category == "Lm" and not _is_east_asian(character) else character


def fold(text: str) -> str:
    """Returns a text in lower case without accents, invisible characters, and letters that look like others.

    HTML's entities are what they stand for; where a script ends in the midst of a word, there is a space.
    """
    text = html.unescape(html.unescape(text)).translate({0x3F2: "c", 0x3F9: "c"})  # NFKD makes a sigma of them
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return _border().sub(" ", "".join(map(_plain, text)))


@functools.cache
def _border() -> re.Pattern[str]:
    """Where scripts meet that share no look-alikes: words end there, though no space may be between them."""
    east_asian = "\u1100-\u11ff\u3005-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    others = ("\u0590-\u05ff", "\u0600-\u08ff", "\u0900-\u0dff", "\u0e00-\u0fff")
    sides = [(east_asian, rf"[^\s{east_asian}]"), *((script, rf"[^\W\d_{script}]") for script in others)]
    return re.compile("|".join(f"(?<=[{a}])(?={b})|(?<={b})(?=[{a}])" for a, b in sides))


def _readings(folded: str) -> list[str]:
    """The ways to read a text, by what is taken for a letter: digits and signs, digits alone, or neither.

    What is no letter becomes one space where there is a space in it, one hyphen elsewhere. Where there are letters
    of other alphabets that may stand for Latin ones, there are the readings with these, too.
    """
    latin = folded.translate(_TO_LATIN)
    return [*_gapped(folded), *(_gapped(latin) if latin != folded else [])]


def _gapped(folded: str) -> list[str]:
    signs = "".join(map(re.escape, sorted(_KEPT_SIGNS)))
    # Long runs would make the search slow.
    short = re.sub(r"([^\W\d_])\1{3,}", r"\1\1\1", folded)
    short = re.sub(r"([\W\d_])\1{2,}", r"\1\1", short)
    short = re.sub(rf"([{signs}\d]{{8}})[{signs}\d]+", r"\1", short)
    gaps = (rf"(?:(?![{signs}])[\W_])+", r"[\W_]+", r"[\W\d_]+")
    return list(dict.fromkeys(re.sub(gap, lambda m: "-" if m[0].split() == [m[0]] else " ", short) for gap in gaps))


def _pattern(word: str, gap: str) -> str:
    """An expression for a word: each letter or what stands for it, once or more, and the gap between them."""
    letters = (c for c in fold(word) if c.isalnum())
    many = ((c, f"[{re.escape(c + _LEET.get(c, ''))}]+") for c in letters)
    return gap.join(f"(?:{some}|{_MIXED_UP[c]})" if c in _MIXED_UP else some for c, some in many)


def _any(words: list[str], gap: str) -> str:
    return "(?:" + "|".join(_pattern(word, gap) for word in words) + ")"


def _is_east_asian(word: str) -> bool:
    return any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for c in word)


def _words(listed: str) -> list[str]:
    """The terms of a list that count as whole words."""
    return [term.strip("*=") for term in listed.split() if not _is_east_asian(term)]


def _search(listed: str) -> re.Pattern[str]:
    entries = listed.split()
    tight = [entry.strip("=") for entry in entries if entry.endswith("=")]
    loose = [word for word in _words(listed) if word not in tight]
    begins = [entry.strip("*") for entry in entries if entry.endswith("*") and not entry.startswith("*")]
    inside = [entry.strip("*") for entry in entries if entry.startswith("*")]
    east_asian = [entry for entry in entries if _is_east_asian(entry)]
    choices = [f"{_START}{_any(loose, '[ -]?')}{_PLURAL}{_END}"]
    choices += [f"{_START}{_any(tight, gap)}{_PLURAL}{_END}" for gap in ("-?", "[ -]") if tight]
    choices += [f"{_START}{_any(begins, '-?')}"] if begins else []
    choices += [_any(inside, "-?")] if inside else []
    choices += [_any(east_asian, "[ -]?")] if east_asian else []
    return re.compile("|".join(choices))


@functools.cache
def _searches() -> dict[str, re.Pattern[str]]:
    minor, sexual = (f"{_any(_words(listed), '')}s?" for listed in (terms.MINOR + terms.TEENS, terms.SEXUAL))
    return {
        "minor": _search(terms.MINOR + terms.TEENS),
        "sexual": _search(terms.SEXUAL),
        "excluded": _search(terms.EXCLUDED),
        "joined": re.compile(f"{_START}(?:{minor}{sexual}|{sexual}{minor}){_END}"),
        "age": _ages(),
    }


def _unit(listed: str) -> str:
    return _pattern(listed, "-?") + ("" if listed.endswith("*") else _END)


_DIGITS = "一二三四五六七八九两兩十"


def _ages() -> re.Pattern[str]:
    """Numbers up to seventeen beside a unit of age or a word for it, and ten to seventeen alone."""
    gap, near = "[ -]?", "[ -]{0,2}"
    unit = (
        rf"(?:{_any(terms.AGE_UNITS.split(), gap)}|{_any(terms.SHORT_AGE_UNITS.split(), gap)}{_END}"
        rf"|{_any(terms.EAST_ASIAN_AGE_UNITS.split(), gap)})"
    )
    disguised = r"(?:1[oizeasgbt$]|[il|!][0-7])"
    digits = rf"(?<!\d)(?:\d|0\d|{_START}{disguised})(?!\d)"
    words = f"{_START}{_any(terms.SMALL_NUMBERS.split() + _words(terms.TEENS), gap)}"
    own = [
        f"{_START}{_any(numbers.split(), '-?')}{near}(?:{'|'.join(map(_unit, units.split()))})"
        for units, numbers in terms.NUMBERS_OF_UNITS.items()
    ]
    ideographs = rf"(?<![{_DIGITS}百千])(?:十[ -]?[一二三四五六七]?|[{_DIGITS.strip('十')}]){near}"
    eighteen = rf"(?:18(?!\d)|{_pattern('eighteen', '')})"
    return re.compile(
        r"(?<!\d)1[ -]?[0-7](?!\d)"
        rf"|(?:{digits}|{words}){near}{unit}"
        rf"|{'|'.join(own)}"
        rf"|{ideographs}{_any(terms.EAST_ASIAN_AGE_UNITS.split(), gap)}"
        rf"|{_START}{_any(terms.AGE_WORDS.split(), '')}{near}\d(?!\d)"
        rf"|(?:<|{_START}{_any(terms.BELOW.split(), '')}){near}(?:de|than|dan|als)?{near}{eighteen}"
    )


def _found(name: str, readings: list[str]) -> bool:
    """Whether one of the readings has a term of a list; digits and signs alone are none."""
    search = _searches()[name]
    return any(any(c.isalpha() for c in match[0]) for text in readings for match in search.finditer(text))


def _combination(text: str, concept: str) -> str | None:
    readings = _readings(fold(text))
    if _found("excluded", readings):
        return EXCLUDED_TERM
    sexual = concept in SEXUAL_CONCEPTS
    if not sexual and _found("joined", readings):
        return WITH_TERM
    if not sexual and not _found("sexual", readings):
        return None
    if _found("minor", readings) or any(_searches()["age"].search(reading) for reading in readings):
        return WITH_CONCEPT if sexual else WITH_TERM
    return None


def _check(texts: list[str], concept: str) -> str | None:
    if concept not in CONCEPTS:
        return NO_CONCEPT
    if max(map(len, texts)) > LONGEST:
        return TOO_LONG
    return _combination("\n".join(texts), concept)


def is_drop(reason: str | None) -> bool:
    """Whether it is one of the gate's reasons, so that the text of what it stands for is not kept."""
    return reason is not None and reason.startswith("guard")


def check(text: str, concept: str) -> str | None:
    """Returns why a text may not reach a generator for a concept, None where it may.

    The reason is a code that quotes nothing of the text. An error in here is a reason, too.
    """
    return check_pair(text, concept)


def check_pair(safe_caption: str, concept: str, unsafe_caption: str = "") -> str | None:
    """Returns why a safe caption may not be paired with a concept or an unsafe caption, None where it may.

    A minor in one of the two and a sexual term in the other is a reason like both in one. Returns as `check`.
    """
    try:
        return _check([safe_caption, unsafe_caption], concept)
    except Exception:  # whatever it is: a gate that fails must stay closed
        return ERROR


def is_sexual(text: str, *concepts: str) -> bool:
    """Whether a text says something sexual, or may: it has a term of the gate, is too long, or the gate fails on it.

    Args:
        text: what to read.
        concepts: of the text. Where one is of the taxonomy and not sexual, its name counts for nothing: there is one
            that has a term of the gate in it.
    """
    for concept in set(concepts) & set(CONCEPTS) - SEXUAL_CONCEPTS:
        text = re.sub(rf"{re.escape(concept.removesuffix('s'))}s?", " ", text, flags=re.IGNORECASE)
    return check_pair(text, "hate", "minor") is not None


def check_asked(asked: str, concept: str, acknowledge_explicit: bool) -> str | None:
    """Returns why an LLM may not be asked for a term in a concept's place, None where it may. Returns as `check`."""
    if dropped := check(asked, "sexual"):  # whatever the concept that it stands for
        return dropped
    return EXPLICIT if not acknowledge_explicit and is_sexual(asked, concept) else None


def check_terms(place: str, asked: dict[str, list[str]], acknowledge_explicit: bool) -> None:
    """Refuses terms to ask an LLM for that the rules for concepts do not allow.

    Args:
        place: of the terms in the config, for the message.
        asked: for a concept, what is asked for in its place.
        acknowledge_explicit: whether sexual terms are allowed.

    Raises:
        UserError: `check_concepts` refuses a concept, or a term may name a minor, or is sexual and not acknowledged.
    """
    check_concepts(list(asked), acknowledge_explicit, place)
    for concept, terms_of in asked.items():
        for term in terms_of:
            refused = check_asked(term, concept, acknowledge_explicit)
            if refused == EXPLICIT:
                raise UserError(f"{place}: {term!r} needs generate.acknowledge_explicit=true, which the run records")
            if refused is not None:
                raise UserError(f"{place}: {term!r} is excluded for good: it may name a minor, or a minor's age")
