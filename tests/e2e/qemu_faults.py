#!/usr/bin/python3
"""What fails while a QEMU guest moves: its QEMUs, wander at either end, the listener and the link, each ended, stopped or cut
at random moments and at exact messages of the hand-over. Whatever fails: never two running, one copy is left or can be
resolved, its disk is whole and locked by its QEMU alone, and the next attempt succeeds."""

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
STOPPED_FOR = 45    # s, at most: longer than any end's patience with a QEMU that answers nothing
HEALS_AFTER = 9     # s: later than either end's patience with the other
FULL_SPEED = 0.6    # of what the guest did before, by its own count; a throttled one is far below
NO_COPY = "gone with its QEMU"


class Strike(proxy.Link):
    """A link that does `act` just before or after it passes a message on."""

    def __init__(self, port, message, after, act):
        super().__init__(port)
        self.message, self.after, self.act = message, after, act

    def forward(self, near, far, message, data):
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
        self.receivers = {}
        self.boot()

    def boot(self):
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
        self.here, self.there = self.there, self.here

    def close(self):
        self.watch.close()


class Move:
    """One disturbed move. `when`: seconds from its beginning, or (message, after it?)."""

    def __init__(self, home, victim, when):
        self.home, self.world, self.watch, self.victim = home, home.world, home.watch, victim
        self.here, self.there = home.here, home.there
        self.struck_at, self.struck, self.healed, self.resolved, self.forced = None, [], False, [], False
        self.source_qemu = self.world.qemu_pids(self.here)[0]
        self.receiver = home.receiver(self.there)
        message, after = when if isinstance(when, tuple) else (None, False)
        self.link = Strike(self.receiver.port, message, after, self.strike)
        self.watch.begin()
        self.migration = home.host(self.here).start_migrate(home.guest_here(), f"tcp://127.0.0.1:{self.link.port}",
                                                            *OPTIONS)
        if not message:
            time.sleep(when)
            self.strike_soon()

    def strike_soon(self):
        """What is to fail may not be there yet."""
        while not self.strike() and self.migration.running():
            time.sleep(0.005)

    def victims(self):
        here, there = self.home.host(self.here), self.home.host(self.there)
        if self.victim == "source QEMU":
            return [self.source_qemu]
        if self.victim in ("destination QEMU", "destination QEMU stopped"):
            return self.world.qemu_pids(self.there)
        if self.victim == "destination's session":
            return commands(there, "receive-session")
        if self.victim == "source's wander":
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
            os.kill(pid, signal.SIGSTOP if self.victim.endswith("stopped") else signal.SIGKILL)
            self.struck.append(pid)
        if self.struck:
            self.struck_at = time.time()
        return bool(self.struck)

    def heal(self):
        """Takes back what can be: a QEMU goes on, a link speaks again."""
        if self.healed:
            return
        self.healed = True
        self.link.heal()
        if self.victim.endswith("stopped"):
            for pid in filter(alive, self.struck):
                os.kill(pid, signal.SIGCONT)

    def state(self, name):
        """"running", another word of QEMU's, or None: there is no QEMU."""
        return self.watch.state(name) if self.world.qemu_pids(name) else None

    def runner(self):
        self.watch.expect_one_at_a_time()
        running = [name for name in (self.here, self.there) if self.state(name) == "running"]
        return running[0] if len(running) == 1 else None

    def tokens(self, name, role):
        return sorted(path.stem for path in self.home.host(name).state.glob(f"wander/sessions/*.{role}"))

    def said(self):
        return f"exit code {self.migration.popen.poll()}, it said {self.migration.output()[-700:]!r}; the receiver: " \
               f"{self.receiver.output()[-500:]!r}; resolved: {self.resolved}; {self.here} is " \
               f"{self.state(self.here)}, {self.there} is {self.state(self.there)}"


def resolve(move, name, action, *force):
    """As an operator would, by the session of the newest record there. Whether it was done."""
    role = "source" if name == move.here else "destination"
    for token in move.tokens(name, role):
        done = move.home.host(name).run("resolve", token, action, *force, seconds=70)
        move.resolved.append(f"{name} {action} {' '.join(force)}: {done.returncode} {done.stdout.strip()} "
                             f"{done.stderr.strip()}")
        if done.returncode == 0:
            return True
    return False


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

    try:
        wait_until(seen, 15, "one of them to run")
    except Failure:
        decide(move)
        wait_until(seen, 25, f"one to run after a decision; {move.said()}")
    return move.runner()


def other_is_gone(move, owner):
    """The copy that does not run goes by itself, or when an operator says so."""
    other = move.there if owner == move.here else move.here
    try:
        wait_until(lambda: not move.world.qemu_pids(other), 15, f"the copy at {other} to go")
        return
    except Failure:
        pass
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
    expect(not move.resolved, f"expected the guest to go on by itself; {move.said()}")
    resumed = move.watch.running_since(move.here)
    expect(resumed < move.struck_at + RUNS_AGAIN * SLOW,
           f"expected the guest to run within {RUNS_AGAIN} s of the death of wander; it took {resumed - move.struck_at:.1f} s")


def committing(move):
    return any(message[1] == "COMMIT" for message in move.link.seen)


def nothing_left(move, owner):
    """No helper of an ended session, and one QEMU with the lock."""
    def helpers():
        return [(name, word, pid) for name in (move.here, move.there) for word in ("guardian", "attach", "receive-session")
                for pid in commands(move.home.host(name), word)
                if not (name == owner and word == "receive-session" and pid == move.home.host(name).owner(GUEST))]

    wait_until(lambda: not helpers(), 20, f"no process of the ended session to be left, but {helpers()}; {move.said()}")
    expect(sum(len(move.world.qemu_pids(name)) for name in (move.here, move.there)) == bool(owner),
           f"expected one QEMU; {move.said()}")
    pids = move.world.qemu_pids(owner) if owner else []
    disk = move.world.machine.disk
    wait_until(lambda: write_lockers(disk) == pids, 10, f"the disk to be locked by {pids}, and not {write_lockers(disk)}")


