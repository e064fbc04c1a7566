"""config.example.yaml shows every key of the schema, is valid, and tells the truth about defaults."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ckptwatch.config import Config, load_config, yields
from ckptwatch.core.amounts import parse_duration
from ckptwatch.core.metrics import COMPOSITE, METRICS

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
LINES = EXAMPLE.read_text(encoding="utf-8").splitlines()


def schema_keys(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted keys of a model and everything below; list items and mapping values add nothing to the path."""
    for name, field in model.model_fields.items():
        key = f"{above}{field.alias or name}"
        yield key, field
        for inner in models_in(field.annotation):
            yield from schema_keys(inner, f"{key}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def example_keys() -> dict[str, int]:
    """Dotted keys of the example, with the line (from 0) where each first stands."""
    found: dict[str, int] = {}
    _walk(yaml.compose(EXAMPLE.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), "", found)
    return found


NAMED = ("recipes.", "recipes.composite.", "runs.keep.best.")  # mappings whose keys are names of the user's own


def _walk(node: yaml.Node, above: str, found: dict[str, int], *, inside: bool = False) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _walk(item, above, found)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if above in NAMED and not inside:
                _walk(value, above, found, inside=True)
                continue
            path = f"{above}{key.value}"
            found.setdefault(path, key.start_mark.line)
            _walk(value, f"{path}.", found)


def is_section(field: FieldInfo) -> bool:
    return any(models_in(field.annotation))


SCHEMA = dict(schema_keys(Config))
WHERE = example_keys()


def test_it_is_valid() -> None:
    settings = load_config(EXAMPLE)
    assert settings.runs and settings.recipes and settings.roots
    assert set(yields(settings.recipes["t2i"])) >= {*METRICS, COMPOSITE}, "it is the example of every built-in metric"


def test_every_key_of_the_schema_is_in_it() -> None:
    missing = set(SCHEMA) - set(WHERE)
    assert not missing, f"config.example.yaml lacks {sorted(missing)}"


@pytest.mark.parametrize("key", sorted(k for k, f in SCHEMA.items() if not is_section(f)))
def test_the_default_of_every_key_is_told_and_true(key: str) -> None:
    told = _told(WHERE[key])
    field = SCHEMA[key]
    if field.is_required():
        assert told in (None, "required"), f"{key} has no default"
        return
    assert told is not None, f"line {WHERE[key] + 1}: say the default of {key}"
    default = field.get_default(call_default_factory=True)
    if default is None:
        assert told.startswith("none"), f"{key} is none by default, the example says {told!r}"
    elif isinstance(default, float) and not re.fullmatch(r"[\d.]+", told):
        assert parse_duration(told) == default
    else:
        default = list(default) if isinstance(default, tuple) else default
        assert yaml.safe_load(told) == default, f"{key} is {default!r} by default, the example says {told!r}"


def _told(line: int) -> str | None:
    """What the comment on a key's line, else the comment block above it, says about its default."""
    above = line
    while above > 0 and LINES[above - 1].lstrip().startswith("#"):
        above -= 1
    for text in (LINES[line], "\n".join(LINES[above:line])):
        if match := re.search(r"#.*?\bdefault: ([^;\n]+)", text):
            word = match[1].strip()
            in_brackets = re.match(r"\[[^\]]*\]", word)
            return "none" if word.startswith("none") else in_brackets[0] if in_brackets else word.split(", ")[0]
        if re.search(r"#.*\brequired$", text, re.MULTILINE):
            return "required"
    return None
