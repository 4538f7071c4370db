"""The plots of a report. Every dot is one run and leads to its file; marks that stand for many say so."""

import math
from collections import namedtuple

from .markup import Markup, el
from .moves import FIGURES, PARTS, ROLES, entries, number, worst_report
from .study import address
from .svg import Drawing, Linear, Log, LogFromZero, apart, cut, mark, plain, short, shown, style, times, wide

WIDTH, HEIGHT, FOREST = 420, 280, 350
LINE = 13  # height of a line of text
MUTED, GRID, INK = "#5f6368", "#e3e3e0", "#222"
FAR_OFF = 2.5  # an outlier so many times beyond all else is drawn at the edge
Box = namedtuple("Box", "left top right bottom")


def title_of(key):
    name, _, unit = FIGURES[key].rpartition(", ")
    name, unit = (name, unit) if name else (unit, "")
    return name[0].upper() + name[1:], unit


def unit_of(key):
    return title_of(key)[1]


def with_unit(value, key):
    unit = unit_of(key)
    return shown(value, key) + (f" {unit}" if unit and not unit.startswith("share") else "")


def run_words(move, value, key, outlier):
    return (f"{move.contender} {move.name}: {with_unit(value, key)}{', an outlier' if outlier else ''}"
            f"{', did not converge' if move.converged() is False else ''}")


def bounds(stats):
    """The least and the most to draw: all but what is far off, which would press all else together."""
    near = [value for stat in stats for value, out in zip(stat.values, stat.outliers) if not out] or [0.0]
    ends = [stat.interval[end] for stat in stats for end in ("low", "high")]
    everything = [value for stat in stats for value in stat.values] + ends
    return min(everything), max(value for value in everything if value <= FAR_OFF * max(near))


def value_scale(stats, start, end):
    low, high = bounds(stats)
    medians = [stat.median for stat in stats]
    if low > 0 and max(medians) > 30 * min(medians):
        return Log(low * 0.8, high * 1.25, start, end)
    return Linear(0, high or 1.0, start, end)


# --- over an axis


def axis_scale(scenario, box):
    xs = sorted({point["x"] for point in scenario["points"]})
    if len(xs) > 3 and xs[0] == 0 and xs[-1] > 15 * xs[1]:
        scale = LogFromZero(xs[1], xs[-1], box.left + 14, box.right - 14)
    elif len(xs) > 2 and xs[0] > 0 and xs[-1] > 15 * xs[0]:
        scale = Log(xs[0], xs[-1], box.left + 14, box.right - 14)
    else:
        scale = Linear(xs[0], xs[-1] if len(xs) > 1 else xs[0] + 1, box.left + 14, box.right - 14)
        scale.low, scale.high = xs[0], xs[-1] if len(xs) > 1 else xs[0] + 1
    return scale, xs


def axis_ticks(scenario, scale, xs, drawing, box):
    """One at each point, as far as there is room for the words."""
    last = -math.inf
    if isinstance(scale, LogFromZero):
        for place in (scale.gap - 3, scale.gap + 3):
            drawing.line(place - 3, box.bottom + 5, place + 3, box.bottom - 5, stroke=MUTED)
    for x in xs:
        place, words = scale(x), short(x)
        drawing.line(place, box.bottom, place, box.bottom + 4, stroke=MUTED)
        if place - wide(words) / 2 > last + 4:
            drawing.text(place, box.bottom + 17, words, "middle", fill=MUTED)
            last = place + wide(words) / 2
    axis = scenario["axis"]
    unit = f", {axis['unit']}" if axis.get("unit") else ""
    drawing.text((box.left + box.right) / 2, box.bottom + 34, f"{axis.get('label') or ''}{unit}", "middle", fill=MUTED)


def value_ticks(scale, drawing, box):
    for tick in scale.ticks:
        if box.top - 1 <= scale(tick) <= box.bottom + 1:
            drawing.line(box.left, scale(tick), box.right, scale(tick), stroke=GRID)
            drawing.text(box.left - 6, scale(tick) + 4, short(tick), "end", fill=MUTED)


