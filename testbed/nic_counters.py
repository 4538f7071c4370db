"""Counters of network devices, RDMA devices and TCP on a host: read before and after a move, and what changed."""

import re
import shlex

# The counters of the network interface $1, those of the RDMA devices on it, and the kernel's of TCP. What is not there,
# tool or file, is left out. Files are read by the shell itself: starting a program takes long where a host is emulated.
LOOK = r"""
echo "= interface"; [ -z "$1" ] || ethtool -S "$1" 2>/dev/null
for port in /sys/class/infiniband/*/ports/*; do
    read -r on 2>/dev/null <$port/gid_attrs/ndevs/0 && [ "$on" = "$1" ] || continue
    echo "= rdma"
    if [ ! -d $port/hw_counters ]; then
        device=${port#/sys/class/infiniband/}
        rdma statistic show link ${device%%/*}/${port##*/} 2>/dev/null | tr ' ' '\n' | paste -d: - -
    fi
    for file in $port/hw_counters/* $port/counters/*; do
        case $file in */lifespan) continue;; esac
        if [ -f $file ] && read -r value 2>/dev/null <$file; then echo "${file##*/}:$value"; fi
    done
done
echo "= tcp"
for file in /proc/net/snmp /proc/net/netstat; do
    while read -r line; do case $line in Tcp*) echo "$line";; esac; done <$file
done
"""

# Known ones, in words; the first pattern that fits. Names are those of drivers: mlx5, bnxt_re, irdma, rxe, virtio_net.
WORDS = (
    (r"RetransSegs", "TCP segments sent again"),
    (r"TCPTimeouts", "TCP time-outs"),
    (r"(Tcp)?OutOfOrder|TCPOFOQueue", "TCP segments received out of sequence"),
    (r"(rx|tx)_(prio\d+_|global_)?pause(_ctrl(_phy)?)?|(rx|tx)_pfc_ena_frames\w*|(rx|tx)_xo(ff|n)\w*",
     "PFC or link pauses"),
    (r"(rx|tx)_(prio\d+_|global_)?pause_(duration|transition)", "time under PFC or link pauses"),
    (r"rx_prio\d+_buf_discard\w*|rx_discards_phy|rx_buffer_\w*discard\w*|rx_out_of_buffer",
     "packets dropped for want of buffers"),
    (r"np_ecn_marked_roce_packets|rx_ecn_mark\w*|rx_ecn_marked_pkts", "RoCE packets with an ECN mark"),
    (r"np_cnp_sent|tx_cnp_pkts|cnpSent", "congestion notifications sent"),
    (r"rp_cnp_handled|rp_cnp_ignored|rx_cnp_pkts|cnpHandled|cnpIgnored", "congestion notifications received"),
    (r"out_of_sequence|out_of_order|oos_drop_count|rx_icrc_\w+|rcvd_out_of_order_request",
     "RDMA packets out of sequence"),
    (r"packet_seq_err|implied_nak_seq_err|seq_err_nak_rcvd|rcvd_seq_err|retry_rnr_exceeded_err|rcvd_rnr_err|"
     r"rnr_nak_retry_err|send_rnr_err|rnr_naks_rcvd", "RDMA refusals (NAK) of the peer"),
    (r"local_ack_timeout_err|roce_adp_retrans\w*|roce_slow_restart\w*|to_retransmits|completer_retry_err|"
     r"retransSegs|max_retry_exceeded|retry_exceeded_err|duplicate_request",
     "RDMA packets sent again, or time-outs that lead to it"),
    (r"\w*(drop|discard|miss)\w*", "packets dropped"),
    (r"\w*(crc|symbol|error|Err|_err|err_)\w*", "errors"),
)
# Of the kernel's hundreds of TCP counters.
TCP = {"RetransSegs", "TCPTimeouts", "TCPOFOQueue", "InErrs", "TCPLostRetransmit", "TCPFastRetrans"}


def meaning(name):
    """What a counter counts, in words, or None when it is none of the known ones."""
    return next((words for pattern, words in WORDS if re.fullmatch(pattern, name)), None)


def read_tcp(lines):
    """Lines of names followed by lines of values."""
    found = {}
    for names, values in zip(lines[::2], lines[1::2]):
        found.update(zip(names.split()[1:], values.split()[1:]))
    return {name: int(value) for name, value in found.items() if name in TCP}


def parse(said):
    """{group: {name: value}}, group interface, rdma or tcp."""
    groups = {"interface": {}, "rdma": {}, "tcp": {}}
    for part in re.split(r"(?m)^= ", said)[1:]:
        head, *lines = part.splitlines()
        group = head.strip()
        if group == "tcp":
            groups[group].update(read_tcp(lines))
            continue
        for line in lines:
            found = re.fullmatch(r"\s*([\w.\[\]-]+)\s*:\s*(\d+)\s*", line)
            if found:
                groups[group][found.group(1)] = int(found.group(2))
    return groups


def interface_of(end):
    """The network interface that has an end's address; None when it cannot be found."""
    said = end.host.run(["ip", "-o", "address", "show", "to", end.address], check=False).stdout.split()
    return said[1] if len(said) > 1 else None


def look(end):
    """All counters of an end's link, now."""
    if not hasattr(end, "interface"):
        end.interface = interface_of(end)
    return parse(end.host.run(f"set -- {shlex.quote(end.interface or '')}\n{LOOK}", check=False).stdout)


def changed(before, after):
    """What moved in between."""
    return {group: {name: value - before[group].get(name, 0) for name, value in after[group].items()
                    if value != before[group].get(name, 0)} for group in after}


def told(counters):
    """Those of a move that have a meaning, in one line; None when none moved."""
    parts = [f"{side} {name} +{value} ({words})" for side, groups in counters.items() for group in groups.values()
             for name, value in group.items() if value and (words := meaning(name))]
    return f"counters: {', '.join(parts)}" if parts else None
