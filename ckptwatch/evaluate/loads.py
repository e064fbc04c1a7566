"""Can the weights of a checkpoint be loaded? `python -m ckptwatch.evaluate.loads PATH [--variant NAME]… [--trusted]`.

A process of its own, so that whatever loading does ends with it. Prints one line of JSON: {"loaded": [{"variant", "tensors",
"numbers"}, …]}; {"unknown": true} for a layout that only its own sampler can load; {"error", "hint"}. Exit status 0.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import failure_of


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.evaluate.loads", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--variant", action="append", default=[], help="weight set; default: everything")
    parser.add_argument("--trusted", action="store_true", help="objects of any class may be unpickled")
    arguments = parser.parse_args(argv)
    answer = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer of ours
    os.write(answer, json.dumps(_answer(arguments)).encode() + b"\n")
    return 0


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    from ckptwatch.evaluate.weights import is_readable_format, load_variant

    try:
        if not arguments.path.name.endswith((".pt", ".pth", ".ckpt")) and not is_readable_format(arguments.path):
            return {"unknown": True}
        loaded = []
        for variant in arguments.variant or [""]:
            tensors = load_variant(arguments.path, variant, trusted=arguments.trusted)
            loaded.append({"variant": variant, "tensors": len(tensors), "numbers": sum(t.numel() for t in tensors.values())})
        return {"loaded": loaded}
    except (EvaluationError, MemoryError, OSError) as error:
        failure = failure_of(error)
        return {"error": failure.message, "hint": failure.hint}


if __name__ == "__main__":
    sys.exit(main())
