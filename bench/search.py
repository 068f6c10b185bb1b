"""Time and peak memory of `mae search` on random features: `python bench/search.py 100000 1000000`.

Each size in a process of its own: standardizing, 16 queries, and (up to 100,000) duplicates.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from torchmae.eval.neighbors.nearest import Space, close_blocks, exact, groups

WIDTH, QUERIES, MOST_PAIRED = 192, 16, 100_000


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int) -> dict[str, float]:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    before = peak_mb()
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))
    found = {"images": count, "before_mb": before, "features_mb": peak_mb() - before}
    began = time.perf_counter()
    space = Space(rows)
    rows = space.place(rows)
    found["place_s"] = time.perf_counter() - began
    began = time.perf_counter()
    exact(rows, cpu)(space.place(queries), 8)
    found["queries_s"] = time.perf_counter() - began
    found["queries_peak_mb"] = peak_mb()
    if count <= MOST_PAIRED:
        rows[-5:] = rows[:5]  # planted copies
        began = time.perf_counter()
        linked = groups(count, close_blocks(rows, 0.02, cpu))
        found["duplicates_s"] = time.perf_counter() - began
        assert len(linked) == 5
        found["duplicates_peak_mb"] = peak_mb()
    return found


if __name__ == "__main__":
    sizes = [int(word) for word in sys.argv[1:]]
    if len(sizes) == 1:
        print(json.dumps(measure(sizes[0])))
    else:
        lines = [
            subprocess.run(
                [sys.executable, __file__, str(size)], capture_output=True, text=True, check=True
            ).stdout
            for size in sizes
        ]
        print("".join(lines), end="")
        out = Path(__file__).parent / "results" / "search-2-cores.json"
        out.write_text(json.dumps([json.loads(line) for line in lines], indent=1) + "\n")
