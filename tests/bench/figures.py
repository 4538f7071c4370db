"""What the benches make of repeated measurements: medians, spread, and paired ratios with an interval."""

import random
import statistics

RESAMPLES = 10000


def quantile(values, share):
    """Linear between the neighbours; share 0..1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values):
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": list(values)}


def paired_ratio(ours, theirs, seed=1):
    """Median of ours[i] / theirs[i], measured one after the other, with the 95 % bootstrap interval of that median."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return {"median": statistics.median(ratios), "low": medians[int(0.025 * RESAMPLES)],
            "high": medians[int(0.975 * RESAMPLES)], "values": ratios}
