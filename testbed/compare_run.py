"""Runs a comparison: which move comes next, on which hosts, with what link, until every median is known well enough."""

import contextlib
import fnmatch
import time

import comparison
import link_limits
import nic_counters
import pair
import scenario as scenarios
import trial
from compare_store import now
from hosts import Failure, expect
from progress import Progress
from virtual import shaping
from virtual.packages import Trouble

DEFAULT_LANES = 2
# Failures of one contender at one point, without a success, after which it is left alone.
ENOUGH_FAILURES = 3
# Boots one after the other in which not one move that counts went well.
ENOUGH_BOOTS = 3
# Boots that were lost in moves of one contender at one point, after which it is left alone.
ENOUGH_LOSSES = 2
ANSWER_SECONDS = 20
WARM_UPS = 2  # of each contender in each scenario, one in either direction
UNKNOWN = object()  # how a link is while a command changes it


class Cell:
    """One contender at one point of a scenario: what a median is made of."""

    def __init__(self, scenario, point, contender):
        self.scenario, self.point, self.contender = scenario["name"], point, contender
        self.tried, self.totals, self.warm_ups, self.left_out, self.losses = {}, {}, 0, None, 0
        self.most = scenario.get("max_repeats")

    @property
    def key(self):
        return f"{self.point['id']}/{self.contender['name']}"

    def take(self, label, move):
        """Counts a move that was made."""
        if move["warm_up"]:
            self.warm_ups = max(self.warm_ups, move["repeat"])
            return
        self.tried[move["repeat"]] = move["failed"]
        self.totals.setdefault(move["boot"], []).append(trial.total_seconds(move))

    def hopeless(self):
        return len(self.tried) >= ENOUGH_FAILURES and all(self.tried.values())

    def is_open(self):
        return not self.left_out and not self.hopeless()

    def may(self, repeat, options):
        return self.is_open() and repeat not in self.tried and repeat <= self.limit(options)

    def limit(self, options):
        return max(options.repeats, min(options.max_repeats, self.most or options.max_repeats))

    def known(self, share):
        """By the boot with most runs: boots of the same hosts differ, and values of several are not of one kind."""
        totals = max(self.totals.values(), key=len, default=[])
        return comparison.precise(comparison.median_interval(totals), share)

    def options(self):
        return self.point["settings"]["options"] + self.contender["options"]


class Session:
    """The hosts during one boot of them."""

    def __init__(self, run, ends, machine, boot):
        self.run, self.ends, self.machine, self.boot = run, ends, machine, boot
        self.shape, self.mtus, self.limited, self.good, self.moving = None, None, set(), 0, None

    def answer(self):
        """Whether both hosts still do."""
        try:
            return all(end.host.run("echo here", seconds=ANSWER_SECONDS).returncode == 0 for end in self.ends)
        except Failure:
            return False

    def prepare(self, stack):
        """Notes how the link is, and sees that it is so again afterwards."""
        self.interfaces = [nic_counters.interface_of(end) for end in self.ends]
        self.mtus_before = self.mtus = list(map(mtu_of, self.ends, self.interfaces))
        if self.machine:
            self.shape_before = self.shape = self.machine.instance.read()["settings"]["link"]
        stack.callback(self.restore)

    def restore(self):
        """Each part by itself: one that fails must not keep the other as it is."""
        with contextlib.suppress(Failure, Trouble):
            self.set_mtus(self.mtus_before)
        if self.machine:
            with contextlib.suppress(Failure, Trouble):
                self.set_shape(self.shape_before)

    def set_mtus(self, mtus):
        if mtus == self.mtus:
            return
        self.mtus = UNKNOWN
        for end, interface, mtu in zip(self.ends, self.interfaces, mtus, strict=True):
            expect(interface and mtu, f"the network interface of {end.address} on {end} was not found: its MTU cannot "
                                      f"be set; leave out the points that set one")
            end.host.run(shaping.mtu_command(interface, mtu))
        self.mtus = mtus

    def set_shape(self, shape):
        if shape != self.shape:
            self.shape = UNKNOWN
            self.machine.instance.shape(shape)
            self.shape = shape

    def mtu(self):
        """That of both ends; where they differ, what gets through."""
        return min(filter(None, self.mtus), default=None)

    def fits(self, settings):
        """None, or why this point cannot be had on these hosts."""
        if self.machine:
            return None
        if settings["link"] and not settings["link_where"]:
            return f"link {settings['link']} (only the link of virtual hosts is shaped)"
        if settings["mtu"] and any(mtu != settings["mtu"] for mtu in self.mtus):
            return f"MTU {settings['mtu']} (it is {self.mtus} here, and real hosts are left as they are)"
        return None

    def shape_of(self, settings):
        """What a point makes of the link here, as text; None: it stays as it is."""
        return settings["link"] if self.machine else None

    def set_link(self, settings):
        """Gives the link the properties of a point, those it had before where the point says nothing, and finds out
        once what it can do then."""
        if self.machine:
            self.set_shape(shaping.parse(settings["link"]) if settings["link"] else self.shape_before)
            self.set_mtus([settings["mtu"]] * 2 if settings["mtu"] else self.mtus_before)
        state = (self.shape_of(settings), self.mtu())
        if state in self.limited or not self.run.options.limits:
            return
        self.limited.add(state)
        self.run.progress.draw("measuring what the link can do")
        cells = [cell for cell in self.run.cells if not cell.left_out]
        with_rdma = any(cell.contender["transport"] == "rdma" for cell in cells)
        lanes = link_limits.lanes_of(cell.options() for cell in cells) | {DEFAULT_LANES}
        found = [limit for ways in (self.ends, self.ends[::-1])
                 for limit in link_limits.measure(*ways, with_rdma, lanes, self.run.warn)]
        self.boot["limits"] += [{**limit, "link": self.shape_of(settings), "mtu": self.mtu()} for limit in found]
        self.run.store.save()


