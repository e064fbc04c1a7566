"""Every database this program ever wrote opens; what the migrations make is what the code expects."""

import sqlite3
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ckptwatch.errors import StateError
from ckptwatch.store.database import FILE, open_reading, open_writing
from ckptwatch.store.tables import metadata


def test_migrations_make_the_tables_the_code_expects(tmp_path):
    db = open_writing(tmp_path)
    with db.write() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    db.close()
    assert differences == []


def test_conditions_of_indexes_and_defaults_are_the_same_too(tmp_path):
    """compare_metadata does not look at the WHERE of an index, and these keep invariants."""
    from sqlalchemy import create_engine

    open_writing(tmp_path / "migrated").close()
    (tmp_path / "made").mkdir()
    engine = create_engine(f"sqlite:///{tmp_path}/made/{FILE}")
    metadata.create_all(engine)
    engine.dispose()

    def shape(place):
        with closing(sqlite3.connect(tmp_path / place / FILE)) as raw:
            rows = raw.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            indexes = sorted(" ".join(sql.split()) for sql, in rows)
            return indexes, {t: raw.execute(f"PRAGMA table_info({t})").fetchall() for t in metadata.tables}

    assert shape("migrated") == shape("made")


def test_opening_twice_migrates_once(tmp_path):
    for _ in range(2):
        open_writing(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as raw:
        assert len(raw.execute("SELECT * FROM alembic_version").fetchall()) == 1


def test_a_newer_schema_is_refused_in_clear_words_and_left_alone(tmp_path):
    open_writing(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StateError) as caught:
        open_writing(tmp_path)
    assert "schema 9999 is newer than this program" in str(caught.value) and "upgrade ckptwatch" in caught.value.hint
    assert (tmp_path / FILE).read_bytes() == before


def test_an_interrupted_first_migration_is_done_again(tmp_path):
    """Its tables come in one transaction: a crash leaves an empty database, not half a schema."""
    sqlite3.connect(tmp_path / FILE).close()
    (tmp_path / FILE).touch()
    assert open_reading(tmp_path) is None
    open_writing(tmp_path).close()
    open_reading(tmp_path).close()
