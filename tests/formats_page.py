"""Makes the part of docs/formats.md that the code knows: `python -m tests.formats_page`. A test keeps the page true."""

import importlib
import re
import sys
import tempfile
from pathlib import Path

from ckptwatch.core.naming import whole_name
from ckptwatch.formats.base import Format, claim_at, examine, format_named, formats
from ckptwatch.testing import FormatConformance

HERE = Path(__file__).parents[1]
PAGE = HERE / "docs" / "formats.md"
BEGIN, END = "<!-- made by `python -m tests.formats_page` -->\n", "<!-- end -->\n"
CONTRACT = HERE / "tests" / "contract"
MODULES = sorted(p.stem for p in CONTRACT.glob("test_formats*.py") if p.stem != "test_formats_page")
SHOWN = 14  # files of an example


def own_formats() -> list[Format]:
    return [f for f in formats() if type(f).__module__.startswith("ckptwatch.")]


def suites() -> dict[str, type[FormatConformance]]:
    """Format name → its conformance suite, the first of several."""
    found: dict[str, type[FormatConformance]] = {}
    if str(CONTRACT) not in sys.path:
        sys.path.append(str(CONTRACT))  # under the names by which pytest knows them, so that what they wrote is shared
    for module in MODULES:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, type) and issubclass(value, FormatConformance) and value.__name__.startswith("Test"):
                found.setdefault(value().make_format().name, value)
    return found


def section(format_: Format, example: str) -> str:
    about = format_.about
    rows = [("recognised", about.recognised), ("complete", about.complete), ("facts", about.facts),
            ("protected", about.protected)]
    if about.needed_while_training:
        rows.append(("while training", about.needed_while_training))
    if about.forbidden_names:
        rows.append(("no alias beside it", f"`{about.forbidden_names}`: {about.forbidden_because}"))
    table = "\n".join(f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows)
    return f"### {about.title}\n\nFormat `{format_.name}`.\n\n| | |\n|---|---|\n{table}\n\n{example}\n"


def example_of(format_: Format, directory: Path) -> str:
    """What `inspect` says of a checkpoint as its conformance suite writes it, and the files it is made of."""
    suite = suites()[format_.name]()
    path = suite.write(directory)
    claim = claim_at(path)
    assert claim is not None
    claimant = format_named(claim.format)
    assert claimant is not None
    facts = examine(claim, claimant)
    # Names that are drawn by lot look alike, and one stands for all.
    names = (str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if not p.is_dir())
    files = list(dict.fromkeys(map(steady, names)))
    shown = files if len(files) <= SHOWN else [*files[:SHOWN], f"… and {len(files) - SHOWN} more"]
    lines = [("path", whole_name(claim.path)), ("complete", facts.evidence), ("step", facts.step), ("epoch", facts.epoch),
             ("metrics", ", ".join(facts.metrics)), ("variants", ", ".join(facts.variants)), ("files", shown[0])]
    text = "\n".join(f"    {name:<9} {value}" for name, value in lines if value not in (None, ""))
    more = "".join(f"\n    {'':<9} {name}" for name in shown[1:])
    return steady(text + more)


def steady(text: str) -> str:
    """Without what differs from one writing to the next: sizes, and what libraries draw by lot."""
    text = re.sub(r"\d{1,3}(?:,\d{3})+(?= bytes)|\b\d+(?= bytes)", "…", text)
    return re.sub(r"\b[0-9a-f]{16,}\b", "…", text)


def made(directory: Path) -> str:
    parts = []
    for format_ in own_formats():
        place = directory / format_.name
        place.mkdir()
        parts.append(section(format_, example_of(format_, place)))
    return "\n".join(parts)


def written() -> str:
    """The part of the page as it stands."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    with tempfile.TemporaryDirectory() as directory:
        PAGE.write_text(before + BEGIN + made(Path(directory)) + END + after, encoding="utf-8")
    print(f"{PAGE.relative_to(HERE)}: {len(own_formats())} formats")


if __name__ == "__main__":
    main()
