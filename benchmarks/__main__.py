"""All benchmarks, or those named: `python -m benchmarks [--quick] [--device cuda:0] [NAME …]`."""

import argparse
import importlib

ON_DEVICE = ("evaluation", "limit")
NAMES = ("queue_latency", "status_time", "scan", "log_lines", "log_ticks", "facts", "fid_maths", "memory", *ON_DEVICE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes: a look, not a measurement")
    parser.add_argument("--device", default="cpu", help=f"for {', '.join(ON_DEVICE)}: cpu, cuda:0, …")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    arguments = parser.parse_args()
    if unknown := [n for n in arguments.names if n not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        options = {"device": arguments.device} if name in ON_DEVICE else {}
        importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick, **options)


if __name__ == "__main__":
    main()
