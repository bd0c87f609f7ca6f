"""What `leandetr serve` answers a second, how long a request waits, and what its process holds in memory.

    python benchmarks/serve.py student.onnx PHOTOS [--clients 1 8 100] [--requests 200] [-- --threads 1 --engine openvino]

PHOTOS is a folder; what stands behind `--` goes to `leandetr serve`. The server is a process of its own on this machine, the
clients are threads of this one, each with a connection that stays open and the next photograph at once; both share the cores.
Every number of clients is a row: photographs a second, and the median and 95th percentile of the milliseconds from a request
to its answer. "mixed" are 100 requests at once, of which a quarter are photographs of 48 million pixels and a quarter broken,
empty, or larger than is taken; whoever is told to come again does. Memory is the process's resident set.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

START = [sys.executable, "-c", "from leandetr.cli import main; main()", "serve"]


@contextmanager
def serving(model: str, options: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """The address ("127.0.0.1:8000") and the process of a server."""
    command = [*START, model, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait())
        try:
            yield urlsplit(line.rpartition(" (")[0].rpartition(" ")[2]).netloc, psutil.Process(process.pid)
        finally:
            process.terminate()


def ask(address: str, contents: Sequence[bytes]) -> list[tuple[int, float]]:
    """Status and milliseconds of each, one after the other; after a 503 it is sent again in a second, which counts."""
    connection, answers = http.client.HTTPConnection(address, timeout=600), []
    for content in contents:
        start = time.perf_counter()
        while True:
            connection.request("POST", "/detect", content)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 503:
                break
            time.sleep(float(answer.headers["Retry-After"]))
        if answer.status >= 400:  # what was too much is not read, and the connection not used again
            connection.close()
        answers.append((answer.status, 1000 * (time.perf_counter() - start)))
    connection.close()
    return answers


def measure(address: str, process: psutil.Process, shares: Sequence[Sequence[bytes]]) -> tuple[str, Counter[int]]:
    """A row of the table, and the statuses: each share is a client's."""
    start, peak = time.perf_counter(), 0
    with ThreadPoolExecutor(len(shares)) as threads:
        clients = [threads.submit(ask, address, share) for share in shares]
        while not all(client.done() for client in clients):
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    answers = [answer for client in clients for answer in client.result()]
    times = sorted(milliseconds for _, milliseconds in answers)
    numbers = len(times) / seconds, statistics.median(times), times[int(0.95 * (len(times) - 1))], peak / 1e6
    return "  ".join(f"{number:8.1f}" for number in numbers), Counter(status for status, _ in answers)


def mixed(photographs: Sequence[bytes]) -> list[list[bytes]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    huge, larger = BytesIO(), BytesIO()
    noise.resize((8000, 6000)).save(huge, "JPEG")
    noise.resize((9000, 6000)).save(larger, "JPEG")
    bad = [photographs[0][:500], b"", b"no image", bytes(33_000_000), larger.getvalue()]
    contents = [*islice(cycle(photographs), 50), *[huge.getvalue()] * 25, *islice(cycle(bad), 25)]
    return [[contents[number]] for number in np.random.default_rng(0).permutation(len(contents)).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 100])
    parser.add_argument("--requests", type=int, default=200, help="of each row")
    arguments, options = parser.parse_known_args()
    files = sorted(file for file in arguments.photographs.iterdir() if file.suffix.lower() in (".jpg", ".png"))
    photographs = [file.read_bytes() for file in files[: arguments.requests]]
    with serving(arguments.model, [option for option in options if option != "--"]) as (address, process):
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/health")
        about = json.load(connection.getresponse())
        connection.close()
        print(f"{about['model']} on {about['engine']}, {process.memory_info().rss / 1e6:.0f} MB once it is ready")
        print(f"{'clients':>8}  {'a second':>8}  {'p50 ms':>8}  {'p95 ms':>8}  {'peak MB':>8}  statuses")
        for count in arguments.clients:
            sent = list(islice(cycle(photographs), max(count, arguments.requests)))
            row, statuses = measure(address, process, [sent[number::count] for number in range(count)])
            print(f"{count:8}  {row}  {dict(statuses)}", flush=True)
        row, statuses = measure(address, process, mixed(photographs))
        print(f"{'mixed':>8}  {row}  {dict(sorted(statuses.items()))}")


if __name__ == "__main__":
    main()
