#!/usr/bin/python3
"""What fails while a QEMU guest moves: its QEMUs, wander at either end, the listener and the link, each ended, stopped or cut
at random moments and at exact messages of the hand-over. Whatever fails: never two running, one copy is left or can be
resolved, its disk is whole and locked by its QEMU alone, and the next attempt succeeds."""

import contextlib
import functools
import os
import signal
import time

import outcomes
import proxy
from cases import run_cases
from hosts import EXIT_FAILED, EXIT_IN_DOUBT, EXIT_MIGRATED, EXIT_STUCK, SLOW, Failure, alive, expect, wait_until
from qemu_watch import Watch
from qemu_world import Pinger, QemuWorld, check_image, commands, write_lockers

GUEST, DISK = "linux", 8
LOAD = {"ram": 64, "ram_rate": 8000, "disk": DISK, "disk_rate": 50}
OPTIONS = ("--max-bandwidth", "100M")  # a move takes a second or two, so that random moments meet all of it
HAND_OVER = ("PREPARE", "STATE", "LOAD", "PREPARED", "COMMIT", "RUNNING")
RUNS_AGAIN = 5      # s, after the source's wander is killed before it was COMMITTING
FULL_SPEED = 0.6    # of what the guest did before, by its own count; a throttled one is far below
HELPERS = ("guardian", "attach", "receive-session")
STOPPED, RELENTING = "destination QEMU stopped", "destination QEMU stopped until ABORTED"
RELENT_SECONDS = 0.3
THROTTLER = "source's wander, throttling"  # struck as soon as it takes time from the guest
SOURCES = ("source's wander", THROTTLER)
THROTTLING = ("--max-bandwidth", "60M", "--downtime-limit", "20ms", "--throttle", "auto")
NO_COPY = "gone with its QEMU"


class Strike(proxy.Link):
    """A link that does `act` just before or after it passes a message on, and `relent` before the source hears ABORTED."""

    def __init__(self, port, message, after, act, relent):
        super().__init__(port)
        self.message, self.after, self.act, self.relent = message, after, act, relent

    def forward(self, near, far, message, data):
        if message[1] == "ABORTED":
            self.relent()
        if message != self.message:
            return super().forward(near, far, message, data)
        self.reached.set()
        if not self.after:
            self.act()
        going_on = super().forward(near, far, message, data)
        if self.after:
            self.act()
        return going_on

    def cut(self):
        self.close()


class Home:
    """A guest that is moved to and fro, and who watches it."""

    def __init__(self, world):
        self.world, self.watch, self.here, self.there = world, Watch(world), "a", "b"
        self.receivers, self.pinger = {}, None
        self.boot()

    def boot(self):
        if self.pinger:
            self.pinger.process.popen.kill()
        self.world.boot(self.here)
        console = self.world.console(self.here)
        self.watch.wait(self.here, "running")
        self.settings = self.watch.settings(self.here)
        self.speed = self.measured(console, 1)
        self.pinger = Pinger(self.world)

    def measured(self, console, fresh):
        """Pages per second of the guest's own uptime, from one report to the next that are yet to come."""
        seen = len(console.reports())
        wait_until(lambda: len(console.reports()) > seen + fresh, 20, "reports of the guest")
        first, last = console.reports()[-2:]
        return (last["ram_pages"] - first["ram_pages"]) / (last["uptime"] - first["uptime"])

    def host(self, name):
        return self.world.host(name)

    def receiver(self, name):
        """The one that listens there, or a new one."""
        receiver = self.receivers.get(name)
        if not receiver or not receiver.running():
            receiver = self.receivers[name] = self.world.receive(name)
        return receiver

    def guest_here(self):
        """By its name where a process came with it, else by its monitor."""
        return GUEST if self.host(self.here).owner(GUEST) else self.world.guest(self.here)

    def turn(self):
        """It has moved. The process that moved it holds its name for a moment longer."""
        wait_until(lambda: not self.host(self.here).owner(GUEST), 20,
                   f"the process that moved the guest from {self.here} to end")
        self.here, self.there = self.there, self.here

    def close(self):
        self.watch.close()
        self.world.close()


