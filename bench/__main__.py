"""``python -m bench [name]``: run one benchmark, or all."""

import importlib
import pkgutil
import statistics
import subprocess
import sys
from pathlib import Path

import bench
from lib.base.files import DATA, write_json
from lib.results.records import environment


def main(chosen: list[str]) -> None:
    """Run the benchmarks.

    Of several each has a process of its own, whose memory no other one has used: a step of SAE training is a tenth
    slower behind others.
    """
    folder = Path(bench.__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name != "__main__")
    unknown = set(chosen) - set(names)
    if unknown:
        sys.exit(f"error: unknown benchmark {sorted(unknown)}; there are {names}")
    todo = chosen or names
    if len(todo) == 1:
        _measure(todo[0])
        return
    for name in todo:
        subprocess.run([sys.executable, "-m", "bench", name], check=True)


def _measure(name: str) -> None:
    """Write a benchmark's list of medians, with minimum and maximum over the rounds."""
    rows = []
    module = importlib.import_module(f"bench.{name}")
    for metric, unit, values in module.measure():
        row = {"name": metric, "value": statistics.median(values), "unit": unit, "n": len(values)}
        rows.append(row | {"min": min(values), "max": max(values), "profile": module.PROFILE} | environment())
        spread = f"min {min(values):.4g}, max {max(values):.4g}, n = {len(values)}"
        print(f"{name}: {metric} = {row['value']:.4g} {unit} ({spread})")
    write_json(DATA / "bench" / f"{name}.json", rows)
    if hasattr(module, "draw"):
        module.draw(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