def draw_runs(drawing, stat, index, x, scale, box):
    """All single runs, pale, beside their median; those far off at the upper edge, with their value."""
    for place, (move, value, out) in enumerate(zip(stat.moves, stat.values, stat.outliers)):
        beside = x + ((place % 3) - 1) * 4
        words, y = run_words(move, value, stat.key, out), scale(value)
        if y < box.top - 2:
            drawing.link(address(move), words, mark(x, box.top - 6, index, 3.2, hollow=True))
            drawing.text(x + 6, box.top - 2, f"↑ {shown(value, stat.key)}", fill=MUTED)
        else:
            drawing.link(address(move), words, mark(beside, y, index, 2.6, hollow=out, opacity=None if out else 0.38))


def traced(group, stat):
    """What says of a mark which figure it is."""
    return {"data_figure": stat.key, "data_stat": "median", "data_key": group.key, "data_value": repr(stat.median)}


def draw_median(drawing, group, stat, index, x, scale, box):
    colour = style(index)[0]
    low, high = scale(stat.interval["low"]), scale(stat.interval["high"])
    drawing.line(x, low, x, max(high, box.top - 8), stroke=colour, width=1.6)
    for y in (low, high) if high >= box.top - 2 else (low,):
        drawing.line(x - 3.5, y, x + 3.5, y, stroke=colour, width=1.6)
    drawing.mark(x, scale(stat.median), index, 4, cross=bool(group.unconverged()), **traced(group, stat))


def draw_series(drawing, study, scenario, index, key, scales, box):
    """One contender; where its name goes, or None when it has no median anywhere."""
    across, up = scales
    contender, aside = scenario["contenders"][index], (index - (len(scenario["contenders"]) - 1) / 2) * 9
    colour, dashes, _ = style(index)
    groups = sorted((study.group(scenario, point, contender) for point in scenario["points"]),
                    key=lambda group: group.point["x"])
    known = [(group, group.stat(key), across(group.point["x"]) + aside) for group in groups]
    places = [(x, up(stat.median)) for _, stat, x in known if stat]
    if len(places) > 1:
        drawing.add("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), fill="none", stroke=colour,
                    stroke_width=1.6, stroke_dasharray=dashes)
    for group, stat, x in known:
        if stat:
            draw_runs(drawing, stat, index, x, up, box)
            draw_median(drawing, group, stat, index, x, up, box)
        elif group.given_up():
            drawing.parts.append(el("g", el("title", f"{group.contender['name']}: all runs were given up"),
                                    mark(x, box.top + 4, index, cross=True)))
    return places[-1] if places else None


def axis_chart(study, scenario, key):
    stats = [group.stat(key) for group in study.of(scenario) if group.stat(key)]
    if not stats:
        return None
    names = [contender["name"] for contender in scenario["contenders"]]
    room = min(max(map(wide, names)) + 8, 110)
    box = Box(48, 22, WIDTH - room - 6, HEIGHT - 46)
    drawing = Drawing(WIDTH, HEIGHT, f"{title_of(key)[0]} over {scenario['axis'].get('label') or 'the axis'}",
                      describe(study, scenario, key))
    up = value_scale(stats, box.bottom, box.top)
    across, xs = axis_scale(scenario, box)
    value_ticks(up, drawing, box)
    axis_ticks(scenario, across, xs, drawing, box)
    ends = [draw_series(drawing, study, scenario, index, key, (across, up), box) for index in range(len(names))]
    named = [(index, end) for index, end in enumerate(ends) if end]
    heights = apart([y for _, (_, y) in named], LINE + 1, box.top, box.bottom)
    for (index, _), y in zip(named, heights):
        drawing.text(box.right + 8, y + 4, cut(names[index], room), fill=style(index)[0], font_weight=600)
    return drawing.render()


