"""DeepSpeed: one directory for each tag, `global_stepN` by default, and `latest` beside them, written last."""

import re
from collections.abc import Iterable
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder
from ckptwatch.formats.deepspeed_tag import TagVerdict, is_tag, judge_tag, steps_in
from ckptwatch.formats.parts import fingerprint_of
from ckptwatch.formats.reading import read_text
from ckptwatch.model import Facts

LATEST = "latest"
_NUMBERED = re.compile(r"(?P<before>\D{0,100}+)(?P<number>\d{1,18}+)(?P<after>\D{0,100}+)")


class DeepSpeed(Family):
    name = "deepspeed"
    precedence = 12
    about = About(
        title="DeepSpeed",
        recognised="a directory with `*_model_states.pt` or `*_optim_states.pt` files: `global_stepN/`, or under a tag of "
                   "the script's own, as `0002000.pt/`",
        complete="every file is whole, no rank is missing (the model states tell how many there are), and the file `latest` "
                 "beside the directory, written last, names it or a later step",
        protected="what `latest` names: the trainer resumes from it",
        facts="step from the name, else `global_steps` in the model states; variants are entries there that hold tensors",
        forbidden_names=r"latest|global_step.*",
        forbidden_because="the trainer overwrites the file `latest`, and resumes from what it names; scripts take every "
                          "`global_step*` for a checkpoint",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        if is_tag(folder.files):
            yield self.claim_folder(folder, folder.path.with_name(LATEST))

    def examine(self, claim: Claim) -> Facts:
        verdict = judge_tag(claim.path)
        if not verdict.whole:
            return self.incomplete(verdict.evidence)
        reached, said = _reached(claim.path, verdict)
        if not reached:
            return self.incomplete(f"{verdict.evidence}, but {said}")
        return Facts(
            format=self.name, complete=True, evidence=f"{said}; {verdict.evidence}", step=verdict.step, epoch=verdict.epoch,
            variants=verdict.variants, keys=verdict.keys, content_digest=True,
            fingerprint=fingerprint_of(verdict.files, claim.path))

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        if LATEST in folder.files and (tag := read_text(folder.path / LATEST)) in folder.folders:
            yield folder.path / tag, f"`{LATEST}` names it: DeepSpeed resumes from it"


def _reached(path: Path, verdict: TagVerdict) -> tuple[bool, str]:
    """Has `latest` come as far as this directory, and what does it say?"""
    tag = read_text(path.with_name(LATEST))
    if not tag:
        return False, "`latest` beside it, which is written last, is missing or empty"
    if tag == path.name:
        return True, "`latest` names it"
    if "/" in tag or not tag.isprintable():
        return False, "`latest` holds no tag"
    own, other = _NUMBERED.fullmatch(path.name), _NUMBERED.fullmatch(tag)
    if own and other and (own["before"], own["after"]) == (other["before"], other["after"]):
        later = int(other["number"]) > int(own["number"])
    else:  # `latest.pt` after `0002000.pt`: only what lies there tells how far it is
        steps = steps_in(path.with_name(tag))
        later = steps is not None and verdict.step is not None and steps >= verdict.step
    return later, f"`latest` names {tag}, which is later" if later else f"`latest`, which is written last, still names {tag}"
