"""The building blocks of the page."""

from .markup import el


def paragraph(*children, **attributes):
    return el("p", *children, **attributes)


def bullets(items, **attributes):
    return el("ul", *(el("li", item) for item in items), **attributes) if items else None


def figure(drawing, caption, more=None):
    if not drawing:
        return None
    return el("figure", el("figcaption", el("b", caption), f" · {more}" if more else None), drawing)


def section(place, title, *parts):
    return el("section", el("h2", title), *parts, id=place)


def folded(summary, *children):
    return el("details", el("summary", summary), *children)