def describe(study, scenario, key):
    """The chart in words, for those who cannot see it."""
    parts = []
    for group in study.of(scenario):
        stat = group.stat(key)
        what = "not known"
        if stat:
            low, high = (shown(stat.interval[end], key) for end in ("low", "high"))
            what = f"{with_unit(stat.median, key)} ({low} to {high})"
        parts.append(f"{group.contender['name']} at {group.point['label']}: {what}")
    return "Medians with intervals. " + "; ".join(parts)


# --- without one: a row for each contender


def rows_of(study, scenario, key, known):
    """[(label, index, group)], a heading for each point that has something to show, where there are several."""
    rows = []
    for point in scenario["points"]:
        found = [(contender["name"], index, study.group(scenario, point, contender))
                 for index, contender in enumerate(scenario["contenders"])]
        found = [row for row in found if known(row[2])]
        if found and len(scenario["points"]) > 1:
            rows.append((point["label"], None, None))
        rows += found
    return rows


def row_box(rows, right, step):
    names = [wide(label) for label, index, _ in rows if index is not None]
    left = min(max(names), 100) + 14
    return Box(left, 8, WIDTH - right, 8 + sum(step if index is not None else LINE + 7 for _, index, _ in rows))


def each_row(drawing, rows, box, step):
    """Names the rows and yields (index, group, y)."""
    y = box.top
    for label, index, group in rows:
        if index is None:
            drawing.text(2, y + LINE + 2, cut(label, WIDTH - 8), font_weight=600)
            y += LINE + 7
            continue
        drawing.text(box.left - 8, y + step / 2 + 4, cut(label, box.left - 10), "end", fill=style(index)[0])
        yield index, group, y + step / 2
        y += step


def along_ticks(scale, drawing, box, label):
    for tick in scale.ticks:
        if box.left - 1 <= scale(tick) <= box.right + 1:
            drawing.line(scale(tick), box.top, scale(tick), box.bottom, stroke=GRID)
            drawing.text(scale(tick), box.bottom + 15, short(tick), "middle", fill=MUTED)
    drawing.text((box.left + box.right) / 2, box.bottom + 31, label, "middle", fill=MUTED)


def strip_chart(study, scenario, key):
    rows = rows_of(study, scenario, key, lambda group: bool(group.stat(key)))
    if not rows:
        return None
    box = row_box(rows, 62, 24)
    drawing = Drawing(WIDTH, box.bottom + 38, title_of(key)[0], describe(study, scenario, key))
    scale = value_scale([group.stat(key) for _, _, group in rows if group], box.left, box.right)
    along_ticks(scale, drawing, box, unit_of(key))
    for index, group, y in each_row(drawing, rows, box, 24):
        draw_strip(drawing, group, group.stat(key), index, y, scale, box)
    return drawing.render()


def draw_strip(drawing, group, stat, index, y, scale, box):
    colour = style(index)[0]
    low, high = scale(stat.interval["low"]), scale(stat.interval["high"])
    drawing.line(low, y, min(high, box.right + 6), y, stroke=colour, width=1.6)
    for x in (low, high) if high <= box.right + 1 else (low,):
        drawing.line(x, y - 3.5, x, y + 3.5, stroke=colour, width=1.6)
    for place, (move, value, out) in enumerate(zip(stat.moves, stat.values, stat.outliers)):
        words = run_words(move, value, stat.key, out)
        x, beside = min(scale(value), box.right + 4), y + ((place % 3) - 1) * 4
        drawing.link(address(move), words, mark(x, beside, index, 2.6, hollow=out, opacity=None if out else 0.38))
    drawing.mark(scale(stat.median), y, index, 4, cross=bool(group.unconverged()), **traced(group, stat))
    drawing.text(WIDTH - 2, y + 4, shown(stat.median, stat.key), "end", font_weight=600)
    far = [value for value in stat.values if scale(value) > box.right + 4]
    if far:
        drawing.text(box.right - 4, y - 6, f"{shown(max(far), stat.key)} →", "end", fill=MUTED)


def chart(study, scenario, key):
    return (axis_chart if scenario["axis"] and len(scenario["points"]) > 1 else strip_chart)(study, scenario, key)


