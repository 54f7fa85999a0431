"""Means with standard deviations, as the results hold them and as tables show them."""

from collections.abc import Iterable
from statistics import mean, stdev


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Return `mean` and `sd` of some values, to two decimals; of a single value there is no `sd`."""
    values = list(values)
    return {"mean": round(mean(values), 2), "sd": round(stdev(values), 2) if len(values) > 1 else None}


def plus_minus(value: dict[str, float | None]) -> str:
    """Return the text of what `spread` gives, such as `90.1 ± 0.2`."""
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")


def average(report: dict) -> float:
    """Return the mean accuracy over the tasks of a FusionBench report, in percent."""
    return 100 * report["average"]["accuracy"]
