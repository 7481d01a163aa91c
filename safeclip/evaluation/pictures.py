"""Pictures of a report: small, safe to look at, and the strip that sums it up."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from safeclip.encoder.model import decode_image
from safeclip.evaluation.examples import Example, Item

SAFE_COLOUR, UNSAFE_COLOUR = "#15803d", "#b91c1c"
_INK, _FAINT, _RULE = "#1e293b", "#64748b", "#e2e8f0"
_THUMBNAIL = 192  # pixels, the longer side
STRIP_ENCODERS = 4  # more would leave nothing to see of a picture
_BLUR_TO = 10  # pixels, the longer side of what is left of a blurred picture


def thumbnail(item: Item, blurred: bool) -> Image.Image:
    """Returns an item's picture, at most 192 pixels wide and high.

    Args:
        item: a picture.
        blurred: whether an unsafe picture is reduced to a few colours. What was there is not in the result.
    """
    image = decode_image(item.content)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    if blurred and item.unsafe:
        size = image.size
        image.thumbnail((_BLUR_TO, _BLUR_TO), Image.Resampling.BOX)
        image = image.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(size[0] / 16))
    return image


def data_uri(image: Image.Image) -> str:
    """Returns a picture as an address that holds it whole."""
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"


def summary_strip(examples: list[Example], titles: dict[str, str], blurred: bool) -> bytes:
    """Draws unsafe texts with the pictures that they find, one row a query, one group of columns an encoder.

    Args:
        examples: of texts that search pictures.
        titles: of the encoders, by label; their order is that of the columns, of which there are four at most.
        blurred: whether unsafe pictures are blurred.

    Returns:
        PNG, 1200 pixels wide.
    """
    width, margin, gap = 1200, 32, 12
    titles = dict(list(titles.items())[:STRIP_ENCODERS])
    shown = min(3, *(len(found) for e in examples for found in e.results.values()))
    room = (width - 2 * margin - 260) // len(titles) - 28
    picture = min(124, room // shown - gap)
    group = shown * (picture + gap)
    row_height, header = picture + 46, 70
    canvas = Image.new("RGB", (width, header + row_height * len(examples) + 40), "white")
    draw = ImageDraw.Draw(canvas)
    starts = {label: width - margin + gap - (len(titles) - i) * (group + 28) + 28 for i, label in enumerate(titles)}
    draw.text((margin, 24), "Unsafe query", font=_font(21, bold=True), fill=_INK)
    for label, x in starts.items():
        draw.text((x, 24), titles[label], font=_font(21 if len(titles) < 3 else 15, bold=True), fill=_INK)
    for index, example in enumerate(examples):
        y = header + index * row_height
        draw.line([(margin, y - 8), (width - margin, y - 8)], fill=_RULE, width=2)
        _draw_query(draw, example, margin, y + 4, min(starts.values()) - margin - 30)
        for label, x in starts.items():
            for place, item in enumerate(example.results[label][:shown]):
                corner = (x + place * (picture + gap), y + 4)
                _draw_result(canvas, draw, item, corner, picture, blurred)
    note = "Queries drawn at random, one a concept; the first results of each, best first."
    draw.text((margin, canvas.height - 32), note, font=_font(14), fill=_FAINT)
    sink = io.BytesIO()
    canvas.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _draw_query(draw: ImageDraw.ImageDraw, example: Example, x: int, y: int, width: int) -> None:
    draw.text((x, y), example.concept, font=_font(15, bold=True), fill=UNSAFE_COLOUR)
    font = _font(18)
    for number, line in enumerate(_wrap(draw, f"“{example.query.caption}”", font, width)[:5]):
        draw.text((x, y + 24 + 24 * number), line, font=font, fill=_INK)


def _draw_result(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, item: Item, corner: tuple[int, int], size: int, blurred: bool
) -> None:
    x, y = corner
    colour, frame = (UNSAFE_COLOUR if item.unsafe else SAFE_COLOUR), 5
    draw.rounded_rectangle([x, y, x + size, y + size], radius=8, fill=colour)
    inner = size - 2 * frame + 1
    image = thumbnail(item, blurred)
    canvas.paste(image.resize((inner, inner), Image.Resampling.LANCZOS), (x + frame, y + frame))
    mark = _mark(item) if size > 100 else _mark(item)[0]
    draw.text((x + 2, y + size + 4), mark, font=_font(14, bold=True), fill=colour)


def _mark(item: Item) -> str:
    return "✗ unsafe" if item.unsafe else "✓ its safe pair" if item.wanted else "✓ safe"


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
