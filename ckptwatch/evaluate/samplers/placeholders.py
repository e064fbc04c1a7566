"""Placeholders like {step:07d} in argv and directory patterns of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import recipe_error, sampler_error


@dataclass(frozen=True)
class Unset:
    """In place of a value that the recipe does not set."""

    key: str  # what would have to be set


def fill(pattern: str, values: Mapping[str, Any], purpose: str) -> str:
    """`pattern` with each {name} or {name:format} replaced; `{{` stands for a brace.

    Raises EvaluationError: RECIPE for an unknown name, a bad format or a value that is Unset, SAMPLER for a value this
    checkpoint does not have (None).
    """
    def problem(cause: str, hint: str) -> EvaluationError:
        return recipe_error(f"fill in {purpose}", cause, path=pattern, hint=hint, retryable=False)

    try:
        return pattern.format_map(_Values(values, purpose, pattern))
    except KeyError as error:
        known = " ".join(f"{{{name}}}" for name in values)
        raise problem(f"unknown placeholder {{{error.args[0]}}}", f"known are {known}; write {{{{ for a brace") from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise problem(str(error), "placeholders look like {step} or {step:07d}; write {{ and }} for braces") from error


class _Values(dict):
    def __init__(self, values: Mapping[str, Any], purpose: str, pattern: str) -> None:
        super().__init__(values)
        self._purpose = purpose
        self._pattern = pattern

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is None:
            raise sampler_error(
                f"fill in {self._purpose}", f"the {name} of this checkpoint is not known", path=self._pattern,
                hint=f"use another placeholder than {{{name}}}, or name checkpoints so that it can be read",
                retryable=False,
            )
        if isinstance(value, Unset):
            raise recipe_error(
                f"fill in {self._purpose}", f"{{{name}}} has no value: the recipe has no {value.key}", path=self._pattern,
                hint=f"set `{value.key}` of the recipe, or leave {{{name}}} out", retryable=False,
            )
        return value