# --- what a run in the middle is made of

PART_COLOURS = ("#27405f", "#4d7ba8", "#9cc0dc", "#8c6d2f", "#c9a24d", "#ecd9a4", "#9a9a9a")
ROLE_COLOURS = ("#27405f", "#4d7ba8", "#a9c8e0", "#ecd9a4", "#b9b9b4", "#b9b9b4")


def stacked_chart(rows, scale_name, names, colours, title):
    """rows: [(label, index, group)] with `made(group)` in group.segments: {name: value}."""
    shown = [(label, index, item) for label, index, item in rows]
    tops = [sum(value or 0 for value in item["segments"].values()) for _, index, item in shown if index is not None]
    if not tops or max(tops) <= 0:
        return None
    used = [name for name in names if any(index is not None and item["segments"].get(name) for _, index, item in shown)]
    legend, lines = legend_places(used)
    box = row_box(shown, 52, 24)
    drawing = Drawing(WIDTH, box.bottom + 42 + lines * 18, title, "; ".join(
        f"{item['key']}: " + ", ".join(f"{name} {plain(value)}" for name, value in item["segments"].items() if value)
        for _, index, item in shown if index is not None))
    scale = Linear(0, max(tops), box.left, box.right)
    along_ticks(scale, drawing, box, scale_name)
    for index, item, y in each_row(drawing, shown, box, 24):
        draw_bar(drawing, item, [(name, colours[names.index(name)]) for name in used], y, scale)
    for name, x, line in legend:
        y = box.bottom + 50 + line * 18
        drawing.add("rect", x=float(x), y=float(y - 10), width=11, height=11, fill=colours[names.index(name)])
        drawing.text(x + 15, y, name.replace("_", " "), fill=INK)
    return drawing.render()


def legend_places(names):
    """[(name, x, line)] and how many lines they take."""
    found, x, line = [], 4.0, 0
    for name in names:
        room = wide(name) + 30
        if x + room > WIDTH and x > 4:
            x, line = 4.0, line + 1
        found.append((name, x, line))
        x += room
    return found, line + 1


def draw_bar(drawing, item, parts, y, scale):
    shapes, at = [], 0.0
    for name, colour in parts:
        value = item["segments"].get(name) or 0
        if value > 0:
            width = float(max(0.3, scale(at + value) - scale(at)))
            words = f"{name.replace('_', ' ')}: {plain(value)}"
            shapes.append(el("rect", el("title", words), x=float(scale(at)), y=y - 8.0, width=width, height=16,
                             fill=colour, stroke="#fff", stroke_width=0.6))
            at += value
    drawing.parts.append(el("a", *shapes, href=item["href"]))
    drawing.text(scale(at) + 5, y + 4, plain(at), font_weight=600)


def parts_chart(study, scenario):
    def segments(group):
        move = group.stat("downtime_ms").typical()
        return {part: move.figures[f"downtime_{part}_ms"] for part in PARTS}, move

    rows = stacked_rows(study, scenario, "downtime_ms", segments)
    return stacked_chart(rows, "ms", PARTS, PART_COLOURS, "Downtime by part")


def stacked_rows(study, scenario, key, segments):
    rows = []
    for label, index, group in rows_of(study, scenario, key, lambda group: bool(group.stat(key))):
        if index is not None:
            made, move = segments(group)
            group = {"segments": made, "href": address(move), "key": group.key}
        rows.append((label, index, group))
    return rows


def roles_chart(study, scenario, side):
    names = (*ROLES, "rest of the host", "whole host")

    def segments(group):
        move = group.stat(f"{side}_host_cpu").typical()
        roles = {role: move.figures[f"{side}_{role}_cpu"] for role in ROLES}
        rest = move.figures[f"{side}_rest_cpu"]
        if None in roles.values():
            return {"whole host": move.figures[f"{side}_host_cpu"]}, move
        return {**roles, "rest of the host": rest}, move

    rows = stacked_rows(study, scenario, f"{side}_host_cpu", segments)
    return stacked_chart(rows, "CPU seconds per GiB", names, ROLE_COLOURS, f"CPU time of the {side} by role")


