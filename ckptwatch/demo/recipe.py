"""Everything that a recipe for the demo names: originals, prompts and networks, made on the spot."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.demo import scenes
from ckptwatch.demo.networks import FEATURES_LAYER, LOGITS_LAYER, NAME, NetworkFiles, make_networks

SAMPLER = "ckptwatch.demo.sampler:create"
FEATURES_MODULE = "ckptwatch.demo.networks:register"

__all__ = ["FEATURES_LAYER", "FEATURES_MODULE", "LOGITS_LAYER", "NAME", "SAMPLER", "DemoInputs", "write_demo_inputs"]


@dataclass(frozen=True, kw_only=True)
class DemoInputs:
    """Absolute paths; the texts of a recipe follow from them."""

    reference: Path  # directory of originals, 000000.png …
    prompts: Path    # line i is the caption of original i
    networks: NetworkFiles

    def network_settings(self) -> dict[str, str]:
        """The fields of `model.Networks`, as text."""
        return {
            "features": NAME,
            "features_layer": FEATURES_LAYER,
            "logits_layer": LOGITS_LAYER,
            "features_weights": str(self.networks.features),
            "features_module": FEATURES_MODULE,
            "clip": f"local-dir:{self.networks.clip}",
            "clip_pretrained": "",
            "lpips": "alex",
            "lpips_weights": str(self.networks.lpips),
        }


def write_demo_inputs(
    directory: Path, count: int, *, seed: int = 0, on_progress: Callable[[str, float], None] | None = None
) -> DemoInputs:
    """Write `count` originals, their prompts and the networks below `directory`; networks that are up to date stay.

    directory/reference/000000.png …   directory/prompts.txt   directory/networks/
    `on_progress` is that of `make_networks`. Takes about 25 s on one core the first time.
    """
    directory = directory.absolute()
    reference, prompts = scenes.write_references(directory, count)
    networks = make_networks(directory / "networks", seed, on_progress)
    return DemoInputs(reference=reference, prompts=prompts, networks=networks)
