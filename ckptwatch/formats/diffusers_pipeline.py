"""Diffusers pipelines: one directory per component, then `model_index.json`, which lists them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.pretrained import is_weights, judge_weights, short_list
from ckptwatch.formats.pretrained_tree import first_broken, is_run
from ckptwatch.formats.reading import read_json
from ckptwatch.formats.sharded_safetensors import Verdict
from ckptwatch.formats.tree import files_below
from ckptwatch.model import Facts

INDEX = "model_index.json"
# Names that nobody gives to a run, so that they tell a pipeline on its way even without its index.
_TELLING = frozenset({
    "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "scheduler", "safety_checker", "feature_extractor",
    "image_encoder",
})
_MODELS = frozenset({
    "unet", "unet_2", "transformer", "transformer_2", "vae", "vqvae", "movq", "controlnet", "prior", "decoder", "vocoder",
    "motion_adapter", "projection_model", "language_model", "image_projection", "connectors", "audio_vae",
})
COMPONENTS = _TELLING | _MODELS | {f"{name}_ema" for name in _MODELS} | {
    "tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4", "image_processor", "processor", "prior_scheduler",
    "prior_tokenizer", "prior_text_encoder", "prior_image_encoder", "prior_image_processor", "image_noising_scheduler",
    "image_normalizer",
}
_HARMLESS = frozenset({"README.md", ".gitattributes"})
_SAVE = re.compile(r"checkpoint[-_]\d{1,18}+")


class DiffusersPipeline(Family):
    name = "diffusers-pipeline"
    precedence = 12
    about = About(
        title="Diffusers pipeline",
        recognised="a directory with `model_index.json`, or with nothing but directories named as components are "
                   "(`text_encoder/`, `scheduler/`, `unet/`, …). Where further checkpoints lie in it, as in the output "
                   "directory of a training script: `model_index.json` and the component directories together. A "
                   "component alone, `unet/` with `diffusion_pytorch_model.safetensors`, is taken for a part of a "
                   "pipeline on its way",
        complete="`model_index.json`, written last, can be read; every component it lists is there, its weights are whole "
                 "and its configuration can be read",
        facts="step and epoch from the name; `unet_ema/` beside `unet/` makes two variants",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        components = folder.folders & COMPONENTS
        if INDEX in folder.files:
            whole = not folder.is_root and not is_run(folder)
            yield self.claim_folder(folder) if whole else self.claim_files(folder, INDEX, *components)
        elif components & _TELLING and components == folder.folders and folder.files <= _HARMLESS and not (
                _SAVE.fullmatch(folder.name)):
            yield self.claim_folder(folder)
        elif _is_component(folder) and not is_run(folder):
            yield self.claim_folder(folder)  # else it would pass for a model of its own until the index is written

    def examine(self, claim: Claim) -> Facts:
        top = claim.path if claim.whole else claim.path.parent
        try:
            listed = _components_in(read_json(top / INDEX))
        except FileNotFoundError:
            return self.incomplete(self._without_index(top))
        except ValueError as error:
            return self.incomplete(f"{INDEX}: {error}")
        try:
            emas = [f"{name}_ema" for name in listed if (top / f"{name}_ema").is_dir()]
            weights = [_judge(top / name) for name in (*listed, *emas)]
        except ValueError as error:
            return self.incomplete(str(error))
        held = [verdict for verdict in weights if verdict.files]
        if not held:
            return self.incomplete("no component holds weights")
        evidence = f"{INDEX} lists {len(listed)} components, all present and whole: {short_list([v.evidence for v in held])}"
        files = [path for verdict in held for path in verdict.files]
        return Facts(format=self.name, complete=True, evidence=evidence, content_digest=True,
                     fingerprint=fingerprint_of(files, top), variants=variants_of(emas))

    def _without_index(self, top: Path) -> str:
        present = sorted(path.name for path in top.iterdir() if path.name in COMPONENTS)
        if not present:
            return f"a component, as of a pipeline; {INDEX}, which is written last, is not beside it"
        return f"{INDEX}, which is written last, is missing; components present: {', '.join(present)}"


def variants_of(emas: Iterable[str]) -> tuple[str, ...]:
    """`unet_ema` → ("unet", "unet_ema")"""
    return tuple(name for ema in sorted(emas) for name in (ema.removesuffix("_ema"), ema))


def _is_component(folder: Folder) -> bool:
    if folder.name not in COMPONENTS:
        return False
    return any(name.startswith("diffusion_pytorch_model") or (folder.name in _TELLING and is_weights(name))
               for name in folder.files)


def _components_in(index: Any) -> list[str]:
    """The names of the components a pipeline was saved with. Raises ValueError."""
    if not isinstance(index, dict):
        raise ValueError("no list of components")
    names = [
        name for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2
        and all(isinstance(v, str) for v in value)
    ]
    if not names or len(names) > 1000:
        raise ValueError(f"lists {len(names)} components")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > 255:
            raise ValueError(f"lists {name[:100]!r}, which is no name of a directory in its own")
    return sorted(names)


def _judge(directory: Path) -> Verdict:
    """One component. Raises ValueError, in words, for the first thing that is missing or broken; OSError."""
    if not directory.is_dir():
        raise ValueError(f"component {directory.name} is missing")
    files = files_below(directory)
    names = frozenset(path.name for path in files if path.parent == directory)
    if not names:
        raise ValueError(f"component {directory.name} is empty")
    verdict = Verdict(whole=True, evidence="")
    if "config.json" in names or any(map(is_weights, names)):  # schedulers and tokenizers have other names
        verdict = judge_weights(directory, names)
        if not verdict.whole:
            raise ValueError(f"{directory.name}/{verdict.evidence}")
        if "config.json" not in names:
            raise ValueError(f"{directory.name}/config.json is missing")
    if evidence := first_broken(directory.parent, files, besides=verdict.files):
        raise ValueError(evidence)
    return Verdict(whole=True, evidence=f"{directory.name}/{verdict.evidence}", files=verdict.files)
