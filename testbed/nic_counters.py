"""Counters of network devices, RDMA devices and TCP on a host: read before and after a move, and what changed."""

import re
import shlex

# Interface of the address $1; its counters; those of the RDMA devices on it; the kernel's TCP. What is not there, tool
# or file, is left out.
LOOK = r"""
interface=$(ip -o address show to "$1" 2>/dev/null | awk '{print $2; exit}')
echo "= interface $interface"; [ -z "$interface" ] || ethtool -S "$interface" 2>/dev/null
for port in /sys/class/infiniband/*/ports/*; do
    [ -e "$port" ] && [ "$(cat $port/gid_attrs/ndevs/0 2>/dev/null)" = "$interface" ] || continue
    device=${port#/sys/class/infiniband/}; number=${device##*/}; device=${device%%/*}
    echo "= rdma $device"
    rdma statistic show link $device/$number 2>/dev/null | tr ' ' '\n' | paste -d: - - | grep -v '^link'
    for file in $port/hw_counters/* $port/counters/*; do
        case $file in */lifespan) continue;; esac
        [ ! -f $file ] || echo "${file##*/}: $(cat $file 2>/dev/null)"
    done
done
echo "= tcp"; grep -h '^Tcp' /proc/net/snmp /proc/net/netstat
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
    (r"\w*(crc|symbol|error|err)\w*", "errors"),
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
        group = head.split()[0]
        if group == "tcp":
            groups[group].update(read_tcp(lines))
            continue
        for line in lines:
            found = re.fullmatch(r"\s*([\w.\[\]-]+)\s*:\s*(\d+)\s*", line)
            if found:
                groups[group][found.group(1)] = int(found.group(2))
    return groups


def look(end):
    """All counters of an end's link, now."""
    return parse(end.host.run(f"bash -c {shlex.quote(LOOK)} look {shlex.quote(end.address)}", check=False).stdout)


def changed(before, after):
    """What moved in between."""
    return {group: {name: value - before[group].get(name, 0) for name, value in after[group].items()
                    if value != before[group].get(name, 0)} for group in after}
