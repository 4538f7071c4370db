#!/usr/bin/python3
"""`wander predict` foretells a move and leaves the guest as it was: it writes on, its self-check is clean, it can be asked
again and moved at once; also when the destination or the one who asked is killed meanwhile, or it is cancelled. What is
foretold is plausible, and close to what a move over a link of known rate takes."""

import json
import os
import signal
import time

from cases import Skip, in_some_try, run_cases
from hosts import EXIT_FAILED, EXIT_MIGRATED, EXIT_USAGE, SLOW, Process, World, expect, free_port, running, wait_until

GUEST, SAMPLE = "guest", "400ms"
IDLE, HOT = "touch=40M", "touch=40M,hot=16M,rate=4000,pattern=random"
SLOW_LINK = "rate=4M"  # slower than the hot guest writes
BAND = 2  # by which factor a prediction may be off here, on a machine that does other things as well
PATH = {"bandwidth_bytes_per_s", "again_bandwidth_bytes_per_s", "bandwidth_spread", "zero_bandwidth_bytes_per_s",
        "lanes", "setup_ns", "tracked_ns", "first_ns", "round_ns", "round_trip_ns", "guest_share"}


def asked(host, uri, *options, code=EXIT_MIGRATED, sample=SAMPLE):
    """Asks for a prediction to the end; the answer and what was said."""
    path = host.world.path / host.name / f"{host.world.count()}-prediction.json"
    watching = ["--sample", sample] if sample else []
    done = host.run("predict", GUEST, uri, *watching, "--json", path, *options, seconds=60)
    said = (done.stdout + done.stderr).strip()
    expect(done.returncode == code, f"expected wander predict to exit with {code}; it exited with {done.returncode} and "
                                    f"said: {said}")
    return (json.loads(path.read_text()) if path.exists() else None), said


def path_of(answer, transport):
    found = [path for path in answer["paths"] if path["transport"] == transport]
    expect(len(found) == 1, f"expected one entry for {transport}; got {answer['paths']}")
    return found[0]


def expect_complete(answer, present_mib):
    expect(answer["schema"] == 1 and answer["made_with"]["lanes"] == 2, f"expected schema 1 and 2 lanes; got {answer}")
    present = sum(answer["guest"]["present_pages"]) * 4096 / 2**20
    expect(present_mib <= present <= present_mib + 24, f"expected about {present_mib} MiB of touched memory; got {present}")
    expect([path["transport"] for path in answer["paths"]] == ["tcp", "rdma"],
           f"expected tcp, which was asked for, and rdma; got {answer['paths']}")
    tcp = path_of(answer, "tcp")
    expect(tcp["usable"] and tcp["error"] is None, f"expected tcp to be usable; got {tcp}")
    expect(set(tcp["path"]) == PATH, f"expected the members {sorted(PATH)}; got {tcp['path']}")
    expect(tcp["path"]["bandwidth_bytes_per_s"] > 0 and tcp["path"]["setup_ns"] > 0 and tcp["path"]["round_trip_ns"] > 0
           and 0 < tcp["path"]["guest_share"] <= 1, f"expected a path that can be; got {tcp['path']}")
    foretold = tcp["prediction"]
    for what in ("total", "downtime"):
        low, middle, high = (foretold[f"{what}{part}_ms"] for part in ("_low", "", "_high"))
        expect(0 <= low <= middle <= high and high > 0, f"expected low <= expected <= high of {what}; got {foretold}")
    expect(foretold["rounds"] >= 2 and foretold["bytes"] >= 0, f"expected two rounds or more; got {foretold}")


def expect_unharmed(host):
    """The guest runs, nothing of it was torn, and it was never paused."""
    expect(running([(host, GUEST)]), "expected the guest to write on")
    account = host.check(GUEST)
    expect(account["moves"] == 0 and account["gap_ns"] == 0, f"expected a guest that was never paused; got {account}")
    expect(host.status(GUEST)["state"] == "running", f"expected a running guest; got {host.status(GUEST)}")


def expect_moves(here, there, uri, *options):
    here.migrate(GUEST, uri, "--throttle", "auto", *options)
    wait_until(lambda: GUEST not in here.guests(), 20, "the source to be gone")
    wait_until(lambda: (there.workload(GUEST) or {}).get("moves") == 1, 10, "the guest to have seen one move")
    if there.written(GUEST):  # an idle one has no stamps to check
        there.check(GUEST)