class Move:
    """One disturbed move. `when`: seconds from its beginning, or (message, after it?)."""

    def __init__(self, home, victim, when):
        self.home, self.world, self.watch, self.victim = home, home.world, home.watch, victim
        self.here, self.there = home.here, home.there
        self.struck_at, self.struck, self.healed, self.resolved, self.forced, self.story = None, [], False, [], False, []
        self.source_qemu = self.world.qemu_pids(self.here)[0]
        self.receiver = home.receiver(self.there)
        message, after = when if isinstance(when, tuple) and victim != THROTTLER else (None, False)
        self.link = Strike(self.receiver.port, message, after, self.strike, self.relent)
        self.watch.begin()
        self.migration = home.host(self.here).start_migrate(home.guest_here(), f"tcp://127.0.0.1:{self.link.port}",
                                                            *(THROTTLING if victim == THROTTLER else OPTIONS))
        if victim == THROTTLER:
            wait_until(self.throttles, 60, "the guest to be throttled")
            self.strike()
        elif not message:
            time.sleep(when)
            self.strike_soon()

    def throttles(self):
        expect(self.migration.running(), f"expected a move that throttles; {self.said()}")
        status = self.home.host(self.here).status(GUEST)
        return status and status.get("migration", {}).get("throttle", 0)

    def strike_soon(self):
        """What is to fail may not be there yet."""
        while not self.strike() and self.migration.running():
            time.sleep(0.005)

    def victims(self):
        here, there = self.home.host(self.here), self.home.host(self.there)
        if self.victim == "source QEMU":
            return [self.source_qemu]
        if self.victim in ("destination QEMU", STOPPED, RELENTING):
            return self.world.qemu_pids(self.there)
        if self.victim == "destination's session":
            return commands(there, "receive-session")
        if self.victim in SOURCES:
            return [pid for pid in [here.owner(GUEST)] if pid]
        return [self.receiver.pid]

    def strike(self):
        if self.struck_at:
            return True
        if self.victim in ("link cut", "link silent"):
            self.struck_at = time.time()
            if self.victim == "link cut":
                self.link.cut()
            else:
                self.link.silent.set()
            return True
        for pid in self.victims():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGSTOP if self.victim in (STOPPED, RELENTING) else signal.SIGKILL)
                self.struck.append(pid)
        if self.struck:
            self.struck_at = time.time()
        return bool(self.struck)

    def relent(self):
        """A QEMU that goes on before the source does: what it was told meanwhile must not make it run any more."""
        if self.victim == RELENTING:
            self.heal()
            time.sleep(RELENT_SECONDS)

    def heal(self):
        """Takes back what can be: a QEMU goes on, a link speaks again."""
        if self.healed:
            return
        self.healed = True
        self.link.heal()
        if self.victim in (STOPPED, RELENTING):
            for pid in filter(alive, self.struck):
                os.kill(pid, signal.SIGCONT)

    def note(self, text):
        self.story.append(f"{time.time() - self.watch.begun:.1f} s {text}")

    def state(self, name):
        """"running", another word of QEMU's, or None: there is no QEMU."""
        return self.watch.state(name) if self.world.qemu_pids(name) else None

    def runner(self):
        self.watch.expect_one_at_a_time()
        running = [name for name in (self.here, self.there) if self.state(name) == "running"]
        return running[0] if len(running) == 1 else None

    def tokens(self, name, role):
        """Of the sessions of this move; an earlier one may have left its record."""
        return sorted(path.stem for path in self.home.host(name).state.glob(f"wander/sessions/*.{role}")
                      if path.stat().st_mtime >= self.watch.begun)

    def said(self):
        return f"exit code {self.migration.popen.poll()}, it said {self.migration.output()[-700:]!r}; the receiver: " \
               f"{self.receiver.output()[-500:]!r}; resolved: {self.resolved}; {self.story}; {self.here} is " \
               f"{self.state(self.here)}, {self.there} is {self.state(self.there)}"


def resolve(move, name, action, *force):
    """As an operator would, by the session. Whether it was done."""
    role = "source" if name == move.here else "destination"
    for token in move.tokens(name, role):
        done = move.home.host(name).run("resolve", token, action, *force, seconds=70)
        move.resolved.append(f"{name} {action} {' '.join(force)}: {done.returncode} {done.stdout.strip()} "
                             f"{done.stderr.strip()}")
        if done.returncode == 0:
            return True
    return False


