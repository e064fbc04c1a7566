"""What can be typed, configured or seen is documented, and what the documentation points to exists."""

import re
from pathlib import Path

import pytest
import typer.main
from test_example_config import SCHEMA

from ckptwatch.cli.app import app
from ckptwatch.core.metrics import COMPOSITE, METRICS
from ckptwatch.formats.base import formats
from ckptwatch.status import Level

HERE = Path(__file__).parents[2]
PAGES = {p: p.read_text(encoding="utf-8") for p in (HERE / "README.md", *sorted((HERE / "docs").glob("*.md")))}
EVERYTHING = "\n".join(PAGES.values())
CONFIGURATION = PAGES[HERE / "docs" / "configuration.md"]
# By the key in their heading: "### `recipes.NAME.sampler`" is that of recipes.sampler.
SECTIONS = {heading.replace(".NAME", ""): text for heading, text in re.findall(
    r"^##+ `([\w.]+)`[^\n]*\n(.*?)(?=^##|\Z)", CONFIGURATION, re.MULTILINE | re.DOTALL)}
COMMANDS = typer.main.get_command(app).commands


def mentioned(word: str, text: str = EVERYTHING) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert mentioned(f"ckptwatch {name}"), f"no page shows `ckptwatch {name}`"


@pytest.mark.parametrize(("command", "option"), sorted(
    {(name, option) for name, command in COMMANDS.items() for parameter in command.params for option in parameter.opts
     if option.startswith("-")}))
def test_every_option_is_documented(command: str, option: str) -> None:
    assert mentioned(option), f"no page mentions {option} of `ckptwatch {command}`"


@pytest.mark.parametrize("key", sorted(SCHEMA))
def test_every_configuration_key_is_documented(key: str) -> None:
    parts = key.split(".")
    for cut in range(len(parts), 0, -1):
        section, rest = SECTIONS.get(".".join(parts[:cut])), ".".join(parts[cut:])
        if section is not None:
            # `weights`, or where a table covers two levels `features.weights`, which also explains `features`.
            assert not rest or re.search(rf"^\| `{re.escape(rest)}[`.]", section, re.MULTILINE), f"{key} is not explained"
            return
    pytest.fail(f"docs/configuration.md has no section for {key}")


@pytest.mark.parametrize("metric", [*METRICS, COMPOSITE])
def test_every_metric_is_documented(metric: str) -> None:
    assert mentioned(metric, PAGES[HERE / "docs" / "metrics.md"])


@pytest.mark.parametrize("name", [f.name for f in formats() if type(f).__module__.startswith("ckptwatch.")])
def test_every_format_is_documented(name: str) -> None:
    assert mentioned(name, PAGES[HERE / "docs" / "formats.md"])


@pytest.mark.parametrize("level", list(Level))
def test_every_level_of_status_is_documented(level: Level) -> None:
    assert mentioned(str(level), PAGES[HERE / "docs" / "operations.md"])


@pytest.mark.parametrize("page", list(HERE.glob("*.md")) + list((HERE / "docs").glob("*.md")), ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken, f"{page.name} points to nothing: {broken}"


def anchors(page: Path) -> set[str]:
    """As made from headings: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_tests_and_modules_named_in_the_safety_page_exist() -> None:
    text = PAGES[HERE / "docs" / "safety.md"]
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    modules = {f"ckptwatch/{m}" for m in re.findall(r"`((?!tests/)(?:[a-z_]+/)?[a-z_]+\.py)`", text)}
    missing = sorted(n for n in named | modules if not (HERE / n).exists())
    assert named and modules
    assert not missing, f"docs/safety.md names {missing}"