def outcome_of(move, code, owner):
    """Its name, if it is allowed."""
    if not owner:
        expect(move.victim == "source QEMU", f"expected a guest to be left; {move.said()}")
        expect(code == EXIT_STUCK, f"expected exit code 4 for a guest that is lost; {move.said()}")
        expect("QEMU" in move.migration.output(), f"expected to be told that the guest's QEMU ended; {move.said()}")
        return NO_COPY
    expect(code != EXIT_STUCK, f"expected no exit code 4 while the guest is there; {move.said()}")
    if code == EXIT_MIGRATED:
        expect(owner == move.there, f"exit code 0 promises a guest that runs at the destination; {move.said()}")
    if code == EXIT_FAILED:
        expect(owner == move.here and not move.resolved, f"exit code 1 promises a guest that runs here; {move.said()}")
    expect(code in (EXIT_MIGRATED, EXIT_FAILED, EXIT_IN_DOUBT), f"expected exit code 0, 1 or 3; {move.said()}")
    if owner == move.here and not move.forced:
        expect(not move.watch.ever_ran(move.there), f"the guest goes on here, and it has run at the destination; {move.said()}")
    if move.resolved:
        return outcomes.RESOLVED
    return outcomes.COMPLETED if owner == move.there else outcomes.ON_SOURCE


def settle(move):
    try:
        code = move.migration.wait(100)
        if move.victim == "link silent" and code != EXIT_IN_DOUBT:
            move.heal()
        owner = one_runs(move)
        move.heal()
        if owner:
            other_is_gone(move, owner)
        outcome = outcome_of(move, code, owner)
        if move.victim == "source's wander" and owner == move.here and not committing(move):
            expect_prompt(move)
        if owner:
            move.home.pinger.wait_answer(time.time_ns())
            checked = move.world.console(owner).check()
            expect(checked["disk_blocks"], f"expected blocks of the disk to be checked; got {checked}")
        nothing_left(move, owner)
        if owner == move.here:
            untouched(move)
        move.watch.expect_one_at_a_time()
        return outcome, owner
    finally:
        move.heal()
        move.link.close()


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


VICTIMS = ("destination QEMU", "destination's session", "listener", "source's wander", "link cut", "link silent",
           "source QEMU", "destination QEMU stopped")


class Stay:
    """Attempts one after another, with one guest for as long as nothing is wrong with it."""

    def __init__(self):
        self.home, self.table = None, outcomes.Table()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        home, self.home = self.home, None
        if home:
            home.close()
            home.world.close()

    def at_home(self):
        if not self.home:
            world = QemuWorld("raw", memory_mib=192, load=LOAD)
            try:
                self.home = Home(world)
            except BaseException:
                world.show_logs()
                world.close()
                raise
        return self.home

    def attempt(self, victim, when):
        label = f"{victim} {'after %.0f ms' % (when * 1e3) if not isinstance(when, tuple) else when_text(*when)}"
        began = time.monotonic()
        try:
            outcome = self.attempted(victim, when)
        except Failure as failure:
            outcome = "FAILED"
            self.table.failures.append(f"{label}: {failure}")
            if self.home:
                self.home.world.show_logs()
            self.leave()
        self.table.counts[victim][outcome] += 1
        print(f"  {label}: {outcome} ({time.monotonic() - began:.1f} s)"
              f"{': ' + self.table.failures[-1] if outcome == 'FAILED' else ''}", flush=True)

    def attempted(self, victim, when):
        home = self.at_home()
        outcome, owner = settle(Move(home, victim, when))
        if not owner:
            home.world.sides[home.there].clear()
            home.pinger.process.popen.kill()
            home.boot()
            return outcome
        if owner == home.there:
            home.turn()
        again(home)
        return outcome

    def rest(self):
        """The image of the last guest, block by block."""
        if not self.home:
            return
        home = self.home
        home.watch.command(home.here, "quit")
        wait_until(lambda: not home.world.qemu_pids(home.here), 20, "QEMU to quit")
        check_image(home.world.machine.disk, "raw", DISK)


def when_text(message, after):
    return f"{'after' if after else 'before'} {message[1]}"


def hand_over_moments(seen):
    found = [message for message in seen if message[1] in HAND_OVER and message[2] == 1]
    expect({message[1] for message in found} == set(HAND_OVER), f"expected all of {HAND_OVER} in a move; saw {seen}")
    return [(message, after) for message in found for after in (False, True)]


def undisturbed(home):
    """How long a move takes, and its messages."""
    receiver = home.receiver(home.there)
    link = proxy.Link(receiver.port)
    try:
        report = home.host(home.here).migrate(home.guest_here(), f"tcp://127.0.0.1:{link.port}", *OPTIONS)
    finally:
        link.close()
    home.turn()
    return report["total_ms"] / 1e3, link.seen


def disturbed(context):
    with Stay() as stay:
        duration, seen = undisturbed(stay.at_home())
        moments = hand_over_moments(seen)
        print(f"an undisturbed move takes {duration * 1e3:.0f} ms")

        def random_moment():
            if context.random.random() < 0.5:
                return context.random.choice(moments)
            return context.random.uniform(0, duration * 1.1)

        for victim in VICTIMS:
            for _ in range(20 if context.full else 1):
                stay.attempt(victim, random_moment())
        if not stay.table.failures:
            stay.rest()
        stay.table.finish()


run_cases(__doc__, {"disturbed moves": disturbed})