def made_to_run(move):
    return any("--resume" in said for said in move.resolved)


def undecided(move, name):
    """Whether a copy that does not run stays until an operator decides: its wander says so, or there is none."""
    if not move.world.qemu_pids(name) or move.state(name) == "running":
        return False
    host = move.home.host(name)
    if not host.owner(GUEST):
        return not any(commands(host, word) for word in HELPERS)
    status = host.status(GUEST)
    return bool(status) and status["state"] == "in-doubt"


def decide(move):
    """Nobody runs: makes one run. With force only as far as what is seen at both ends makes it safe."""
    if resolve(move, move.here, "--resume") or resolve(move, move.there, "--resume"):
        return
    move.forced = True
    if not move.state(move.there):
        resolve(move, move.here, "--resume", "--force")
    elif not move.state(move.here):
        resolve(move, move.there, "--resume", "--force")
    else:
        resolve(move, move.there, "--destroy", "--force")
        wait_until(lambda: not move.world.qemu_pids(move.there), 20, f"the copy at {move.there} to be gone; {move.said()}")
        resolve(move, move.here, "--resume", "--force")


def one_runs(move):
    """Who runs in the end; None when the guest is gone with its QEMU."""
    def seen():
        return move.runner() or not any(map(move.state, (move.here, move.there)))

    def over():
        left = [name for name in (move.here, move.there) if move.world.qemu_pids(name)]
        return seen() or left and all(undecided(move, name) for name in left)

    with contextlib.suppress(Failure):
        wait_until(over, 15, "one of them to run, or both to wait for a decision")
    if not seen():
        decide(move)
        wait_until(seen, 25, f"one to run after a decision; {move.said()}")
    return move.runner()


def other_is_gone(move, owner):
    """The copy that does not run goes by itself, or when an operator says so."""
    other = move.there if owner == move.here else move.here
    with contextlib.suppress(Failure):
        wait_until(lambda: not move.world.qemu_pids(other) or undecided(move, other), 15, f"the copy at {other} to go")
    if not move.world.qemu_pids(other):
        return
    if not resolve(move, other, "--destroy"):
        move.forced = True
        resolve(move, other, "--destroy", "--force")
    wait_until(lambda: not move.world.qemu_pids(other), 15, f"the copy at {other} to be gone; {move.said()}")


def untouched(move):
    """A guest that stayed: at full speed, nobody traces it, its QEMU set as before."""
    world, home = move.world, move.home
    status = [line for task in os.listdir(f"/proc/{move.source_qemu}/task")
              for line in open(f"/proc/{move.source_qemu}/task/{task}/status", encoding="ascii", errors="replace")
              if line.startswith("TracerPid")]
    expect({line.split()[1] for line in status} == {"0"}, f"expected no thread of QEMU to be traced; got {status}")
    settings = wait_until(lambda: home.watch.settings(move.here), 10, "QEMU's migration settings")
    expect(settings == home.settings, f"expected QEMU's migration settings as they were; changed: "
                                      f"{sorted(set(settings) ^ set(home.settings))}")
    wait_until(lambda: home.measured(world.console(move.here), 0) >= FULL_SPEED * home.speed, 20,
               f"the guest to write {FULL_SPEED} × {home.speed:.0f} pages/s as before")


def expect_prompt(move):
    """The guest of a source's wander that died before it was COMMITTING runs within 5 s, and answers."""
    expect(not made_to_run(move), f"expected the guest to go on by itself; {move.said()}")
    resumed = move.watch.running_since(move.here)
    expect(resumed < move.struck_at + RUNS_AGAIN * SLOW,
           f"expected the guest to run within {RUNS_AGAIN} s of the death of wander; it took {resumed - move.struck_at:.1f} s")


def committing(move):
    return any(message[1] == "COMMIT" for message in move.link.seen)


def waits_for_next(move):
    """Whether the copy there is prepared and has lost a source that kept the guest: the next attempt gives it up."""
    return move.victim in SOURCES and not committing(move) and undecided(move, move.there)


