#!/usr/bin/python3
"""Whether the intervals of the comparison are honest and of use, by simulation: timings as real ones are, lognormal
with now and then one that took far longer. A thing compared with itself must hardly ever differ, a slowdown must
show."""

import itertools
import math
import random
import statistics

from cases import run_cases
from hosts import expect

import comparison

SERIES, OUTLIERS = 1000, 0.02
NOISES = (0.03, 0.05, 0.08)
ALL_NOISES = (*NOISES, 0.12, 0.2)  # a busy machine's


def timings(chance, count, noise, scale=1.0):
    return [scale * math.exp(chance.gauss(0, noise)) * (chance.uniform(1.3, 3.0) if chance.random() < OUTLIERS else 1)
            for _ in range(count)]


def runs(values, boot=1):
    return [(boot, value) for value in values]


def same(what, got, wanted, within=1e-9):
    near = abs(got - wanted) <= within if isinstance(wanted, float) else got == wanted
    expect(near, f"expected {what} to be {wanted!r}; got {got!r}")


def few_values(context):
    expect(comparison.median_interval([None, None]) is None, "expected no interval of nothing")
    for count, confidence in ((1, 0.0), (2, 0.5), (5, 0.9375)):
        found = comparison.median_interval([float(value) for value in range(count)])
        same(f"the method for {count} values", found["method"], "range")
        same(f"the confidence of {count} values", found["confidence"], confidence)
        same(f"the ends for {count} values", (found["low"], found["high"]), (0.0, float(count - 1)))
    same("the method for 6 values", comparison.median_interval(list(range(6)))["method"], "bootstrap")
    expect(not comparison.precise(comparison.median_interval([1.0] * 4)), "expected 4 values never to be precise")
    expect(comparison.precise(comparison.median_interval([0.91, 1.0, 1.0, 1.0, 1.09])), "expected +-9 % to be precise")
    expect(not comparison.precise(comparison.median_interval([1.0, 1.0, 1.0, 1.0, 1.2])),
           "expected +20 % of five values not to be precise")


def exact_bootstrap(context):
    """What endless resampling would give, against every resample there is."""
    for count in (5, 6):
        drawn = [statistics.median(places) for places in itertools.product(range(count), repeat=count)]
        for share, i, j in comparison.resampled_median(count):
            values = {(i + j) / 2}
            wanted = sum(middle in values for middle in drawn) / len(drawn)
            found = sum(other for other, k, l in comparison.resampled_median(count) if (k + l) / 2 in values)
            same(f"the share of median {(i + j) / 2} of {count}", found, wanted, within=1e-9)
    for freedom, wanted in ((5, 2.5706), (11, 2.2010), (30, 2.0423)):
        same(f"t of {freedom} degrees", comparison.t_quantile(0.975, freedom), wanted, within=0.005)


def exact_ranks(context):
    for ours, theirs in ((2, 3), (4, 4)):
        counts = [0] * (ours * theirs + 1)
        for places in itertools.combinations(range(ours + theirs), ours):
            counts[sum(1 for mine in places for other in range(ours + theirs) if other not in places
                       and mine > other)] += 1
        same(f"orders of {ours} and {theirs}", list(comparison.rank_sums(ours, theirs)), counts)


def coverage(context):
    """The interval of a median holds it as often as it says."""
    chance, rows = random.Random(5), []
    truth = statistics.median(timings(random.Random(6), 20001, 0.05))
    for count in (6, 7, 8, 9, 10, 12, 15):
        held = 0
        for _ in range(SERIES):
            interval = comparison.median_interval(timings(chance, count, 0.05))
            held += interval["low"] <= truth <= interval["high"]
        rows.append(f"{count}: {held / SERIES:.3f}")
        expect(held / SERIES >= 0.935, f"expected a 95 % interval of {count} values to hold the median in 93.5 % of "
                                       f"{SERIES} series or more; it did in {held / SERIES:.1%}")
    print(f"    share of intervals that hold the median, by number of values: {', '.join(rows)}")


def itself(context):
    """False alarms: the same thing twice, 5 to 12 runs each."""
    flagged = []
    for seed in range(SERIES):
        chance = random.Random(f"itself {seed}")
        count, noise = chance.randint(5, 12), chance.choice(ALL_NOISES)
        flagged.append(comparison.compare_medians(runs(timings(chance, count, noise)),
                                                  runs(timings(chance, count, noise)))["shown"])
    worst = max(sum(flagged[i:i + 20]) for i in range(SERIES - 19))
    flagged = sum(flagged)
    print(f"    a thing with itself: {flagged} of {SERIES} flagged; at most {worst} of any 20 in a row")
    expect(flagged <= 0.1 * SERIES, f"expected at most 10 % of {SERIES} comparisons of a thing with itself to be "
                                    f"flagged; "
                                    f"{flagged} were")
    expect(flagged <= 0.03 * SERIES, f"expected a 98 % interval to leave out 1 in about 2 % of {SERIES}; got {flagged}")