def idle(context):
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=IDLE, accel=context.accel)
        answer, said = asked(here, uri)
        expect_complete(answer, 40)
        expect("40." in said and "built-in estimate" in said, f"expected 40 MiB and the basis of the costs; it said {said}")
        expect(path_of(answer, "tcp")["prediction"]["bytes"] >= 39 << 20, f"expected all to be sent; got {answer['paths']}")
        expect_moves(here, there, uri)


def hot(context):
    """Three times in a row, then it moves at once; and what was foretold is in the answer."""
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        for _ in range(2):
            answer, said = asked(here, uri)
            expect_complete(answer, 40)
            expect("dirty rate" in said and "|#" in said.replace(" ", ""), f"expected rate and plot; it said {said}")
        expect_unharmed(here)
        asked(here, uri)
        expect_moves(here, there, uri)


def never(context):
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        answer, said = asked(here, uri, "--filter", SLOW_LINK, "--downtime-limit", "100ms", code=EXIT_FAILED)
        foretold = path_of(answer, "tcp")["prediction"]
        expect(foretold["converges"] is False and foretold["total_ms"] is None, f"expected no end to be foretold; {foretold}")
        expect((foretold["needed_bandwidth_bytes_per_s"] or 0) > 4 << 20, f"expected to hear what is needed; got {foretold}")
        expect("will not converge: needs" in said, f"expected to be told so; it said {said}")
        expect_unharmed(here)
        expect_moves(here, there, uri)


def watching_on(context):
    """Unless told for how long, it watches a guest that writes for as long as the first round would take."""
    for workload, least, most in ((IDLE, 1.9, 2.5), ("touch=40M,hot=4M,rate=400,pattern=random", 2.6, 7)):
        with World() as world:
            here, there = world.host("a"), world.host("b")
            uri = there.receive().uri
            here.lab(workload=workload, accel=context.accel)
            answer, _ = asked(here, uri, "--only", "--filter", "rate=10M", sample=None)
            watched = answer["guest"]["windows_ns"][-1] / 1e9
            expect(least <= watched <= most * SLOW, f"expected {workload} to be watched for {least} to {most} s, with 40 MiB to "
                                                    f"go at 10 MiB/s; got {watched:.2f} s")
            if "hot=" in workload:
                expect_unharmed(here)


def without_rdma(context):
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        answer, said = asked(here, uri)
        rdma = path_of(answer, "rdma")
        if rdma["usable"]:
            raise Skip("there is an RDMA device that leads to 127.0.0.1")
        expect("RDMA" in rdma["error"] and rdma["prediction"] is None, f"expected a reason; got {rdma}")
        expect("rdma: cannot be used" in said, f"expected to be told so; it said {said}")
        answer, said = asked(here, uri.replace("tcp://", "rdma://"), code=EXIT_FAILED)
        expect([path["usable"] for path in answer["paths"]] == [False, True], f"expected tcp only; got {answer['paths']}")
        expect_unharmed(here)


def wrong_questions(context):
    with World() as world:
        here = world.host("a")
        nowhere = f"tcp://127.0.0.1:{free_port()}"
        here.lab(workload=HOT, accel=context.accel)
        for arguments, code, mentions in ((("predict", GUEST, nowhere), EXIT_FAILED, "cannot be reached"),
                                          (("predict", "nobody", nowhere), EXIT_USAGE, "nobody"),
                                          (("predict", GUEST, "smoke://here:1"), EXIT_USAGE, "smoke"),
                                          (("predict", GUEST, nowhere, "--sample", "2m"), EXIT_USAGE, "--sample"),
                                          (("predict", GUEST), EXIT_USAGE, "URI")):
            done = here.run(*arguments)
            said = (done.stdout + done.stderr).strip()
            expect(done.returncode == code and mentions in said,
                   f"expected '{' '.join(arguments)}' to exit with {code} and mention '{mentions}'; it exited with "
                   f"{done.returncode} and said: {said}")
        expect_unharmed(here)


def broken_lanes(context):
    """Lanes that fail in the middle are told; the next rehearsal works."""
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        for fault in ("cut", "fail"):
            answer, said = asked(here, uri, "--filter", f"fault={fault}@9", code=EXIT_FAILED)
            tcp = path_of(answer, "tcp")
            expect(not tcp["usable"] and tcp["error"], f"expected {fault} to be told; got {tcp}")
            expect("tcp: cannot be used" in said, f"expected to be told so; it said {said}")
        expect_unharmed(here)
        expect_complete(asked(here, uri)[0], 40)
        expect_moves(here, there, uri)


