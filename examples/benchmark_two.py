"""Hold two models' latency against each other, measured in turn on the same photographs.

The ratio has an interval: where it contains 1, the two are equally fast as far as this machine can tell.

    python examples/benchmark_two.py DATA float.onnx int8.onnx
"""

import sys

import leandetr


def main(data: str, first: str, second: str, repeats: int = 50) -> float:
    reference, other = leandetr.benchmark([first, second], data, repeats=repeats, threads=1)
    print(f"{first}: {reference['latency_ms']:.1f} ms on {reference['runtime']}")
    print(f"{second}: {other['latency_ms']:.1f} ms, {other['speedup']:.2f} times as fast", end=" ")
    print(f"[{other['speedup_low']:.2f}, {other['speedup_high']:.2f}]")
    return other["speedup"]


if __name__ == "__main__":
    main(*sys.argv[1:])
