"""How long `tandem --help` takes, against an interpreter that does nothing and one that imports Ray.

    python benchmarks/cli_start.py [rounds]

Alternating whole processes; prints medians in seconds and ratios. On two quiet cores: about 0.1 s.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "tandem --help": [sys.executable, "-m", "runtime", "--help"],
    "import ray": [sys.executable, "-c", "import ray"],
}


def measure(rounds: int) -> dict[str, float]:
    """Median seconds of each command over ``rounds`` alternating runs."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    """Measure and print."""
    medians = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
    base = medians["python -c pass"]
    for name, seconds in medians.items():
        print(f"{name:16} {seconds:6.3f} s  {seconds / base:5.1f} x")


if __name__ == "__main__":
    main()
