#!/usr/bin/python3
"""Scenario files: every one in the tree is valid and expands to points with names of their own; of a bad one, one
message names the file and the key."""

import re

from cases import run_cases
from hosts import ROOT, Failure, expect

import scenario

HEAD = 'title = "T"\nquestion = "Q"\n'
# (what is wrong, file after its head, what the message must name)
BAD = (
    ("a key that is not known", 'colour = "red"', "colour: there is no such key"),
    ("a key of a section that is not known", '[guest]\nram = "1M"', "guest.ram: there is no such key"),
    ("a size that is none", '[guest]\nmemory = "much"', "guest.memory: expected a size"),
    ("a number where text is wanted", "[guest]\nmemory = 64", "guest.memory: expected a size"),
    ("an unknown word in the workload", '[guest]\nworkload = "touch=1M,speed=4"', "guest.workload: 'speed=4'"),
    ("more touched than there is", '[guest]\nmemory = "32M"\nworkload = "touch=17M"', "point[0].guest: touch=17M does"),
    ("more hot than there is", '[guest]\nmemory = "32M"\nworkload = "hot=17M"', "point[0].guest: hot=17M does not fit"),
    ("less than the guest needs", '[guest]\nmemory = "8M"\nworkload = "touch=1M"', "point[0].guest: touch=1M does not"),
    ("no vCPU", "[guest]\nvcpus = 0", "guest.vcpus: expected a whole number"),
    ("true for a number", "[guest]\ncount = true", "guest.count: expected a whole number"),
    ("an unknown kind of guest", '[guest]\naccel = "tcg"', "guest.accel: expected kvm or synthetic"),
    ("an option that is not wander's", '[move]\noptions = ["--turbo"]', "move.options: '--turbo'"),
    ("an option in two words", '[move]\noptions = ["--lanes=4", "4"]', "move.options: '4'"),
    ("an option without its value", '[move]\noptions = ["--lanes", "--verify"]', "'--lanes' lacks a value"),
    ("a value that an option does not take", '[move]\noptions = ["--verify=1"]', "'--verify=1' takes no value"),
    ("an option that is the comparison's", '[move]\noptions = ["--json=x"]', "move.options: '--json=x'"),
    ("a shell in an option", '[move]\noptions = ["--lanes=1; ls"]', "move.options"),
    ("options that are no list", '[move]\noptions = "--lanes=4"', "move.options: expected a list"),
    ("a rate that is none", '[link]\nrate = "fast"', "link.rate"),
    ("a loss that is two things", '[link]\nloss = "1%,delay=1s"', "link.loss"),
    ("an MTU that no link has", "[link]\nmtu = 100000", "link.mtu: expected a whole number from 1280"),
    ("a point without a place", '[axis]\nlabel = "l"\n[[point]]\nid = "a"', "point[0].x: it is missing"),
    ("a place without an axis", "[[point]]\nx = 1", "point[0].x: a place on an axis"),
    ("a place that is no number", '[axis]\nlabel = "l"\n[[point]]\nx = "1"', "point[0].x: expected a number"),
    ("an axis without points", '[axis]\nlabel = "l"', "point: it is missing"),
    ("a point twice", '[axis]\nlabel = "l"\n[[point]]\nx = 1\n[[point]]\nx = 1', "point[1].id: '1' is there twice"),
    ("a point without a name", '[[point]]\nid = "a"\n[[point]]\nlabel = "b"', "point[1].id: it is missing"),
    ("a name that leaves the folder", '[[point]]\nid = "../a"', "point[0].id: expected a name"),
    ("a contender without a transport", '[[contender]]\nname = "a"', "contender[0].transport: it is missing"),
    ("an unknown transport", '[[contender]]\nname = "a"\ntransport = "udp"', "contender[0].transport: expected tcp or"),
    ("a contender twice", '[[contender]]\nname = "a"\ntransport = "tcp"\n' * 2,
     "contender[1].name: 'a' is there twice"),
    ("a figure that nobody knows", 'plots = ["beauty"]', "plots[0]: expected total_s"),
    ("a published figure without a source", '[[published]]\nwhat = "w"\nfigure = "f"\nknown = "read"',
     "published[0].source: it is missing"),
    ("provenance that is none", '[[published]]\nwhat = "w"\nfigure = "f"\nsource = "s"\nknown = "true"',
     "published[0].known: expected read or reported"),
    ("no TOML", "title = ", "this is not TOML"),
)


def refused(content, path="folder/bad.toml"):
    try:
        scenario.parse(content, path)
    except Failure as failure:
        return str(failure)
    return None


