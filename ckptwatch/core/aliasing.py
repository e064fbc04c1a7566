"""Which names should point to which checkpoints: `best.pt`, `last.pt`, `best_AP_epoch_150.pth`."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

from ckptwatch.core.naming import suffix_of
from ckptwatch.model import Alias, AliasRule, Checkpoint, CheckpointState, Place

FIELDS = ("suffix", "metric", "value", "step", "epoch")
_UNKNOWN = "unknown"
_LONGEST = 255  # NAME_MAX


def plan_aliases(
    *, directory: Path, rule: AliasRule, best: Place | None, best_checkpoint: Checkpoint | None, last: Checkpoint | None,
    monitored: Sequence[tuple[Place, Checkpoint]] = (),
) -> tuple[Alias, ...]:
    """The aliases to have in `directory`. No two share a link; none points to what is not there, or to itself.

    `monitored` are the best by each monitor of the keep rules.
    """
    wanted = (
        (rule.best, best_checkpoint if best is not None else None, best),
        (rule.last, last, best if _same(last, best_checkpoint) else None),
        *((rule.monitors, checkpoint, place) for place, checkpoint in monitored),
    )
    aliases: dict[Path, Alias] = {}
    for template, checkpoint, place in wanted:
        if template is None or checkpoint is None or checkpoint.state is not CheckpointState.COMPLETE:
            continue
        link = directory / _name(template, checkpoint, place)
        # Where both templates give one name, it is that of the best. A real checkpoint of that name is left alone.
        if link != checkpoint.path:
            aliases.setdefault(link, Alias(link=link, target=checkpoint.path))
    return tuple(aliases.values())


def check_template(template: str) -> str:
    """What is wrong with a template, or ""."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return f"{template!r}: {error}; write {{{{ and }}}} for braces in the name"
    fields = (_field_problem(name, spec, conversion) for _, name, spec, conversion in parts if name is not None)
    problem = next(filter(None, fields), "") or _text_problem("".join(text for text, *_ in parts))
    return f"{template!r}: {problem}" if problem else ""


def _field_problem(name: str, spec: str | None, conversion: str | None) -> str:
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
        known = f"did you mean {{{near[0]}}}?" if near else f"known are {', '.join(f'{{{f}}}' for f in FIELDS)}"
        return f"there is no {{{name}}}; {known}"
    # A format such as :07d would fail on the day a checkpoint has no step.
    return f"write plain {{{name}}}, without a format" if spec or conversion else ""


def _text_problem(text: str) -> str:
    if re.search(r"[/\x00-\x1f]", text):
        return "must be a plain file name, without directories"
    if not text.strip(". "):
        return "needs some text besides its fields"
    return "is too long for a file name" if len(text.encode(errors="surrogatepass")) > _LONGEST - 100 else ""


def _same(a: Checkpoint | None, b: Checkpoint | None) -> bool:
    return a is not None and b is not None and a.id == b.id


def _name(template: str, checkpoint: Checkpoint, place: Place | None) -> str:
    values = {
        "suffix": suffix_of(checkpoint.path.name),
        "metric": place.score.metric if place else _UNKNOWN,
        "value": f"{place.score.value:.4g}" if place else _UNKNOWN,
        "step": _UNKNOWN if checkpoint.step is None else str(checkpoint.step),
        "epoch": _UNKNOWN if checkpoint.epoch is None else str(checkpoint.epoch),
    }
    return in_a_name(template.format(**values)).encode()[:_LONGEST].decode(errors="ignore")


def in_a_name(text: str) -> str:
    """Fit for a file's name: a metric may be called val/acc."""
    return re.sub(r"[/\x00-\x1f]", "_", text)
