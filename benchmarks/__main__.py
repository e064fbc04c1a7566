"""All benchmarks, or those named: `python -m benchmarks [--quick] [NAME …]`."""

import argparse
import importlib

NAMES = ("queue_latency", "status_time", "scan", "facts")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes: a look, not a measurement")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    arguments = parser.parse_args()
    if unknown := [n for n in arguments.names if n not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)


if __name__ == "__main__":
    main()
