"""One number from several metrics: each mapped to 0 … 1 by a declared range, weighted, added."""

import math
from collections.abc import Mapping

from ckptwatch.core.metrics import COMPOSITE
from ckptwatch.model import Composite, CompositeTerm, Mode, Score


def present_terms(scores: Mapping[str, Score], composite: Composite) -> tuple[str, ...]:
    """The declared terms that have a finite score, in declared order."""
    return tuple(name for name in composite.terms if name in scores and math.isfinite(scores[name].value))


def composite_score(scores: Mapping[str, Score], composite: Composite) -> tuple[Score | None, str]:
    """Σ weight · clip((value − low) / (high − low), 0, 1) over the terms, higher is better; or None and why not.

    With missing="renormalise" the weights of the terms present are scaled by Σ|w| / Σ|w present|. Two composites are
    comparable only if their `definition` is the same: it lists the terms they rest on.
    """
    present = present_terms(scores, composite)
    absent = [f"{name} ({_problem(scores, name)})" for name in composite.terms if name not in present]
    if absent and composite.missing != "renormalise":
        return None, f"no composite without {', '.join(absent)}"
    empty = [name for name in present if composite.terms[name].high <= composite.terms[name].low]
    if empty:
        return None, f"no composite: the range of {', '.join(empty)} is empty"
    whole = math.fsum(abs(t.weight) for t in composite.terms.values())
    share = math.fsum(abs(composite.terms[name].weight) for name in present)
    if not present or share == 0:
        return None, f"no composite: no term has a score ({', '.join(absent) or 'none declared'})"
    scale = whole / share if absent else 1.0
    value = scale * math.fsum(_term(scores[name].value, composite.terms[name]) for name in present)
    counts = [n for name in present if (n := scores[name].n) is not None]
    score = Score(
        metric=COMPOSITE, value=value, n=min(counts, default=None), mode=Mode.MAX,
        definition=definition(present, composite),
    )
    return score, ""


def slopes(scores: Mapping[str, Score], composite: Composite) -> dict[str, float]:
    """How much the composite moves with each of its terms near these scores: weight / (high − low), 0 where it is clipped.

    {} where a term is missing: what is renormalised compares with its like only.
    """
    if len(present_terms(scores, composite)) != len(composite.terms):
        return {}
    return {name: term.weight / (term.high - term.low) if term.low <= scores[name].value <= term.high else 0.0
            for name, term in composite.terms.items() if term.high > term.low}


def definition(present: tuple[str, ...], composite: Composite) -> str:
    """The terms a composite rests on, in words."""
    terms = ", ".join(
        f"{t.weight:+g} × {name} in {t.low:g}..{t.high:g}"
        for name, t in composite.terms.items() if name in present
    )
    absent = [name for name in composite.terms if name not in present]
    return f"{terms}; renormalised without {', '.join(absent)}" if absent else terms


def _term(value: float, term: CompositeTerm) -> float:
    return term.weight * min(max((value - term.low) / (term.high - term.low), 0.0), 1.0)


def _problem(scores: Mapping[str, Score], name: str) -> str:
    return f"is {scores[name].value}" if name in scores else "no score"
