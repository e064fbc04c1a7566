"""Can the standard networks be had here? Loads them through the production code; prints what is missing, exit status 1."""

import sys

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.networks import ClipNetwork, FeatureNetwork, LpipsNetwork
from ckptwatch.model import Networks


def main() -> int:
    standard = Networks()
    missing = []
    for load in (
        lambda: FeatureNetwork(standard, (standard.features_layer, standard.logits_layer), "cpu"),
        lambda: ClipNetwork(standard, "cpu"),
        lambda: LpipsNetwork(standard, "cpu"),
    ):
        try:
            load()
        except EvaluationError as error:
            missing.append(str(error))
    print("\n".join(missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