# --- round by round


def rounds_charts(study, scenario):
    """[(caption, drawing)]: the run in the middle of each group that took more than one round, all on one scale; of
    several guests the one that was down longest."""
    chosen = []
    for point in scenario["points"]:
        for index, contender in enumerate(scenario["contenders"]):
            stat = study.group(scenario, point, contender).stat("total_s")
            rounds = entries(worst_report(stat.typical()), "rounds") if stat else []
            if len(rounds) > 1:
                chosen.append((f"{point['label']}, {contender['name']}", stat.typical(), round_sizes(rounds), index))
    values = [value for _, _, sizes, _ in chosen for pair in sizes for value in pair if value > 0] or [1.0]
    limits = max(min(values), max(values) / 1e4) * 0.6, max(values) * 1.3
    return [(caption, rounds_chart(move, sizes, index, limits)) for caption, move, sizes, index in chosen]


def round_sizes(rounds):
    """[(MiB sent, MiB found dirty after it)]."""
    return [((number(entry, "bytes") or 0) / (1 << 20), (number(entry, "dirty_pages_after") or 0) / 256)
            for entry in rounds]


def rounds_chart(move, sizes, index, limits):
    """Sent bytes as bars, dirty bytes found afterwards as marks."""
    width, height = 220, 128
    box = Box(38, 10, width - 6, height - 26)
    words = [f"{plain(sent)} MiB sent and {plain(left)} MiB dirty after" for sent, left in sizes]
    drawing = Drawing(width, height, "Bytes sent and dirty by round", ", ".join(words))
    scale = Log(*limits, box.bottom, box.top)
    for tick in log_or_few(scale):
        drawing.line(box.left, scale(tick), box.right, scale(tick), stroke=GRID)
        drawing.text(box.left - 4, scale(tick) + 4, short(tick), "end", fill=MUTED, font_size=11)
    step, shapes = (box.right - box.left) / len(sizes), []
    for place, (sent, left) in enumerate(sizes):
        x = box.left + (place + 0.5) * step
        if sent > 0:
            y = min(scale(sent), box.bottom - 1)
            shapes.append(el("rect", x=x - step * 0.3, y=float(y), width=step * 0.6, height=float(box.bottom - y),
                             fill=style(index)[0], opacity=0.45))
        if left > 0:
            shapes.append(mark(x, min(scale(left), box.bottom), index, 2.8))
    drawing.parts.append(el("a", *shapes, href=address(move)))
    drawing.text(box.left, box.bottom + 17, "round 1", fill=MUTED, font_size=11)
    drawing.text(box.right, box.bottom + 17, str(len(sizes)), "end", fill=MUTED, font_size=11)
    return drawing.render()


def log_or_few(scale):
    return scale.ticks if len(scale.ticks) <= 4 else scale.ticks[::2]


# --- how contenders differ, everywhere at once


def forest_chart(rows, title, words):
    """rows: [(scenario's title or None, label, comparison or None, href)]. A mark left of 1: less over the other."""
    known = [result for _, _, result in rows if result]
    if not known:
        return None
    left, right, step = 128.0, FOREST - 40.0, 19
    height = sum(step if heading is None else LINE + 9 for heading, _, _ in rows) + 8
    low = min(0.5, max(0.02, min(result["low"] for result in known) * 0.95))
    high = max(2.0, min(50.0, max(result["high"] for result in known) * 1.05))
    in_words = [f"{label}: {times(result['ratio'])} ({times(result['low'])} to {times(result['high'])})"
                for _, label, result in rows if result]
    drawing = Drawing(FOREST, height + 40, title, "; ".join(in_words))
    box = Box(left, 8, right, height)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= tick <= high]
    scale = Log(low, high, left, right, ticks)
    along_ticks(scale, drawing, box, words)
    drawing.line(scale(1), box.top, scale(1), box.bottom, stroke="#777", width=1.2)
    y = box.top
    for heading, label, result in rows:
        if heading is not None:
            drawing.text(2, y + LINE + 4, cut(heading, FOREST - 6, 13), font_weight=600)
            y += LINE + 9
            continue
        draw_ratio(drawing, label, result, y + step / 2, scale, box)
        y += step
    return drawing.render()


