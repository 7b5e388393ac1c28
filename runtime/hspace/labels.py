"""Labels on pictures, in any script (docs/decisions/0019).

Pillow's own font has ASCII and little more. A text that it cannot write is in the first of the machine's fonts, of
those listed here, that has all of it. Where none has, each character is in the first font that has it, and one that no
font has is its code point, as in "\\u7b11": never a box that looks like any other.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

_SIZE = 13  # pixels
LINE = _SIZE + 4  # pixels from one line to the next
# Looked for in this order, where the system keeps fonts: those of many scripts, then some for each that they lack.
# All are outlines: fonts of coloured pictures have no such size.
_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "segoeui.ttf", "FreeSans.ttf"),
    *("LiberationSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc"),
    *("meiryo.ttc", "malgun.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "ipag.ttf"),
    *(f"NotoSans{script}-Regular.ttf" for script in ("Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai")),
    *("NanumGothic.ttf", "Nirmala.ttf", "leelawui.ttf", "GeezaPro.ttc", "Kohinoor.ttc", "Thonburi.ttc"),
    *("NotoEmoji-Regular.ttf", "NotoSansSymbols2-Regular.ttf", "Symbola.ttf", "unifont.otf", "unifont.ttf"),
)


@functools.cache
def _own() -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(_SIZE)  # type: ignore[return-value]  # a bitmap font where Pillow lacks FreeType


@functools.cache
def _fonts() -> list[FreeTypeFont]:
    """Pillow's own font, and those of the list that this machine has."""
    from PIL import ImageFont

    fonts = [_own()]
    for name in _FILES:
        try:
            fonts.append(ImageFont.truetype(name, _SIZE))
        except OSError:  # it is not there, or is none
            continue
    return fonts


@functools.cache
def _has(number: int, character: str) -> bool:
    """Whether a font has a glyph for a character: another one than it has for what is no character."""
    from PIL import ImageFont

    if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"):
        return False
    if unicodedata.category(character) == "Cf" or unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        return True  # of no width, and left out where a font lacks it
    plain = _fonts()[number].font_variant(layout_engine=ImageFont.Layout.BASIC)  # which adds no circle to a lone mark
    drawn, missing = plain.getmask(character), plain.getmask("\U0010ffff")
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _runs(line: str) -> list[tuple[FreeTypeFont, str]]:
    """A line in parts, each with the font that it is drawn in."""
    if line.isascii() and line.isprintable():
        return [(_own(), line)]
    line = unicodedata.normalize("NFC", line)
    numbers = range(len(_fonts()))
    whole = next((n for n in numbers if all(_has(n, c) for c in line)), None)
    if whole is not None:  # one font for all of it, which shapes and orders Arabic, say, as a whole
        return [(_fonts()[whole], line)]
    runs: list[tuple[int, str]] = []
    for character in line:
        last = runs[-1:]
        near = [last[0][0]] if last else []  # of the fonts that have it, the one before it
        number = next((n for n in (*near, *numbers) if _has(n, character)), None)
        text = character if number is not None else character.encode("unicode_escape").decode()
        if last and last[0][0] == (number or 0):
            runs[-1] = (last[0][0], last[0][1] + text)
        else:
            runs.append((number or 0, text))
    return [(_fonts()[number], text) for number, text in runs]


def size_of(label: str) -> tuple[int, int]:
    """(width, height) in pixels of what `draw` draws."""
    if not label:
        return 0, 0
    lines = label.split("\n")
    return max(int(sum(font.getlength(text) for font, text in _runs(line))) for line in lines) + 1, LINE * len(lines)


def draw(on: ImageDraw, left: int, top: int, label: str) -> None:
    """Draws a label of one or several lines in black, all its fonts on one baseline."""
    for i, line in enumerate(label.split("\n")):
        x, baseline = float(left), top + i * LINE + _own().getmetrics()[0]
        for font, text in _runs(line):
            on.text((x, baseline), text, fill="black", font=font, anchor="ls")
            x += font.getlength(text)