def destination_killed(context):
    with World() as world:
        here, there = world.host("a"), world.host("b")
        receiver = there.receive()
        here.lab(workload=HOT, accel=context.accel)
        asking = here.start(Process, ["predict", GUEST, receiver.uri, "--sample", "200ms", "--filter", SLOW_LINK])
        time.sleep(1)  # by now it sends
        for pid in there.pids():
            os.kill(pid, signal.SIGKILL)
        code = asking.wait(60)
        said = asking.output()
        expect(code == EXIT_FAILED and ("cannot be used" in said or "cannot be reached" in said),
               f"expected an error; it exited with {code} and said: {said}")
        expect_unharmed(here)
        uri = there.receive().uri
        expect_complete(asked(here, uri)[0], 40)
        expect_moves(here, there, uri)


def long_watch(here, uri):
    """A prediction under way that takes longer than anybody here waits."""
    asking = here.start(Process, ["predict", GUEST, uri, "--sample", "60s"])
    time.sleep(0.4)
    expect(asking.running(), f"expected a prediction under way; it said {asking.output()}")
    return asking


def expect_given_up(asking, mentions):
    code = asking.wait(20)
    expect(code == EXIT_FAILED and mentions in asking.output(),
           f"expected the prediction to fail and to say '{mentions}'; it exited with {code} and said {asking.output()}")


def asker_killed(context):
    """Nobody is left to hear of it: the guest is free again at once."""
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        asking = long_watch(here, uri)
        asking.signal(signal.SIGKILL)
        asking.wait(10)
        expect_complete(asked(here, uri)[0], 40)


def cancelled(context):
    """By Ctrl-C, wander cancel while it watches and while it sends, wander migrate, wander quit."""
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        asking = long_watch(here, uri)
        asking.signal(signal.SIGINT)
        expect_given_up(asking, "interrupted")
        expect_complete(asked(here, uri)[0], 40)
        asking = long_watch(here, uri)
        here.must("cancel", GUEST)
        expect_given_up(asking, "was cancelled")
        asking = here.start(Process, ["predict", GUEST, uri, "--sample", "100ms", "--filter", "rate=64K"])
        wait_until(lambda: "sending" in asking.output(), 20, "the prediction to send")
        here.must("cancel", GUEST)
        expect_given_up(asking, "was cancelled")
        expect_unharmed(here)
        asking = long_watch(here, uri)
        expect_moves(here, there, uri)
        expect_given_up(asking, "was cancelled")
        back = here.receive().uri
        asking = long_watch(there, back)
        there.must("quit", GUEST)
        expect_given_up(asking, "was cancelled")


def close_to_the_truth(context):
    options = ["--max-bandwidth", "40M", "--downtime-limit", "200ms"]
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = there.receive().uri
        here.lab(workload=HOT, accel=context.accel)
        foretold = path_of(asked(here, uri, *options, sample="1s")[0], "tcp")["prediction"]
        report = here.migrate(GUEST, uri, *options)
        print(f"foretold {foretold['total_low_ms']:.0f} to {foretold['total_high_ms']:.0f} ms, {foretold['rounds']} rounds, "
              f"{foretold['bytes'] / 2**20:.0f} MiB; it took {report['total_ms']:.0f} ms, {len(report['rounds'])} rounds, "
              f"{report['guest_bytes'] / 2**20:.0f} MiB", flush=True)
        for what, got, want in (("total time", report["total_ms"], foretold["total_ms"]),
                                ("bytes", report["guest_bytes"], foretold["bytes"])):
            expect(want / BAND <= got <= want * BAND, f"expected {what} within a factor {BAND} of {want}; got {got}")


run_cases(__doc__, {
    "idle": idle,
    "hot": hot,
    "never": never,
    "watching on": watching_on,
    "without rdma": without_rdma,
    "wrong questions": wrong_questions,
    "broken lanes": broken_lanes,
    "destination killed": destination_killed,
    "asker killed": asker_killed,
    "cancelled": cancelled,
    "close to the truth": in_some_try(close_to_the_truth),
})
