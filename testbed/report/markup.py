"""HTML and SVG as text that is safe by construction: whatever is not Markup already is escaped."""

import html
import re

# What XML forbids, and what turns the direction of text around.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")
EMPTY = {"meta", "br", "line", "rect", "circle", "path", "polyline", "polygon"}


class Markup(str):
    """Text that is markup, and whose parts were escaped when it was made."""


def escape(value):
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(FORBIDDEN.sub("\ufffd", str(value)), quote=True))


def join(parts):
    return Markup("".join(escape(part) for part in parts if part is not None))


def el(name, /, *children, **attributes):
    """An element; an attribute `data_key` is written data-key, `class_` class, and None is left out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(rounded(value))}"')
    opening = " ".join(words)
    if name in EMPTY and not children:
        return Markup(f"<{opening}>" if name in ("meta", "br") else f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def rounded(value):
    """Places in a drawing need no more than hundredths."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
