"""Makes a folder as testbed/compare leaves it, out of nothing: several scenarios, with all that goes wrong in them."""

import json
import math
import random
from pathlib import Path

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp; \u202etxt"
MIB = 1 << 20
CONTENDERS = [{"name": "tcp", "transport": "tcp", "options": []}, {"name": "rdma", "transport": "rdma", "options": []}]
SPEEDS = {"tcp": 62e6, "rdma": 74e6}
LANES = [{"name": f"{transport}-{lanes}", "transport": transport, "options": [f"--lanes={lanes}"]}
         for transport in ("tcp", "rdma") for lanes in (1, 4)]


class Maker:
    """Draws moves of one comparison; the same for the same seed."""

    def __init__(self, out, seed=1):
        self.out, self.chance, self.order = Path(out), random.Random(seed), 0

    def noise(self, width=0.04):
        return math.exp(self.chance.gauss(0, width))

    def rounds(self, size, dirty, speed, limit_ms, most=12):
        """Pre-copy, roughly: [(pages, ms)], the last one paused."""
        found, pages = [], size // 4096
        while True:
            ms = pages * 4096 / speed * 1e3 * self.noise(0.02) + 4
            found.append((pages, ms))
            pages = int(min(dirty * ms / 1e3, size / 4096 * 0.4) * self.noise(0.05)) + 12
            if pages * 4096 / speed * 1e3 < limit_ms or len(found) == most:
                return found + [(pages, pages * 4096 / speed * 1e3 + 2)]

    def report(self, transport, size, dirty, forced=False, cancelled=False):
        speed = SPEEDS[transport] * self.noise()
        drawn = self.rounds(size, dirty, speed, 30)
        start, rounds = 120.0 * self.noise(), []
        setup = start
        for index, (pages, ms) in enumerate(drawn):
            paused = index == len(drawn) - 1
            rounds.append({"pages": pages, "zero_pages": pages // 50, "skipped_pages": 0, "bytes": pages * 4096,
                           "wire_bytes": int(pages * 4130), "start_ms": start, "ms": ms, "paused": paused,
                           "dirty_pages_after": 0 if paused else drawn[index + 1][0], "predicted_downtime_ms": None,
                           "throttle_percent": 0, "guest_pages_written": None, "predicted_total_ms": None})
            start += ms
        sent = sum(entry["bytes"] for entry in rounds)
        parts = {"pause": 1.5 * self.noise(), "final_copy": drawn[-1][1], "verify": None,
                 "state_save": 1.1 * self.noise(),
                 "state_transfer": 2.0 * self.noise(), "state_load": 3.0 * self.noise(), "resume": 4.0 * self.noise()}
        downtime, gib = sum(value or 0 for value in parts.values()), sent / (1 << 30)
        heavy = 1.0 if transport == "tcp" else 0.8
        roles = {side: {"guest_s": 0.9 * gib * self.noise(), "engine_s": 0.6 * gib * self.noise(),
                        "lanes_s": 6 * heavy * gib * self.noise(), "other_s": 0.1 * gib}
                 for side in ("source", "destination")}
        return {"schema": 2, "result": "cancelled" if cancelled else "completed", "error": HOSTILE if cancelled
                else None,
                "guest": {"kind": "lab", "memory_bytes": size, "vcpus": 1, "tracker": "dirty-log"}, "lanes": 2,
                "transport": transport, "total_ms": start + 9, "setup_ms": setup, "downtime_ms": None if cancelled
                else downtime,
                "downtime": {key: None if cancelled else value for key, value in parts.items()},
                "guest_gap_ms": downtime + 1,
                "rounds": rounds, "guest_bytes": sent, "wire_bytes": int(sent * 1.01), "present_bytes": size,
                "goodput_bytes_per_s": int(speed * 0.97), "source_cpu_s": sum(roles["source"].values()),
                "destination_cpu_s": sum(roles["destination"].values()), "cpu": roles,
                "limits": {"downtime_ms": 30, "max_time_ms": (start + 9) / 1.01 if cancelled or forced else None},
                "host": {"source": {"kernel": "Linux 6.12 x86_64", "wander": "0.5.0"}, "destination": None},
                "rdma": None,
                "prediction": None, "switchover": None if cancelled else
                {"predicted_downtime_ms": 25.0, "predicted_last_bytes": 1 << 20, "measured_last_bytes": 1 << 19,
                 "retries": 0, "forced": forced}}

    def foretold(self, report, transport, converges=True):
        error = self.noise(0.05)
        total, downtime = report["total_ms"] * error, (report["downtime_ms"] or 20) * self.noise(0.1)
        made = {"converges": converges, "total_ms": total, "total_low_ms": total * 0.9, "total_high_ms": total * 1.1,
                "downtime_ms": downtime, "downtime_low_ms": downtime * 0.8, "downtime_high_ms": downtime * 1.2,
                "rounds": len(report["rounds"]), "bytes": report["guest_bytes"], "throttle_percent": 0, "forced": False,
                "needed_bandwidth_bytes_per_s": None if converges else 400000000,
                "needed_throttle_percent": None if converges else 40,
                "why": None if converges else "it writes faster than the link carries"}
        if not converges:
            made.update(total_ms=None, total_low_ms=None, total_high_ms=None, downtime_ms=None, downtime_low_ms=None,
                        downtime_high_ms=None)
        return {"schema": 1, "paths": [{"transport": "tcp" if transport == "rdma" else "rdma", "usable": False,
                                        "error": "no"},
                                       {"transport": transport, "usable": True, "prediction": made}]}

    def work(self, dirty):
        return {"before_pages_per_s": dirty or None, "during_pages_per_s": dirty * 0.8 * self.noise() if dirty
                else None,
                "after_pages_per_s": dirty * self.noise(0.01) if dirty else None}

    def move(self, scenario, point, contender, repeat, size=64 * MIB, dirty=0, boot=1, guests=1, slow=1.0, **how):
        """One file; `how`: forced, cancelled, failed, warm_up, no_prediction."""
        self.order += 1
        transport = contender["transport"]
        stuck = {key: how.get(key, False) for key in ("forced", "cancelled")}
        moved = []
        for _ in range(guests):
            report = self.report(transport, size, dirty, **stuck)
            report["total_ms"] *= slow
            moved.append({"report": None if how.get("failed") else report, "wall_s": report["total_ms"] / 1e3 + 0.3,
                          "work": self.work(dirty),
                          "prediction": None if how.get("no_prediction") else
                          self.foretold(report, transport, not any(stuck.values()))})
        gib = guests * moved[0]["report"]["guest_bytes"] / (1 << 30) if moved[0]["report"] else 0.1
        ways = ("a", "b") if repeat % 2 else ("b", "a")
        host = {side: {"user": 4 * gib * self.noise(), "system": 9 * gib * self.noise(),
                       "interrupts": 3 * gib * self.noise(),
                       "machine": 0.1} for side in ("source", "destination")}
        changed = {"rdma": {"rcvd_seq_err": repeat, "duplicate_request": 2 * repeat}} if transport == "rdma" else \
            {"tcp": {"RetransSegs": repeat}}
        document = {"schema": 1, "scenario": scenario, "point": point, "contender": contender["name"],
                    "transport": transport, "repeat": repeat, "warm_up": how.get("warm_up", False), "boot": boot,
                    "order": self.order, "began": f"2026-11-22T08:{self.order // 60 % 60:02}:{self.order % 60:02}Z",
                    "source": ways[0], "destination": ways[1], "failed": how.get("failed"), "host_cpu": host,
                    "machine_others": 0.3 if repeat == 5 else 0.02,
                    "counters": {"source": changed, "destination": {"interface": {"rx_queue_0_drops": 3}}},
                    "prediction_error": "no answer" if how.get("no_prediction") else None,
                    **(moved[0] if guests == 1 else {"report": None, "prediction": None, "guests": moved,
                                                     "wall_s": max(entry["wall_s"] for entry in moved)})}
        name = f"W{repeat}" if document["warm_up"] else f"{repeat:02}"
        path = self.out / "moves" / scenario / point / contender["name"] / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1))
        return document

    def series(self, scenario, point, contenders, repeats=6, **how):
        for contender in contenders:
            self.move(scenario, point, contender, 1, warm_up=True, **how)
        for repeat in range(1, repeats + 1):
            for contender in contenders:
                self.move(scenario, point, contender, repeat, **how)


