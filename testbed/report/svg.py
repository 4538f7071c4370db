"""Drawings: a surface that scales with the page, scales with round ticks, and marks that differ in shape as well as in
colour, so that they can be told apart in print and by everybody."""

import math

from .markup import el

# (colour, dashes, shape): dark to light in grey too.
STYLES = (("#1b4f8f", None, "circle"), ("#d3700f", "6 3", "square"), ("#2b8a6b", "2 3", "triangle"),
          ("#8a3f87", "8 3 2 3", "diamond"), ("#6b6b6b", "10 4", "circle"), ("#a8282f", "4 2", "square"))
CHARACTER = 0.6  # width of a letter, of its height


def style(index):
    return STYLES[index % len(STYLES)]


def plain(value):
    """Three digits that matter."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{places}f}"


def shown(value, key):
    """A figure as people read it: shares in percent, counts whole, all others with three digits."""
    if value is None:
        return "–"
    if key.startswith(("share_", "work_")):
        return f"{100 * value:.0f}\u202f%"
    return f"{value:g}" if key == "rounds" and value < 1000 else plain(value)


def times(ratio):
    """A ratio with two decimals, or as many as it takes not to look like 1."""
    if ratio >= 100:
        return plain(ratio)
    precise = (f"{ratio:.{places}f}" for places in (2, 3, 4))
    return next((words for words in precise if float(words) != 1), f"{ratio:.2f}")


def short(value):
    """For the ticks of an axis."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(scale, 1e5):
            return f"{value / scale:g}{letter}"
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:g}"


class Linear:
    def __init__(self, low, high, start, end, ticks=5):
        self.ticks = nice_ticks(low, high, ticks)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self.start, self.end = start, end

    def __call__(self, value):
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)


class Log:
    """low and high above 0."""

    def __init__(self, low, high, start, end, ticks=None):
        self.low, self.high = low, high if high > low * 1.01 else low * 1.01
        self.start, self.end = start, end
        self.ticks = ticks or log_ticks(self.low, self.high)

    def __call__(self, value):
        share = math.log(max(value, self.low / 10) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


class LogFromZero(Log):
    """One with a place for 0 beside it, and a gap between that and all others."""

    def __init__(self, low, high, start, end):
        self.zero, self.gap = start, start + (end - start) * 0.1
        super().__init__(low, high, start + (end - start) * 0.2, end)

    def __call__(self, value):
        return super().__call__(value) if value > 0 else self.zero


def nice_ticks(low, high, count):
    """Round numbers from low or below to high or above."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low, high):
    found = [factor * 10.0 ** power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
             for factor in (1, 2, 5)]
    inside = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
    if len(inside) > 7:
        inside = [tick for tick in inside if f"{tick:e}"[0] == "1"]
    return inside


def apart(places, room, low, high):
    """The places moved as little as it takes to be `room` apart, within bounds."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, now in zip(order, order[1:]):
        moved[now] = max(moved[now], moved[before] + room)
    over = (moved[order[-1]] - high) if order else 0
    if over > 0:
        moved[order[-1]] = high
        for after, now in zip(order[::-1], order[-2::-1]):
            moved[now] = min(moved[now], moved[after] - room)
    return [max(low, place) for place in moved]


class Drawing:
    """Marks in the order they are drawn."""

    def __init__(self, width, height, title, description):
        self.width, self.height, self.parts = width, height, []
        self.title, self.description = title, description

    def add(self, name, /, *children, **attributes):
        self.parts.append(el(name, *children, **attributes))

    def line(self, x1, y1, x2, y2, stroke="#d9d9d9", width=1, **more):
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=stroke, stroke_width=width,
                 **more)

    def text(self, x, y, words, anchor="start", **more):
        self.add("text", words, x=float(x), y=float(y), text_anchor=anchor, **more)

    def mark(self, x, y, index, size=4.5, hollow=False, **more):
        """The shape of a contender; what it stands for is its tooltip."""
        self.parts.append(mark(x, y, index, size, hollow, **more))

    def link(self, address, tooltip, shape):
        """A mark that leads to the file it was made of."""
        self.parts.append(el("a", el("title", tooltip), shape, href=address))

    def render(self):
        return el("svg", el("title", self.title), el("desc", self.description), *self.parts, aria_label=self.title,
                  viewBox=f"0 0 {self.width:g} {self.height:g}", role="img", width=f"{self.width:g}",
                  height=f"{self.height:g}", xmlns="http://www.w3.org/2000/svg")


def mark(x, y, index, size=4.5, hollow=False, cross=False, opacity=None, **more):
    colour, _, shape = style(index)
    paint = {"fill": "#fff" if hollow else colour, "stroke": colour, "stroke_width": 1.3, "opacity": opacity, **more}
    x, y, size = float(x), float(y), float(size)
    if cross:
        arms = (f"M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}"
                f"M{x - size:.1f} {y + size:.1f}L{x + size:.1f} {y - size:.1f}")
        return el("path", d=arms, **{**paint, "fill": "none", "stroke_width": 2})
    if shape == "circle":
        return el("circle", cx=x, cy=y, r=size, **paint)
    if shape == "square":
        return el("rect", x=x - 0.9 * size, y=y - 0.9 * size, width=1.8 * size, height=1.8 * size, **paint)
    wide = 1.15 * size
    corners = [(x, y - wide), (x + wide, y + 0.8 * size), (x - wide, y + 0.8 * size)] if shape == "triangle" else \
        [(x, y - wide), (x + wide, y), (x, y + wide), (x - wide, y)]
    return el("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in corners), **paint)


def wide(words, size=12):
    """About how wide a text is."""
    return len(str(words)) * size * CHARACTER


def cut(words, room, size=12):
    most = max(3, int(room / (size * CHARACTER)))
    words = str(words)
    return words if len(words) <= most else words[:most - 1] + "…"
