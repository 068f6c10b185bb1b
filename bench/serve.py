"""How long the page of mae serve waits for its answers: `python bench/serve.py RUN IMAGE [ROUNDS]`.

Whole requests over 127.0.0.1, base64 and JSON included, as the browser makes them.
"""

import json
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

from torchmae.tasks.serve.config import Serve
from torchmae.tasks.serve.run import opened


def main(run: str, image: str, rounds: int = 20) -> None:
    with opened(Serve(run, port=0)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = server.url.rsplit("/", 2)[0]

        def ask(name: str, body: bytes | None = None) -> Any:
            headers = {} if body is None else {"Origin": origin}
            request = urllib.request.Request(server.url + name, body, headers)
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)

        data = Path(image).read_bytes()
        times: dict[str, list[float]] = {"image": [], "mask": [], "reconstruct": []}
        for seed in range(rounds):
            began = time.perf_counter()
            pixels = ask("image", data)["pixels"]
            read = time.perf_counter()
            hidden = ask(f"mask?masking=random&ratio=0.75&seed={seed}")["hidden"]
            drawn = time.perf_counter()
            asked = {"pixels": pixels, "hidden": hidden, "true_statistics": False}
            ask("reconstruct", json.dumps(asked).encode())
            done = time.perf_counter()
            for name, start, end in zip(times, (began, read, drawn), (read, drawn, done)):
                times[name].append(1000 * (end - start))
        about = server.answers.about
        print(f"{about['size']} px, {about['patches']} patches, {torch.get_num_threads()} threads")
        for name, all_of in times.items():
            middle = statistics.median(all_of)
            print(f"{name}: median {middle:.0f} ms, {min(all_of):.0f} to {max(all_of):.0f}")
        server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
