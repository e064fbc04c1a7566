"""The configuration with which a component was saved, against that of the component whose weights it is to replace."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptwatch.evaluate.failures import checkpoint_error
from ckptwatch.evaluate.samplers.base import Warn
from ckptwatch.evaluate.samplers.replacing import shortened
from ckptwatch.formats.reading import read_json

_SIZE = "sample_size"  # only the size of images where nothing else says it


def read_configuration(file: Path | None) -> dict[str, Any]:
    """The content of a config.json; nothing where there is none. Raises EvaluationError (CHECKPOINT)."""
    if file is None:
        return {}
    try:
        saved = read_json(file)
    except (OSError, ValueError) as error:
        raise checkpoint_error("read configuration of component", str(error), path=file) from error
    return saved if isinstance(saved, dict) else {}


def compare_configurations(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], component: str, checkpoint: Path, warn: Warn,
) -> None:
    """Weights of equal names and shapes may still be of another network: with other heads, another activation.

    Only what both configurations have is compared, because each version of the library adds entries; and no dropout, which
    plays no part in sampling. Raises EvaluationError (CHECKPOINT) naming the first few that differ.
    """
    plain = json.loads(json.dumps(dict(ours), default=str))  # tuples become lists, as in a file
    differing = {
        key: f"{key} {theirs[key]}, there {plain[key]}" for key in plain
        if key in theirs and not key.startswith("_") and "dropout" not in key and theirs[key] != plain[key]
    }
    if size := differing.pop(_SIZE, ""):
        warn(f"the checkpoint's {component} has {size}: images are of the base's size unless `image_size` is set")
    if differing:
        raise checkpoint_error(
            "put weights into network", f"it is configured otherwise than the base's {component}: "
            f"{shortened(differing.values(), '; ')}", path=checkpoint, retryable=False,
            hint="set `diffusers.base` to the pipeline it was trained from",
        )
