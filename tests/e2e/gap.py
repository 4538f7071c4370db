#!/usr/bin/python3
"""The pause that spans a move, as the guest's own clock saw it, agrees with the downtime the report gives: within 10 % or
5 ms, whichever is larger, in at least 18 of 20 moves."""

from cases import in_some_try, run_cases
from hosts import Failure, World, expect, wait_until

MOVES, NEEDED = 20, 18


def seen_gap_ms(host, move):
    accounts = []

    def account():
        accounts.append(host.workload("guest"))
        return accounts[-1] and accounts[-1]["moves"] == move and accounts[-1]["gap_ns"]

    try:
        return wait_until(account, 15, f"the guest's own measurement of move {move}") / 1e6
    except Failure as failure:
        raise Failure(f"{failure}; its account: {accounts[-1]}") from None


def agreement(context):
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = {host: host.receive().uri for host in (here, there)}
        here.lab(memory="128M", workload="touch=64M,hot=32M,rate=10000", accel=context.accel)
        agreed = 0
        print(f"{'move':>4} {'downtime':>10} {'gap':>10} {'difference':>10}   (ms)")
        for move in range(1, MOVES + 1):
            downtime = here.migrate("guest", uri[there])["downtime_ms"]
            gap = seen_gap_ms(there, move)
            close = abs(gap - downtime) <= max(0.1 * downtime, 5)
            agreed += close
            print(f"{move:>4} {downtime:>10.2f} {gap:>10.2f} {gap - downtime:>+10.2f}   {'' if close else 'too far'}")
            wait_until(lambda: "guest" not in here.guests(), 10, f"the source of move {move} to be gone")
            here, there = there, here
        expect(agreed >= NEEDED, f"expected gap and downtime to agree in {NEEDED} of {MOVES} moves; they did in {agreed}")


run_cases(__doc__, {"gap agrees with downtime": in_some_try(agreement)})
