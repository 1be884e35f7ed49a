"""A small picture of two series over days, as SVG by hand: no library is asked for. For `daybook simulate --plot`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 56, 40
BEFORE, AFTER, GRID, TEXT = "#8c8c8c", "#2166ac", "#e6e6e6", "#333333"
EPOCH = datetime.date(1970, 1, 1)


def _steps(highest: int) -> list[int]:
    """Some round values from 0 to at least `highest`."""
    step = 1
    while step * 5 < highest:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return [step * i for i in range(highest // step + 2)]


def two_lines(title: str, unit: str, first_day: int, before: Sequence[int], after: Sequence[int], names: tuple[str, str],
              divide: int = 1) -> str:
    """The picture's text. divide: how many of the values make one of the unit on the axis."""
    count = max(1, len(after))
    marks = _steps(max([1, *before, *after]) // divide + 1)
    top = marks[-1] * divide

    def x(at: int) -> int:
        return LEFT + (WIDTH - LEFT - RIGHT) * at // max(1, count - 1)

    def y(value: int) -> int:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value // top

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="{TEXT}">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>']
    for mark in marks:
        at = y(mark * divide)
        out.append(f'<line x1="{LEFT}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}" stroke="{GRID}"/>'
                   f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{mark:,}</text>')
    for at in sorted({count * part // 4 for part in range(4)} | {count - 1}):
        day = EPOCH + datetime.timedelta(days=first_day + at)
        out.append(f'<text x="{x(at)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{day.isoformat()}</text>')
    for at, (values, colour, name) in enumerate(((before, BEFORE, names[0]), (after, AFTER, names[1]))):
        points = " ".join(f"{x(i)},{y(value)}" for i, value in enumerate(values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
                   f'<text x="{LEFT + 300 * at}" y="42" fill="{colour}">&#9632; {escape(name)}</text>')
    out.append(f'<text x="{LEFT - 8}" y="42" text-anchor="end">{escape(unit)}</text></svg>\n')
    return "\n".join(out)