def nothing_left(move, owner, waits):
    """No helper of an ended session, and one QEMU with the lock. `waits`: but for a prepared copy."""
    places = [move.here] if waits else [move.here, move.there]

    def helpers():
        return [(name, word, pid) for name in places for word in HELPERS
                for pid in commands(move.home.host(name), word)
                if not (name == owner and word == "receive-session" and pid == move.home.host(name).owner(GUEST))]

    wait_until(lambda: not helpers(), 20, f"no process of the ended session to be left, but {helpers()}; {move.said()}")
    expect(sum(len(move.world.qemu_pids(name)) for name in places) == bool(owner),
           f"expected one QEMU; {move.said()}")
    pids = move.world.qemu_pids(owner) if owner else []
    disk = move.world.machine.disk
    wait_until(lambda: write_lockers(disk) == pids, 10, f"the disk to be locked by {pids}, and not {write_lockers(disk)}")


def outcome_of(move, code, owner):
    """Its name, if it is allowed."""
    if not owner and move.victim.startswith("destination QEMU"):
        expect(committing(move), f"expected a guest to be left, which nobody was told to start there; {move.said()}")
        expect(code in (EXIT_MIGRATED, EXIT_IN_DOUBT), f"expected exit code 0 or 3 for a guest that was started; {move.said()}")
        return NO_COPY
    if not owner:
        expect(move.victim == "source QEMU", f"expected a guest to be left; {move.said()}")
        expect(code == EXIT_STUCK, f"expected exit code 4 for a guest that is lost; {move.said()}")
        expect("has ended by itself" in move.migration.output(), f"expected to be told that the guest ended; {move.said()}")
        return NO_COPY
    expect(code != EXIT_STUCK, f"expected no exit code 4 while the guest is there; {move.said()}")
    if code == EXIT_MIGRATED:
        expect(owner == move.there, f"exit code 0 promises a guest that runs at the destination; {move.said()}")
    if code == EXIT_FAILED:
        expect(owner == move.here and not made_to_run(move), f"exit code 1 promises a guest that runs here; {move.said()}")
    expect(code in (EXIT_MIGRATED, EXIT_FAILED, EXIT_IN_DOUBT), f"expected exit code 0, 1 or 3; {move.said()}")
    if owner == move.here and not move.forced:
        expect(not move.watch.ever_ran(move.there), f"the guest goes on here, and it has run at the destination; {move.said()}")
    if move.resolved:
        return outcomes.RESOLVED
    return outcomes.COMPLETED if owner == move.there else outcomes.ON_SOURCE


def settle(move):
    try:
        code = move.migration.wait(100)
        move.note(f"exit code {code}")
        if code == EXIT_MIGRATED or move.victim == "link silent" and code != EXIT_IN_DOUBT:
            move.heal()
        owner = one_runs(move)
        move.note(f"{owner} runs")
        move.heal()
        waits = owner == move.here and waits_for_next(move)
        if owner and not waits:
            other_is_gone(move, owner)
        move.note("the other is gone")
        outcome = outcome_of(move, code, owner)
        if move.victim in SOURCES and owner == move.here and not committing(move):
            expect_prompt(move)
        if owner:
            move.home.pinger.wait_answer(time.time_ns())
            checked = move.world.console(owner).check()
            expect(checked["disk_blocks"], f"expected blocks of the disk to be checked; got {checked}")
        move.note("checked")
        nothing_left(move, owner, waits)
        move.note("nothing left")
        if owner == move.here:
            untouched(move)
        move.watch.expect_one_at_a_time()
        move.note("done")
        if os.environ.get("STORY"):
            print(move.story, move.resolved)
        return outcome, owner
    finally:
        move.heal()


def again(home):
    """The next attempt succeeds."""
    receiver = home.receiver(home.there)
    home.host(home.here).migrate(home.guest_here(), receiver.uri, seconds=60)
    home.watch.wait(home.there, "running")
    wait_until(lambda: not home.world.qemu_pids(home.here), 20, f"the QEMU at {home.here} to be gone")
    home.pinger.wait_answer(time.time_ns())
    home.world.console(home.there).next("report")
    home.world.console(home.there).good()
    pids = home.world.qemu_pids(home.there)
    expect(write_lockers(home.world.machine.disk) == pids, f"expected the disk to be locked by {pids} after a move; it is "
                                                           f"by {write_lockers(home.world.machine.disk)}")
    home.turn()