def several_boots(context):
    """Boots that differ by 30 % neither make a difference nor hide one, when the counts in them are uneven."""
    chance, false, found = random.Random(7), 0, 0
    for _ in range(200):
        ours, theirs, slower = [], [], []
        for boot, count, speed in ((1, 6, 1.0), (2, 3, 1.3), (3, 1, 0.8)):
            ours += runs(timings(chance, count, 0.04, speed), boot)
            theirs += runs(timings(chance, max(1, count - 1), 0.04, speed), boot)
            slower += runs(timings(chance, count, 0.04, 1.2 * speed), boot)
        false += comparison.compare_medians(ours, theirs)["shown"]
        found += comparison.compare_medians(slower, theirs)["shown"]
    print(f"    over three boots: {false} of 200 false, {found} of 200 slowdowns of 20 % found")
    expect(false <= 12 and found >= 170, f"expected at most 12 false and at least 170 found; got {false} and {found}")
    apart = comparison.compare_medians(runs([1.0], 1) + runs([10.0], 2), runs([2.0], 1) + runs([20.0, 20.0], 2))
    same("the pairs of one boot each", (apart["ratio"], apart["pairs"]), (0.5, 3))
    expect(comparison.compare_medians(runs([1.0], 1), runs([2.0], 2)) is None, "expected no ratio across boots")


def slowdown(context):
    for least, wanted in ((6, 0.85), (8, 0.93)):
        found = 0
        for seed in range(SERIES):
            chance = random.Random(f"slowdown {seed}")
            count, noise = chance.randint(least, 12), chance.choice(NOISES)
            result = comparison.compare_medians(runs(timings(chance, count, noise, 1.2)),
                                                runs(timings(chance, count, noise)))
            found += result["shown"] and result["ratio"] > 1
        print(f"    20 % slower, {least} to 12 runs, noise 3 to 8 %: {found} of {SERIES} flagged")
        expect(found >= wanted * SERIES, f"expected a slowdown of 20 % to be flagged in {wanted:.0%} of {SERIES} "
                                         f"series of "
                                         f"{least} runs or more; it was in {found}")
    quiet = sum(comparison.compare_medians(runs(timings(random.Random(seed), 6, 0.03, 1.2)),
                                           runs(timings(random.Random(-1 - seed), 6, 0.03)))["shown"]
                for seed in range(200))
    print(f"    20 % slower, 6 runs, noise 3 %: {quiet} of 200 flagged")
    expect(quiet >= 170, f"expected 170 or more of 200 to be flagged; got {quiet}")


def apart(ours, theirs):
    """Whether the medians' own intervals are."""
    one, two = comparison.median_interval(ours), comparison.median_interval(theirs)
    return one["high"] < two["low"] or two["high"] < one["low"]


def overlap(context):
    """Why the interval of the ratio decides, and not whether the medians' own overlap: what the latter loses."""
    by_ratio = by_overlap = 0
    for seed in range(SERIES // 2):
        chance = random.Random(f"overlap {seed}")
        count = chance.randint(6, 12)
        slower, usual = timings(chance, count, 0.08, 1.2), timings(chance, count, 0.08)
        by_ratio += comparison.compare_medians(runs(slower), runs(usual))["shown"]
        by_overlap += apart(slower, usual)
    print(f"    20 % slower, 6 to 12 runs, noise 8 %: {by_ratio} of {SERIES // 2} by the ratio's interval, "
          f"{by_overlap} by medians whose intervals do not overlap")
    expect(by_overlap <= 0.8 * by_ratio, f"expected the second rule to lose about a quarter; {by_ratio} against "
                                         f"{by_overlap}: the report's method says so")


def too_few(context):
    result = comparison.compare_medians(runs([1.0, 1.1]), runs([3.0, 3.1]))
    expect(not result["enough"] and not result["shown"], f"expected no verdict of two runs each; got {result}")
    same("the ratio of values of which some are not known",
         comparison.compare_medians([(1, 2.0), (1, None)], [(1, 1.0), (1, 0.0)])["ratio"], 2.0)
    same("outliers", comparison.outliers([1.0, 1.1, 0.9, 1.0, 5.0, None]), [False] * 4 + [True, False])
    same("outliers among equals", comparison.outliers([1.0] * 6), [False] * 6)


run_cases(__doc__, {"few_values": few_values, "exact_bootstrap": exact_bootstrap, "exact_ranks": exact_ranks,
                    "coverage": coverage, "itself": itself, "several_boots": several_boots, "slowdown": slowdown,
                    "overlap": overlap,
                    "too_few": too_few})
