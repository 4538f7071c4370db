#!/usr/bin/python3
"""A process that may lock only 64 KiB of memory, at either end: `wander check rdma://` says so and how to mend it, and
`wander migrate` refuses before the guest is paused, which runs on."""

import time

from cases import run_cases
from hosts import EXIT_FAILED, expect, running
from remote_world import RemoteWorld

GUEST = {"memory": "64M", "workload": "touch=48M,hot=8M,rate=2000"}
# As for any user: root without limits would be no test, because CAP_IPC_LOCK lets it lock what it likes.
LIMITED = ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit", "--memlock=65536:65536"]
REMEDY = "ulimit -l"


def told(what, done, end):
    said = (done.stdout + done.stderr).strip()
    lines = [line for line in said.splitlines() if REMEDY in line]
    print(f"{what}, limited at the {end}: {' / '.join(lines)[:400]}", flush=True)
    expect(done.returncode == EXIT_FAILED,
           f"expected {what} to exit with 1; it exited with {done.returncode} and said: {said}")
    expect(REMEDY in said, f"expected {what} to name the remedy '{REMEDY}'; it said: {said}")
    expect("64.0 KiB" in said or "65536" in said, f"expected {what} to name the limit of 64 KiB; it said: {said}")


def limited_at(host_name, end):
    def body(context):
        with RemoteWorld({host_name: LIMITED}) as world:
            here, there = world.host("a"), world.host("b")
            receiver = there.receive()
            here.lab("guest", **GUEST)
            told("wander check", here.run("check", receiver.uri), end)
            told("wander check --guest", here.run("check", receiver.uri, "--guest", "guest"), end)
            for registration in ("all", "chunk"):
                began = time.monotonic()
                done = here.run("migrate", "guest", receiver.uri, "--rdma-register", registration)
                told(f"wander migrate --rdma-register {registration}", done, end)
                expect("paused" not in done.stdout + done.stderr and "round 0" not in done.stdout + done.stderr,
                       f"expected a refusal before anything was sent; it said {done.stdout}{done.stderr}")
                print(f"    refused after {time.monotonic() - began:.1f} s", flush=True)
            status = here.status("guest")
            expect(status["state"] == "running", f"expected the guest to run on; got {status}")
            expect(running([(here, "guest")]) != [], "expected the guest to write on")
            account = here.check("guest")
            expect(account["moves"] == 0 and account["gap_ns"] == 0,
                   f"expected a guest that was never paused; got {account}")
            for host in world.hosts.values():
                host.without_resources()
            here.migrate("guest", receiver.uri.replace("rdma://", "tcp://"))
            print("    over tcp:// it moves", flush=True)
    return body


run_cases(__doc__, {"limited at the source": limited_at("a", "source"),
                    "limited at the destination": limited_at("b", "destination")})