VICTIMS = (("destination QEMU",), ("destination's session",), ("listener",), SOURCES, ("link cut", "link silent"),
           ("source QEMU",), (STOPPED, RELENTING))
COUNT, SLOW_COUNT, SLOW_VICTIMS = 20, 8, (STOPPED, RELENTING, "link silent")  # with --full


class Stay:
    """Attempts one after another, with one guest for as long as nothing is wrong with it."""

    def __init__(self):
        self.home, self.duration, self.moments = None, 0, ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        home, self.home = self.home, None
        if home:
            home.close()

    def at_home(self):
        if not self.home:
            world = QemuWorld("raw", memory_mib=192, load=LOAD)
            try:
                self.home = Home(world)
                if not self.moments:
                    self.learn()
            except BaseException:
                world.show_logs()
                world.close()
                self.home = None
                raise
        return self.home

    def learn(self):
        """How long an undisturbed move takes, and at which messages it hands over."""
        self.duration, seen = undisturbed(self.home)
        found = [message for message in seen if message[1] in HAND_OVER and message[2] == 1]
        expect({message[1] for message in found} == set(HAND_OVER), f"expected all of {HAND_OVER} in a move; saw {seen}")
        self.moments = [(message, after) for message in found for after in (False, True)]

    def moment(self, random):
        """One of all, each way of choosing as likely as the other."""
        self.at_home()
        return random.choice(self.moments) if random.random() < 0.5 else random.uniform(0, self.duration * 1.1)

    def attempt(self, table, victim, when):
        label, began = f"{victim} {when_text(when)}", time.monotonic()
        try:
            outcome = self.attempted(victim, when)
        except Failure as failure:
            outcome = "FAILED"
            table.failures.append(f"{label}: {failure}")
            if self.home:
                self.home.world.show_logs()
            self.leave()
        table.counts[victim][outcome] += 1
        print(f"  {label}: {outcome} ({time.monotonic() - began:.1f} s)", flush=True)
        if outcome == "FAILED":
            print(f"    {table.failures[-1]}", flush=True)

    def attempted(self, victim, when):
        home = self.at_home()
        move = Move(home, victim, when)
        try:
            outcome, owner = settle(move)
            if not owner:
                home.boot()
                return outcome
            if owner == home.there:
                home.turn()
            again(home)
            return outcome
        finally:
            move.link.close()  # what is left of the session may still be asked through it

    def whole_image(self, _):
        """Block by block, once the guest has ended."""
        home = self.at_home()
        home.watch.command(home.here, "quit")
        wait_until(lambda: not home.world.qemu_pids(home.here), 20, "QEMU to quit")
        disk = home.world.machine.disk
        self.leave_after(lambda: check_image(disk, "raw", DISK))

    def leave_after(self, body):
        try:
            body()
        finally:
            self.leave()


def when_text(when):
    if not isinstance(when, tuple):
        return f"after {when * 1e3:.0f} ms"
    message, after = when
    return f"just {'after' if after else 'before'} {message[1]}"


def undisturbed(home):
    receiver = home.receiver(home.there)
    link = proxy.Link(receiver.port)
    try:
        report = home.host(home.here).migrate(home.guest_here(), f"tcp://127.0.0.1:{link.port}", *OPTIONS)
    finally:
        link.close()
    home.turn()
    return report["total_ms"] / 1e3, link.seen


def strikes(stay, victims, context):
    """The first of them only, unless --full."""
    table = outcomes.Table()
    for victim in victims if context.full else victims[:1]:
        for _ in range((SLOW_COUNT if victim in SLOW_VICTIMS else COUNT) if context.full else 1):
            when = stay.moment(context.random)
            while not context.full and victim == STOPPED and slow(when):
                when = stay.moment(context.random)
            stay.attempt(table, victim, when)
    table.finish()


def slow(when):
    """Whether wander waits long for a QEMU that is stopped then: it may be the disks that keep it."""
    return isinstance(when, tuple) and when[0][1] in ("LOAD", "PREPARED", "COMMIT")


def cases(stay):
    return {victims[0]: functools.partial(strikes, stay, victims) for victims in VICTIMS} | \
           {"the image in the end": stay.whole_image}


with Stay() as everywhere:
    run_cases(__doc__, cases(everywhere))