def ends_in_words(names):
    return [f"{name['host']} ({name['address']})" for name in names]


def mtu_of(end, interface):
    said = end.host.run(f"cat /sys/class/net/{interface}/mtu", check=False).stdout.strip() if interface else ""
    return int(said) if said.isdecimal() else None


class Run:
    """One comparison under way."""

    def __init__(self, options, scenarios, store):
        self.options, self.scenarios, self.store = options, scenarios, store
        self.progress, self.order = Progress(), 0
        self.cells = [Cell(scenario, point, contender) for scenario in scenarios for point in scenario["points"]
                      for contender in scenario["contenders"]]
        if options.only:
            self.cells = [cell for cell in self.cells if fnmatch.fnmatch(cell.key, options.only)]
            if not self.cells:
                raise Failure(f"--only {options.only}: no POINT/CONTENDER of these scenarios fits")
        for cell in self.cells:
            for label, move in store.moves(cell).items():
                cell.take(label, move)
                self.order = max(self.order, move["order"])

    def warn(self, text):
        if self.store.warn(text):
            self.progress.say(f"warning: {text}")

    def leave_out(self, cells, why):
        for cell in cells:
            cell.left_out = why
        if cells:
            keys = ", ".join(f"{cell.scenario}/{cell.key}" for cell in cells)
            self.warn(f"left out: {keys}: {why}")

    # --- boots

    def run(self):
        """Until every move is made. A Failure when the hosts do not let that happen."""
        fruitless = 0
        while self.missing() and fruitless < ENOUGH_BOOTS:
            with contextlib.ExitStack() as stack:
                # A boot that fails is not one that dies: it would fail again.
                ends, machine = stack.enter_context(pair.open_pair(self.options))
                session = self.session(ends, machine)
                try:
                    session.prepare(stack)
                    self.in_session(session)
                except (Failure, Trouble) as trouble:
                    if session.answer():
                        raise
                    self.lose(session, str(trouble).splitlines()[0])
            fruitless = 0 if session.good else fruitless + 1
        if fruitless >= ENOUGH_BOOTS:
            raise Failure(f"{fruitless} boots of the hosts one after the other were lost before one move that counts "
                          f"went well")

    def lose(self, session, why):
        words = f"; their kernels' last words:\n{session.machine.instance.last_words(600)}" if session.machine else ""
        self.warn(f"the hosts of boot {session.boot['id']} were lost: {why}{words}")
        cell = session.moving
        if cell:
            cell.losses += 1
            if cell.losses >= ENOUGH_LOSSES:
                self.leave_out([cell], f"the hosts were lost in its moves {cell.losses} times")

    def session(self, ends, machine):
        boots = self.store.document["boots"]
        names = [{"host": str(end), "address": end.address} for end in ends]
        if boots and [name["address"] for name in boots[0]["hosts"]] != [name["address"] for name in names]:
            raise Failure(f"the link is another one: {', '.join(ends_in_words(names))}, and before "
                          f"{', '.join(ends_in_words(boots[0]['hosts']))}: moves of both would not compare. Give the "
                          f"same --addresses, or begin anew with another --out")
        boots.append({"id": max((boot["id"] for boot in boots), default=0) + 1, "began": now(), "hosts": names,
                      "limits": []})
        self.store.save()
        return Session(self, ends, machine, boots[-1])

    def in_session(self, session):
        self.check_transports(session)
        self.accel, self.warm = {}, set()
        for scenario in self.scenarios:
            cells = [cell for cell in self.cells if cell.scenario == scenario["name"]]
            for cell in cells:
                why = session.fits(cell.point["settings"])
                if why and not cell.left_out:
                    self.leave_out([cell], why)
            if any(self.missing_of(cell) for cell in cells):
                self.warm_up(session, scenario, cells)
                self.warm.add(scenario["name"])
                self.note_ends(session)
                self.passes(session, cells)
                self.note_ends(session)
        said = session.machine.warning() if session.machine else None
        if said:
            self.warn(f"boot {session.boot['id']}: {said}")

    def check_transports(self, session):
        """Whether each works between the hosts. On one machine what does not is left out; elsewhere it is an error:
        the comparison would not be the one that was asked for."""
        for transport in dict.fromkeys(cell.contender["transport"] for cell in self.cells if not cell.left_out):
            try:
                for ways in (session.ends, session.ends[::-1]):
                    pair.check(*ways, transport)
            except Failure as failure:
                if self.options.hosts != pair.LOCAL:
                    raise
                reason = " ".join(str(failure).split())
                self.leave_out([cell for cell in self.cells if cell.contender["transport"] == transport], reason)
        if all(cell.left_out for cell in self.cells):
            raise Failure("nothing is left to compare: every contender was left out, see the warnings above")

    def note_ends(self, session):
        """Facts of both hosts, from the reports also those of their devices, added to what is known of them."""
        moves = [{**move, "report": report} for cell in self.cells for move in self.store.moves(cell).values()
                 if move["boot"] == session.boot["id"] and not move["failed"] for report in trial.reports_of(move)]
        known = {end["host"]: end for end in self.store.document["ends"]}
        self.store.document["ends"] = [{**known.get(str(end), {}), **pair.facts_of(end, moves)} for end in session.ends]
        self.store.save()

    # --- the order of moves

    def wants(self, cell, repeat):
        """Whether this repeat is still to be made. The contenders of a point grow together: runs of one alone, later
        than its rivals' and in other directions, would not compare with those."""
        if not cell.may(repeat, self.options):
            return False
        rivals = [other for other in self.cells if other.scenario == cell.scenario and other.point is cell.point]
        return repeat <= self.options.repeats or any(
            repeat in other.tried or other.is_open() and not other.known(self.options.confidence) for other in rivals)

    def missing_of(self, cell):
        """How many repeats a cell lacks, as far as is known now."""
        return sum(self.wants(cell, repeat) for repeat in range(1, self.options.repeats + 1)) or \
            int(self.wants(cell, self.next_repeat(cell)))

    def next_repeat(self, cell):
        return max(cell.tried, default=0) + 1

    def missing(self):
        return sum(map(self.missing_of, self.cells))

    def left(self):
        """How long what is missing will take, with the warm-ups that it begins with."""
        lacking = {cell: count for cell in self.cells if (count := self.missing_of(cell))}
        cold = {(cell.scenario, cell.contender["name"]) for cell in lacking if cell.scenario not in self.warm}
        return self.progress.left(sum(lacking.values()) + WARM_UPS * len(cold))

    def warm_up(self, session, scenario, cells):
        """A move of the largest guest in either direction for each contender: they prove page by page that what arrives
        is what was sent, and teach each host what moves cost besides pages."""
        open_cells = [cell for cell in cells if not cell.left_out]
        for contender in scenario["contenders"]:
            mine = [cell for cell in open_cells if cell.contender is contender]
            if mine:
                cell = max(mine, key=lambda cell: cell.point["settings"]["guests"] *
                           scenarios.bytes_of(cell.point["settings"]["memory"]))
                session.set_link(cell.point["settings"])
                for number in range(WARM_UPS):
                    self.one(session, cell, cell.warm_ups + 1, True, number % 2 == 0)

    def passes(self, session, cells):
        """Repeat after repeat over all points, the contenders taking turns: who is first alternates, and so does the
        direction."""
        for repeat in range(1, self.options.max_repeats + 1):
            forwards = repeat % 2 == 1
            turned = (repeat - 1 + (repeat - 1) // 2) % 2 == 1
            wanting = [cell for cell in cells if self.wants(cell, repeat)]
            points = list({cell.point["id"]: cell.point for cell in wanting}.values())
            for point in points:
                session.set_link(point["settings"])
                mine = [cell for cell in wanting if cell.point is point]
                for cell in mine[::-1] if turned else mine:
                    self.one(session, cell, repeat, False, forwards)
        self.say_unknown(cells)

    def say_unknown(self, cells):
        for cell in filter(Cell.hopeless, cells):
            self.warn(f"{cell.scenario}/{cell.key}: every one of {len(cell.tried)} moves failed")
        vague = [cell for cell in cells if cell.tried and not cell.hopeless() and
                 not cell.known(self.options.confidence)]
        if vague:
            self.warn(f"{vague[0].scenario}: the 95 % interval of the median total time is still wider than "
                      f"±{self.options.confidence:.0%} after {len(vague[0].tried)} repeats: "
                      f"{', '.join(cell.key for cell in vague)}")

    # --- one move

    def accel_of(self, session, wish):
        if wish not in self.accel:
            self.accel[wish], why = pair.accel_of(session.ends, wish)
            if why:
                self.warn(why)
            if not wish:
                self.same_accel(self.accel[wish])
        return self.accel[wish]

    def same_accel(self, accel):
        """Guests are of one kind through all boots."""
        before = self.store.document.setdefault("accel", accel)
        if before != accel:
            raise Failure(f"guests were {before} before and would be {accel} now, by what /dev/kvm of both hosts "
                          f"allows: moves of both would not compare. Begin anew with another --out")

    def one(self, session, cell, repeat, warm_up, forwards):
        """Makes one move and stores what came of it, also of one that failed."""
        source, destination = session.ends if forwards else session.ends[::-1]
        settings, label = cell.point["settings"], f"W{repeat}" if warm_up else f"{repeat:02}"
        what = f"{cell.scenario} {cell.point['label']} {cell.contender['name']} {label}"
        self.progress.draw(f"{what}  {source} -> {destination} …  {self.left()}")
        self.order += 1
        began, made, session.moving = time.monotonic(), now(), cell
        options = cell.options() + (["--verify"] if warm_up and "--verify" not in cell.options() else [])
        plan = trial.Plan(settings, cell.contender["transport"], options, self.accel_of(session, settings["accel"]),
                          self.options.predict, self.options.move_seconds)
        result = trial.run(source, destination, plan, not warm_up, session.machine)
        if result["failed"] and not session.answer():
            raise Failure(f"{what}: {result['failed']}")
        move = {"schema": 1, "scenario": cell.scenario, "point": cell.point["id"], "contender": cell.contender["name"],
                "transport": cell.contender["transport"], "repeat": repeat, "warm_up": warm_up,
                "boot": session.boot["id"], "order": self.order, "began": made, "source": str(source),
                "destination": str(destination),
                "link": {"shape": session.shape_of(settings), "mtu": session.mtu()}, **result}
        session.moving = None
        self.store.add(cell, label, move)
        cell.take(label, move)
        self.note(session, cell, move, what, began)

    def note(self, session, cell, move, what, began):
        words = {name: words for side in move["counters"].values() for group in side.values() for name in group
                 if (words := nic_counters.meaning(name))}
        self.store.document["counter_words"].update(words)
        if move["failed"]:
            self.store.document["errors"].append({"scenario": cell.scenario, "point": cell.point["id"],
                                                  "contender": cell.contender["name"], "text": move["failed"]})
        self.store.save()
        if not move["warm_up"]:
            session.good += not move["failed"]
            self.progress.step(began)
        self.progress.say(f"{what}  {move['source']} -> {move['destination']}  {summary(move)}  "
                          f"{self.left()}")
        told = nic_counters.told(move["counters"])
        if told:
            self.progress.say(f"    {told}")


def summary(move):
    if move["failed"]:
        return f"FAILED: {move['failed'].splitlines()[0][:200]}"
    reports = trial.reports_of(move)
    return (f"{trial.total_seconds(move):.2f} s, downtime {max(report['downtime_ms'] for report in reports):.1f} ms, "
            f"{max(len(report['rounds']) for report in reports)} rounds")