def point(identity, x=None, label=None, **settings):
    return {"id": identity, "label": label or identity, "x": x, "settings": {"memory": "96M", "workload": "touch=64M",
            "vcpus": 1, "guests": 1, "link": None, "mtu": 9000, "options": [], **settings}}


def scenario(name, title, points, contenders=None, axis=None, **more):
    return {"name": name, "title": title, "question": f"{title}: what does it cost over TCP and over RDMA?",
            "axis": axis,
            "contenders": contenders or CONTENDERS, "points": points, "plots": [{"y": "total_s"}, {"y": "downtime_ms"},
            {"y": "both_hosts_cpu"}], "published": [], "scale": None, "text": f'title = "{title}"\n[guest]\nmemory = '
                                                                              f'"96M"\n',
            **more}


def comparison(scenarios, **more):
    ends = [{"host": host, "address": f"10.0.0.{index}", "interface": "eth0", "kernel": "Linux 6.12.1 x86_64",
             "cpu": "QEMU TCG CPU version 2.5+", "cpus": 1, "virtual": True, "link_mbit_per_s": None, "mtu_bytes": 9000,
             "memory_mib": 2048, "rdma": {"device": "rxe0", "port": 1, "link_layer": "Ethernet", "gid_type": "RoCE v2",
                                          "mtu": 4096, "kind": "soft-RoCE"}} for index, host in enumerate("ab", 1)]
    limits = [{"tool": tool, "direction": way, "link": None, "mtu": 9000, "bytes_per_s": speed, "note": "best of two"}
              for way in ("a->b", "b->a") for tool, speed in (("iperf3", 85e6), ("ib_send_bw -e", 52e6),
                                                              ("ib_write_bw", 26e6))]
    return {"schema": 1, "made": "2026-11-22T09:00:00Z", "wander": "0.5.0", "finished": True, "seed": 7,
            "command": ["testbed/compare", "testbed/scenarios/quick", "--out", "out dir"], "confidence_target": 0.10,
            "counter_words": {"RetransSegs": "TCP segments sent again",
                              "rcvd_seq_err": "RDMA refusals (NAK) of the peer"},
            "scenarios": scenarios, "ends": ends, "boots": [{"id": 1, "began": "2026-11-22T08:00:00Z",
                                                             "limits": limits},
            {"id": 2, "began": "2026-11-22T08:30:00Z", "limits": []}], "warnings": [], "errors": [], **more}


