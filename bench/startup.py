"""Start-up: `kt --help` against an interpreter that only imports click, taking turns.

python bench/startup.py [--rounds 25]
"""

import argparse
import sys

from measured import interleaved, kt_command, median_ratio, medians, report, run, seconds, target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    ways = {
        "kt --help": lambda: seconds(lambda: run([kt_command(), "--help"])),
        "import click": lambda: seconds(lambda: run([sys.executable, "-c", "import click"])),
        "import nothing": lambda: seconds(lambda: run([sys.executable, "-c", ""])),
    }
    found = interleaved(ways, rounds)
    whole = {name: round(number, 4) for name, number in medians(found).items()}
    ratio = median_ratio(found, "kt --help", "import click")
    report("startup", {"seconds": whole, "rounds": rounds, "kt --help / import click": target(ratio, 1.5, at_most=True)})


if __name__ == "__main__":
    main()
