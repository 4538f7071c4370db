#!/usr/bin/python3
"""`wander predict` of a Linux in QEMU, called by its monitor: the guest runs on, QEMU is set as before, and it moves at once.
Where it arrived it can be asked by its name."""

import json

from cases import run_cases
from hosts import expect
from qemu_world import QemuWorld, machine, one_shot

LOAD = {"ram": 64, "ram_rate": 4000}


def settings(world, name):
    """What QEMU's own migration is set to."""
    with one_shot(world.sides[name].watched) as ask:
        return {"parameters": ask("query-migrate-parameters"), "capabilities": ask("query-migrate-capabilities")}


def predict(world, here, uri):
    path = world.path / f"{world.count()}-prediction.json"
    world.host(here).must("predict", world.guest(here), uri, "--sample", "500ms", "--json", path, seconds=60)
    found = json.loads(path.read_text())["paths"][0]
    foretold = found["prediction"]
    expect(found["usable"] and 0 < foretold["total_low_ms"] <= foretold["total_ms"] <= foretold["total_high_ms"],
           f"expected a prediction for tcp; got {found}")
    expect(world.watch(here) == "running", f"expected QEMU to run; it says {world.watch(here)}")
    world.console(here).good()
    return foretold


def predict_and_move(context):
    with QemuWorld(load=LOAD, memory_mib=192) as world:
        world.boot()
        uri = {name: machine.receive(world.host(name), world.machine, world.sides[name]).uri for name in world.sides}
        before = settings(world, "a")
        for _ in range(2):
            foretold = predict(world, "a", uri["b"])
        after = settings(world, "a")
        expect(after == before, f"expected QEMU's migration to be set as before, {before}; it is {after}")
        report, _ = world.hop("a", "b", uri["b"])
        print(f"foretold {foretold['total_ms']:.0f} ms, {foretold['bytes'] / 2**20:.0f} MiB; it took "
              f"{report['total_ms']:.0f} ms, {report['guest_bytes'] / 2**20:.0f} MiB", flush=True)
        predict(world, "b", uri["a"])
        world.hop("b", "a", uri["a"])


if __name__ == "__main__":
    run_cases(__doc__, {"predict and move": predict_and_move})