def committed(context):
    found = sorted((ROOT / "testbed" / "scenarios").rglob("*.toml"))
    expect(len(found) >= 14, f"expected the scenarios of the tree; found {len(found)}")
    for path in found:
        read = scenario.read(path)
        keys = [(point["id"], contender["name"]) for point in read["points"] for contender in read["contenders"]]
        expect(len(keys) == len(set(keys)) >= 2, f"expected {path} to compare things of different names; got {keys}")
        for point in read["points"]:
            settings = point["settings"]
            # Without a rate a guest writes as fast as it can.
            unbound = "hot=" in settings["workload"] and "rate=" not in settings["workload"]
            for contender in read["contenders"]:
                limited = any("--max-time" in option for option in settings["options"] + contender["options"])
                expect(limited or not unbound, f"expected {path}, point {point['id']}, {contender['name']}, to limit the "
                                               f"time of moves that may not end")
            expect(scenario.bytes_of(settings["memory"]) * settings["guests"] <= 1 << 30,
                   f"expected {path}, point {point['id']}, to fit into virtual hosts of 2 GiB; got {settings}")


def room(context):
    """What a lab guest keeps for itself is what its header says, and the rest may be used."""
    header = (ROOT / "migrate" / "guest" / "lab" / "abi.h").read_text()
    start = int(re.search(r"#define LAB_WORKLOAD_START (0x[0-9a-f]+)", header).group(1), 16)
    expect(scenario.KEPT == start, f"expected a guest's own {start} bytes to be kept; got {scenario.KEPT}")
    said = refused(HEAD + '[guest]\nmemory = "32M"\nworkload = "touch=16M,hot=16M"')
    expect(said is None, f"expected 16 MiB of 32 to be a workload; got {said}")
    said = refused(HEAD + '[guest]\naccel = "synthetic"\nmemory = "32M"\nworkload = "touch=32M"')
    expect(said is None, f"expected a synthetic guest to have all of its memory for it; got {said}")


def bad(context):
    for what, text, wanted in BAD:
        said = refused(HEAD + text if "this is not" not in wanted else text)
        expect(said is not None, f"expected a scenario with {what} to be refused; it was taken")
        expect(said.startswith("folder/bad.toml: ") and wanted in said and "\n" not in said,
               f"expected one line that names the file and says '{wanted}' of {what}; got {said!r}")
    expect("title: it is missing" in refused('question = "Q"'), "expected a scenario without a title to be refused")
    expect("name" in refused(HEAD, "folder/Bad Name.toml"), "expected a file name with a space to be refused")


def layers(context):
    read = scenario.parse(HEAD + """
[guest]
memory = "96M"
workload = "touch=8M"
[move]
options = ["--lanes=2"]
[link]
delay = "5ms"
mtu = 1500
[axis]
label = "rate"
unit = "Mbit/s"
[[point]]
x = 0.5
[[point]]
x = 100
guest = { memory = "1G", count = 2 }
move = { options = ["--verify"] }
link = { rate = "100Mbit", mtu = 9000 }
""", "layers.toml")
    first, second = read["points"]
    wanted = {"memory": "96M", "workload": "touch=8M", "vcpus": 1, "guests": 1, "accel": None, "link": "delay=5ms",
              "link_where": None, "mtu": 1500, "options": ["--lanes=2"]}
    expect(first["settings"] == wanted, f"expected the file's settings {wanted}; got {first['settings']}")
    wanted = {**wanted, "memory": "1G", "guests": 2, "link": "rate=100Mbit,delay=5ms", "mtu": 9000,
              "options": ["--lanes=2", "--verify"]}
    expect(second["settings"] == wanted, f"expected the point's settings over them {wanted}; got {second['settings']}")
    expect((first["id"], first["label"]) == ("0.5", "0.5 Mbit/s"), f"expected a name from its place; got {first}")
    names = [contender["name"] for contender in read["contenders"]]
    expect(names == ["tcp", "rdma"], f"expected both transports where no contender is named; got {names}")
    alone = scenario.parse(HEAD, "alone.toml")
    expect([point["id"] for point in alone["points"]] == ["all"], f"expected one point; got {alone['points']}")
    for text, wanted in (("64M", 64 << 20), ("1.5GiB", 1.5 * (1 << 30)), ("4096", 4096), ("2KB", 2048)):
        got = scenario.bytes_of(text)
        expect(got == wanted, f"expected {text} to be {wanted} bytes; got {got}")


def named(context):
    quick = ROOT / "testbed" / "scenarios" / "quick.toml"
    for word in ("quick", str(quick), str(quick.with_suffix(""))):
        found = [path.resolve() for path in scenario.files_of(word)]
        expect(found == [quick], f"expected '{word}' to name {quick}; got {found}")
    folder = scenario.files_of(str(quick.parent))
    expect(folder == sorted(folder) and quick in [path.resolve() for path in folder],
           f"expected the folder's scenarios in order; got {folder}")
    expect(len(scenario.load(["quick", str(quick)])) == 1, "expected a scenario that is named twice to be run once")
    try:
        scenario.load(["nothing-like-it"])
    except Failure as failure:
        expect("nothing-like-it" in str(failure) and "quick" in str(failure), f"expected those known; got {failure}")
    else:
        raise Failure("expected a scenario that does not exist to be refused")


run_cases(__doc__, {"committed": committed, "room": room, "bad": bad, "layers": layers, "named": named})