def save(out, document):
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "comparison.json").write_text(json.dumps(document, indent=1))


def dirty_rates(maker):
    """Up to beyond the link: forced at one point, given up at the next."""
    points = [point(str(rate), rate, f"{rate} pages/s") for rate in (0, 2000, 6000, 10000, 14000, 18000)]
    for here in points:
        stuck = {14000: {"forced": True}, 18000: {"cancelled": True}}.get(here["x"], {})
        maker.series("dirty-rate", here["id"], CONTENDERS, dirty=here["x"], **stuck)
    return scenario("dirty-rate", "How fast the guest writes", points, axis={"label": "writes", "unit": "pages/s"})


def patterns(maker):
    """One point with a huge outlier, one with one repeat, one with none, one with failures, all of them hostile."""
    points = [point("hot-cold", label="hot and cold"), point("window", label="moving window"), point("once"),
              point("never"), point("failing", label=HOSTILE)]
    maker.series("patterns", "hot-cold", CONTENDERS, 7, dirty=3000)
    maker.move("patterns", "hot-cold", CONTENDERS[0], 8, dirty=3000, slow=12.0)
    maker.series("patterns", "window", CONTENDERS, 5, dirty=5000, no_prediction=True)
    maker.series("patterns", "once", CONTENDERS, 1)
    for repeat in (1, 2):
        maker.move("patterns", "failing", CONTENDERS[1], repeat, failed=HOSTILE)
    return scenario("patterns", "Where the guest writes " + HOSTILE, points)


def lanes(maker):
    points = [point(f"{size}M", size, f"{size} MiB") for size in (32, 64, 128, 256)]
    for here in points:
        maker.series("lanes", here["id"], LANES, 6, size=int(here["x"] * MIB), boot=1 + (here["x"] > 64))
    return scenario("lanes", "How many lanes", points, LANES, {"label": "guest", "unit": "MiB"})


def several(maker):
    points = [point("three", guests=3, label="three guests at once")]
    maker.series("several-guests", "three", CONTENDERS, 5, dirty=1500, guests=3)
    return scenario("several-guests", "Several guests at once", points)


def papers(maker):
    published = [{"what": "total time, RDMA against sockets", "figure": "up to 80 % lower", "known": "read",
                  "source": "Huang et al., IEEE Cluster 2007 (abstract)"},
                 {"what": "CPU of source and destination", "figure": "84 % and 92 % less", "known": "reported",
                  "source": "VMware, OpenFabrics workshop 2012"}]
    maker.series("huang-2007", "idle", CONTENDERS, 6)
    return scenario("huang-2007", "Huang et al. 2007", [point("idle", label="idle guest")], published=published,
                    scale="memory and link divided by 128")


def make(out, seed=1):
    """Everything at once; the comparison's document."""
    maker = Maker(out, seed)
    document = comparison([dirty_rates(maker), lanes(maker), patterns(maker), several(maker), papers(maker)],
                          finished=False, warnings=["Other programs took 30% of the CPUs", HOSTILE],
                          errors=[{"scenario": "patterns", "point": "failing", "contender": "rdma", "text": HOSTILE}])
    save(out, document)
    return document
