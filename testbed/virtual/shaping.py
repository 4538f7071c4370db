"""Properties of the link between two hosts, as given on the command line and as given to tc."""

import re

from virtual.packages import Trouble

RATES = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "": 8, "k": 8e3, "m": 8e6, "g": 8e9}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1}
MTU, LEAST_PACKETS, BUFFER_SECONDS = 9000, 1000, 0.1


def parse(given):
    """{rate: bits per second, delay: seconds one way, loss: per cent} of "rate=1Gbit,delay=5ms,loss=1%"; "none" or ""
    gives {}."""
    link = {}
    for part in (given or "").split(","):
        if part in ("", "none"):
            continue
        name, _, value = part.partition("=")
        found = re.fullmatch(r"([0-9.]+)([A-Za-z%]*)", value)
        units = {"rate": RATES, "delay": TIMES, "loss": {"": 1, "%": 1}}.get(name)
        if not found or units is None or found.group(2).lower() not in units or found.group(1).count(".") > 1:
            raise Trouble(f"'{part}' says nothing about a link. Known are rate=100M (bytes per second) or rate=1Gbit, "
                          f"delay=5ms (one way), loss=1% (each way), with commas between them, or none")
        link[name] = float(found.group(1)) * units[found.group(2).lower()]
    return link


def text(link):
    units = {"rate": lambda rate: f"{rate / 1e6:g}Mbit", "delay": lambda delay: f"{delay * 1e3:g}ms",
             "loss": lambda loss: f"{loss:g}%"}
    return ",".join(f"{name}={units[name](value)}" for name, value in link.items()) or "none"


def command(device, link):
    """The shell command that gives a network device these properties, at its way out, and takes away older ones."""
    if not link:
        return f"tc qdisc del dev {device} root 2>/dev/null; true"
    parts = [f"tc qdisc replace dev {device} root netem"]
    # Room for what is under way and for a tenth of a second of waiting, or a full queue would look like loss.
    rate = link.get("rate", 1e10)
    packets = rate / 8 / MTU * (link.get("delay", 0) + BUFFER_SECONDS)
    parts.append(f"limit {max(LEAST_PACKETS, int(packets))}")
    if "delay" in link:
        parts.append(f"delay {link['delay'] * 1e6:.0f}us")
    if "loss" in link:
        parts.append(f"loss {link['loss']:g}%")
    if "rate" in link:
        parts.append(f"rate {link['rate']:.0f}bit")
    return " ".join(parts)


def mtu_command(device, mtu):
    """The shell command that gives a network device this MTU; soft-RoCE on it follows."""
    return f"ip link set dev {device} mtu {int(mtu)}"
