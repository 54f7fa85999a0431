"""Count how runs end that are damaged, killed, started side by side, and asked from many threads."""

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # for `world`

from . import cases, cost, kills, mutations, side_by_side, threads
from .verdicts import KINDS, REFUSED, as_json

COUNTS = {
    # name -> (short, long): how many, and the function
    "mutations": (200, 1000, mutations.count),
    "side_by_side": (8, 40, side_by_side.count),
    "kills": (12, 180, kills.count),
    "threads": (8, 32, threads.count),
}


def main() -> None:
    """Count, print a table, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    what = [*COUNTS, "host_kills", "cases", "cost"]
    parser.add_argument("what", nargs="*", default=what, help=f"of {', '.join(what)} (default: all)")
    parser.add_argument("--long", action="store_true", help="as many as the README's figures are of")
    parser.add_argument("--tries", type=int, help="another number of attempts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="another checkout, to compare the cost of a run with")
    parser.add_argument("--json", type=Path, help="write all that was found into this file")
    options = parser.parse_args()
    if unknown := set(options.what) - set(what):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    print(f"{'':14}" + "".join(f"{column:>16}" for column in ("tried", *KINDS)))
    for name in options.what:
        found[name] = _count(name, options)
        if name == "cost":
            print(json.dumps(found[name], indent=2))
        else:
            print(
                f"{name:14}" + "".join(f"{found[name][column]:16}" for column in ("tried", *KINDS)),
                flush=True,
            )
    for name, outcome in found.items():
        for verdict in outcome.get("not right", []):
            if verdict["kind"] != REFUSED:
                print(f"{name}: {verdict['kind']}: {verdict['name']}: {verdict['said'][:300]}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _count(name: str, options: argparse.Namespace) -> dict[str, Any]:
    if name == "cost":
        return cost.measure(5 if options.long else 2, options.against)
    if name == "cases":
        return as_json(cases.count())
    if name == "host_kills":
        from . import hosts

        with TemporaryDirectory() as folder:
            tries = options.tries or (20 if options.long else 2)
            return as_json(kills.count(tries, options.seed, hosts.programs(Path(folder))))
    short, long, count = COUNTS[name]
    return as_json(count(options.tries or (long if options.long else short), seed=options.seed))


if __name__ == "__main__":
    main()
