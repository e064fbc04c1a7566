"""docs/requirements.md names for each requirement tests that exist."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
PAGE = (HERE / "docs" / "requirements.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([A-F]\d+) \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE))
WANTED = {f"{letter}{n}" for letter, count in zip("ABCDEF", (17, 6, 10, 10, 8, 6), strict=True) for n in range(1, count + 1)}


def test_no_requirement_is_without_a_row() -> None:
    assert set(ROWS) == WANTED


@pytest.mark.parametrize("row", sorted(ROWS))
def test_what_proves_it_exists(row: str) -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", ROWS[row])
    assert proofs, f"nothing proves {row}"
    for file, name in proofs:
        text = (HERE / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name or 'test_'}\w*\(" if not name else rf"^def {name}\(", text, re.MULTILINE) \
            or (not name and "class Test" in text), f"{row}: {file} has no {name or 'test'}"
