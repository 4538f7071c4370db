"""How a report's figures are made, in words: part of every report."""

from .markup import el, join

HESTERBERG = "https://arxiv.org/abs/1411.5279"
WILCOXON = "https://stat.ethz.ch/R-manual/R-devel/library/stats/html/wilcox.test.html"
TURNS = """Contenders take turns, who is first alternates, and so does the direction; every move has a fresh guest.
Warm-ups, one in either direction, do not count."""
MEDIAN = """), because as it is it holds the median of 7 runs in 87 % of cases only. Of fewer than 6 runs the
interval is their range (5 runs: 94 %, 4: 88 %, 3: 75 %); the tooltip of every figure says which, and how
sure it is."""
RATIO = """). It assumes no shape of the noise, one outlier cannot stretch it, and boots that differ do not count as
a difference. 98 % and not 95 %, because a report makes many comparisons: of 20 of a thing with itself
one is falsely flagged in every third report, and three in fewer than one of a hundred. Of 4 runs a side
nothing is concluded. Whether two medians' own intervals overlap does not decide: where runs vary by 8 % that
would lose a quarter of the slowdowns of 20 % that are shown. It is said beside a difference that is shown."""
OTHERS = (
    """Outliers lie more than 5 robust standard deviations (median absolute deviation × 1.48) from the median. They
are marked, and kept in every figure.""",
    """CPU of a whole host: /proc/stat's user, system and interrupts (softirq too) from just before the move's command
to its end, the guest's own computing and the start of processes included; much of soft-RoCE's work is charged to no
process. As the machine under it counts: what a virtual host's own process took meanwhile.""",
    """CPU, wander's own: its engine, lanes and the rest of its process at both ends, without the guest's threads. What
the kernel does for its sockets is in it, and much of what the kernel does for soft-RoCE is not: compare transports by
whole hosts.""",
    """Per GiB means per GiB of guest memory sent, pages that were sent again included: what sends more looks cheaper by
it, and a guest of a few MiB dear, for the fixed part is divided by little.""",
    """Goodput is guest bytes per second over the rounds with the guest running; its share is of what the named tool
reached on the same link in the same boot.""",
    """A run that was ended by force at its time limit did move, and counts; one that was given up did not: it is shown
as ×, and no ratio is made at its point.""",
    """Predictions are wander predict's, made just before each measured move. It rehearses: part of the guest's memory
goes to the destination and is thrown away, so every measured move comes after one. What it knows of costs was learnt
from earlier moves of the same run, at first from the warm-ups alone.""",
    "Several guests at once: total time until the last is there, the worst downtime, all bytes.",
    """What is made of one run only, such as the parts of a downtime, is made of the run in the middle: its parts add
up, and its file can be looked at.""",
)


def sentences(target):
    """`target`: how near the interval of total time shall be to its median."""
    return [
        TURNS,
        join(["Median and interval: the 95 % bootstrap interval of the median, computed exactly instead of by drawing, "
              "and widened for few runs (the “expanded percentile interval”: ",
              el("a", "Hesterberg, arXiv 1411.5279", href=HESTERBERG), MEDIAN]),
        f"Runs are repeated until the interval of total time is within ±{target:.0%} of the median, or the limit of "
        f"repeats is reached.",
        join(["Ratios: the median of the ratios of all pairs of runs of one boot, with a 98 % interval from the exact "
              "distribution of the rank sum (Hodges and Lehmann; ",
              el("a", "as R's wilcox.test gives it", href=WILCOXON), RATIO]),
        *OTHERS]