def draw_ratio(drawing, label, result, y, scale, box):
    drawing.text(box.left - 8, y + 4, cut(label, box.left - 12), "end", fill=INK)
    if not result:
        drawing.text(FOREST - 2, y + 4, "–", "end", fill=MUTED)
        return
    shown, clip = result["shown"], lambda x: min(max(scale(x), box.left - 3), box.right + 3)
    colour = "#8a8a86" if not shown else "#1b4f8f" if result["ratio"] < 1 else "#d3700f"
    drawing.line(clip(result["low"]), y, clip(result["high"]), y, stroke=colour, width=2 if shown else 1.4)
    drawing.add("circle", cx=float(clip(result["ratio"])), cy=float(y), r=4.2, fill=colour if shown else "#fff",
                stroke=colour, stroke_width=1.5)
    drawing.text(FOREST - 2, y + 4, times(result["ratio"]), "end", fill=INK if shown else MUTED,
                 font_weight=600 if shown else 400)


# --- foretold and measured


def prediction_chart(found, key, transports):
    """Every migration: foretold over measured, with the diagonal and a band of 15 % around it."""
    known = [(entry, *getattr(entry, key)[:2]) for entry in found if getattr(entry, key)]
    known = [(entry, told, came) for entry, told, came in known if told > 0 and came > 0]
    if not known:
        return None
    size, box = 380, Box(56, 12, 368, 324)
    values = [value for _, told, came in known for value in (told, came)]
    low, high = min(values) * 0.8, max(values) * 1.25
    drawing = Drawing(size, size - 10, f"Predicted and measured {'total time' if key == 'total' else 'downtime'}",
                      f"{len(known)} migrations")
    across, up = Log(low, high, box.left, box.right), Log(low, high, box.bottom, box.top)
    band = [(low, low * 1.15), (high / 1.15, high), (high, high), (high, high * 0.85), (low / 0.85, low), (low, low)]
    drawing.add("polygon", points=" ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in band), fill="#efeee8")
    for tick in across.ticks:
        drawing.line(across(tick), box.top, across(tick), box.bottom, stroke=GRID)
        drawing.line(box.left, up(tick), box.right, up(tick), stroke=GRID)
        drawing.text(across(tick), box.bottom + 16, short(tick), "middle", fill=MUTED)
        drawing.text(box.left - 6, up(tick) + 4, short(tick), "end", fill=MUTED)
    drawing.line(across(low), up(low), across(high), up(high), stroke="#777", width=1.2)
    drawing.text((box.left + box.right) / 2, box.bottom + 33, "measured, ms", "middle", fill=MUTED)
    drawing.add("text", "predicted, ms", x=12, y=170, text_anchor="middle", fill=MUTED, transform="rotate(-90 12 170)")
    for entry, told, came in known:
        index = transports.index(entry.move.transport) if entry.move.transport in transports else 4
        words = f"{'/'.join(entry.move.key())} {entry.move.name}: {plain(told)} ms foretold, {plain(came)} ms measured"
        drawing.link(address(entry.move), words, mark(across(came), up(told), index, 3.4, opacity=0.75))
    return drawing.render()


def key_to_marks(names):
    """A line that shows what mark stands for which name."""
    parts = []
    for index, name in enumerate(names):
        sample = Drawing(26, 12, name, "a mark")
        colour, dashes, _ = style(index)
        sample.line(0, 6, 26, 6, stroke=colour, width=1.6, stroke_dasharray=dashes)
        sample.mark(13, 6, index, 4)
        parts.append(el("span", sample.render(), " ", el("b", name, style=f"color:{colour}")))
    return el("p", *parts, class_="marks") if parts else Markup("")
