"""`expect`: a checkpoint without what its run's checkpoints should have is told, by the names it lacks, and treated like any
other."""

import logging
import sqlite3
import time
from collections import OrderedDict
from contextlib import closing

import pytest
import torch
from safetensors.torch import save_file

from ckptwatch.core.expectation import lacking
from ckptwatch.formats.base import claim_at, examine, format_named
from ckptwatch.outline import read_outline
from ckptwatch.status import Level, gather
from ckptwatch.store import checkpoints, runs
from ckptwatch.store.database import FILE, open_writing
from tests.support import save

pytestmark = pytest.mark.usefixtures("stub_workers")
EXPECTED = ["model", "optimizer", "model_ema1", "model_ema2"]
WHOLE = dict.fromkeys(EXPECTED, 1)


@pytest.fixture
def expecting(project):
    return project.run_rule(expect=EXPECTED, keep={"best": -1})


def alerts(project, run=None):
    """run → messages about what is lacking."""
    found = gather(read_outline(project.file), run=run, now=time.time())
    told: dict[str, list[str]] = {}
    for alert in found.alerts:
        if "lacks" in alert.message:
            assert alert.level is Level.WARN and alert.fix.startswith("ckptwatch inspect /")
            told.setdefault(alert.run, []).append(alert.message)
    return told


def told_events(project):
    return [path for kind, path in project.history() if kind == "lacks_keys"]


# ---- what is compared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "keys", "missing"), [
    (("a", "b"), ("b", "a", "c"), ()), (("a", "b"), ("c",), ("a", "b")), (("b", "a"), ("c",), ("b", "a")),
    (("a", "a"), ("c",), ("a",)), ((), ("c",), ()), (("a",), (), ()), (("a",), ("A", "ab"), ("a",)),
])
def test_what_is_lacking_is_named_in_the_order_of_the_expectation(expected, keys, missing):
    assert lacking(expected, keys) == missing


# ---- where it is told -----------------------------------------------------------------------------------------------


def test_a_checkpoint_that_lacks_entries_is_told_everywhere_and_evaluated_like_any_other(expecting, caplog):
    expecting.save("a/0100.pt", quality=1.0, **WHOLE)
    expecting.save("a/0200.pt", quality=2.0, model=1, optimizer=1)
    with caplog.at_level(logging.WARNING):
        assert expecting.once() == 0
    words = "0200.pt lacks model_ema1, model_ema2"
    assert alerts(expecting) == {"a": [words]}
    [run] = expecting.json("status")["runs"]
    assert [(a["level"], a["message"]) for a in run["alerts"]] == [("WARN", words)]
    assert words in expecting.cli("status").stdout and expecting.cli("status", "--check").returncode == 12  # no daemon
    assert told_events(expecting) == ["a/0200.pt"]
    assert f"a: {words}; it has quality, model, optimizer" in caplog.text and "0100.pt lacks" not in caplog.text
    assert [e.state for found in expecting.evaluations().values() for e in found] == ["done", "done"]
    ranking = expecting.json("rank", "a")["ranking"]
    assert [place["path"].rpartition("/")[2] for place in ranking] == ["0200.pt", "0100.pt"]


def test_the_event_names_the_entries(expecting):
    from ckptwatch.store import events

    expecting.save("a/0100.pt", quality=1.0, model=1, step=100)
    expecting.once()
    with expecting.reading() as conn:
        [event] = [e for e in events.recent(conn) if e.kind == "lacks_keys"]
    assert event.data == {"missing": ["optimizer", "model_ema1", "model_ema2"], "step": 100}
    assert event.run == "a" and event.message == "lacks optimizer, model_ema1, model_ema2"


def test_complete_ones_and_those_that_nothing_is_expected_of_are_not_told(project):
    project.write(runs=[{"match": "b*", **{k: v for k, v in project.config["runs"][0].items() if k != "match"}},
                        {**project.config["runs"][0], "expect": EXPECTED}])
    project.save("a/0100.pt", quality=1.0, **WHOLE)
    project.save("b/0100.pt", quality=1.0)  # the first rule that matches is the one that counts
    project.once()
    assert alerts(project) == {} and told_events(project) == []


def test_many_that_lack_the_same_are_one_alert_named_by_the_newest(expecting):
    for step in (100, 200, 300):
        expecting.save(f"a/{step:04d}.pt", quality=1.0, model=1, optimizer=1, model_ema1=1, extra=1)
        expecting.save(f"b/{step:04d}.pt", quality=1.0, **WHOLE)
    expecting.save("a/0400.pt", quality=1.0, model=1)
    expecting.save("a/0150.pt", quality=1.0, optimizer=1, model=1, model_ema1=1)  # other entries, lacks the same
    expecting.once()
    assert sorted(alerts(expecting)["a"]) == [
        "0300.pt lacks model_ema2; 4 checkpoints of its run do", "0400.pt lacks optimizer, model_ema1, model_ema2"]
    assert list(alerts(expecting)) == ["a"]
    assert alerts(expecting, run="b") == {}


def test_one_that_is_gone_or_in_the_trash_is_told_no_more(expecting):
    path = expecting.save("a/0100.pt", quality=1.0, model=1)
    expecting.save("a/0200.pt", quality=2.0, **WHOLE)
    expecting.once()
    assert list(alerts(expecting)) == ["a"]
    path.unlink()
    expecting.once()
    assert alerts(expecting) == {}


def test_one_that_is_written_again_in_full_is_told_no_more(expecting):
    expecting.save("a/0100.pt", quality=1.0, model=1)
    expecting.once()
    expecting.save("a/0100.pt", quality=1.0, **WHOLE)
    expecting.once()
    assert alerts(expecting) == {} and told_events(expecting) == ["a/0100.pt"]


def test_one_that_is_only_touched_is_not_told_again(expecting):
    path = expecting.save("a/0100.pt", quality=1.0, model=1)
    expecting.once()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    expecting.once()
    assert ("touched", "a/0100.pt") in expecting.history()
    assert told_events(expecting) == ["a/0100.pt"] and list(alerts(expecting)) == ["a"]


def test_an_incomplete_one_is_told_as_such_and_nothing_else(expecting):
    path = expecting.save("a/0100.pt", quality=1.0, model=1)
    path.write_bytes(path.read_bytes()[:-30])
    expecting.once()
    assert alerts(expecting) == {} and told_events(expecting) == []
    assert "is not whole" in expecting.json("status")["runs"][0]["alerts"][0]["message"]


def test_formats_that_cannot_tell_are_not_told(expecting):
    expecting.write(workers={"devices": []})
    top = expecting.root / "a" / "epoch_3"
    top.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, top / "model.safetensors")
    (top / "config.json").write_text("{}")
    torch.save([torch.ones(1)], expecting.root / "a" / "list.pt")
    expecting.once()
    assert set(expecting.states().values()) == {"complete"}
    assert alerts(expecting) == {} and told_events(expecting) == []


def test_status_compares_with_the_configuration_of_today_even_a_broken_one(project):
    project.save("a/0100.pt", quality=1.0, model=1)
    project.once()
    assert alerts(project) == {}
    project.write(runs=[{"match": "a", "expect": ["model", "ema"], "keep": "nonsense"}], mistake=1)
    assert alerts(project) == {"a": ["0100.pt lacks ema"]}
    for rules in ("text", ["text", {"match": "a"}], [{"match": 5, "expect": "model"}], [{"expect": {"a": 1}}], None):
        project.write(runs=rules)
        assert alerts(project) == {}


# ---- what formats tell ----------------------------------------------------------------------------------------------


def facts_at(path):
    claim = claim_at(path)
    return examine(claim, format_named(claim.format))


STATE = OrderedDict(w=torch.ones(2))


@pytest.mark.parametrize("older", [False, True])
def test_both_kinds_of_torch_files_tell_their_entries(tmp_path, older):
    content = {"model": STATE, "model_ema1": STATE, "optimizer": {"state": {}}, "step": 3, 7: 1, "a\nb": 1, "": 1}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not older)
    assert facts_at(tmp_path / "m.pt").keys == ("model", "model_ema1", "optimizer", "step")


def test_flat_names_are_entries_up_to_their_first_dot(tmp_path):
    flat = {"model.w": torch.ones(1), "model.v": torch.ones(1), "ema.w": torch.ones(1), "scale": torch.ones(1)}
    torch.save(flat, tmp_path / "m.pt")
    save_file(flat, tmp_path / "m.safetensors", metadata={"step": "5", "optimizer": "no entry"})
    assert facts_at(tmp_path / "m.pt").keys == ("model", "ema", "scale")
    assert sorted(facts_at(tmp_path / "m.safetensors").keys) == ["ema", "model", "scale"]


def test_dialects_tell_entries_as_other_files_do(tmp_path):
    content = {"pytorch-lightning_version": "2.6.0", "state_dict": STATE, "optimizer_states": [], "epoch": 1}
    torch.save(content, tmp_path / "epoch=1-step=9.ckpt")
    facts = facts_at(tmp_path / "epoch=1-step=9.ckpt")
    assert facts.format == "lightning" and facts.keys[1:3] == ("state_dict", "optimizer_states")


def test_what_holds_no_entries_or_too_many_tells_nothing(tmp_path):
    for number, content in enumerate(([1], STATE["w"], {str(n): n for n in range(5000)})):
        torch.save(content, tmp_path / f"{number}.pt")
        assert facts_at(tmp_path / f"{number}.pt").keys == ()


def test_a_deepspeed_directory_with_a_tag_like_a_file_tells_variants_and_entries(tmp_path):
    """As HunyuanDiT saves: `0002000.pt/mp_rank_00_model_states.pt`."""
    top = tmp_path / "0002000.pt"
    top.mkdir()
    torch.save({"module": STATE, "ema": STATE, "optimizer": None, "steps": 2000, "epoch": 1, "global_steps": 2000},
               top / "mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("0002000.pt")
    facts = facts_at(top)
    assert facts.complete and facts.format == "deepspeed" and facts.step == 2000 and facts.variants == ("module", "ema")
    assert facts.keys == ("module", "ema", "optimizer", "steps", "epoch", "global_steps")


# ---- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_shows_the_entries_and_what_is_missing_of_them(expecting):
    path = expecting.save("a/0100.pt", model=1, optimizer=1)
    told = expecting.json("inspect", str(path))
    assert told["keys"] == ["model", "optimizer"] and told["missing_keys"] == ["model_ema1", "model_ema2"]
    shown = expecting.cli("inspect", str(path))
    assert shown.returncode == 0
    assert "model, optimizer\n" in shown.stdout and "lacks     model_ema1, model_ema2, which" in shown.stdout
    alone = expecting.json("inspect", str(path), config=False)
    assert alone["keys"] == ["model", "optimizer"] and alone["missing_keys"] == []


def test_inspect_of_many_entries_shows_the_first_and_counts_the_others(project):
    path = project.save("a/0100.pt", **{f"k{n:02d}": n for n in range(30)})
    shown = project.cli("inspect", str(path)).stdout
    assert "k19 and 10 more" in shown and "k20" not in shown
    assert len(project.json("inspect", str(path))["keys"]) == 30


# ---- the record -----------------------------------------------------------------------------------------------------


def test_entries_are_recorded_with_the_checkpoint(project):
    project.save("a/0100.pt", quality=1.0, model=1)
    project.once()
    with project.reading() as conn:
        [run] = runs.all_runs(conn)
        [checkpoint] = checkpoints.of_run(conn, run.id)
    assert checkpoint.keys == ("quality", "model")


def test_a_database_from_before_opens_and_tells_nothing_of_what_it_does_not_know(expecting):
    expecting.save("a/0100.pt", quality=1.0, model=1)
    expecting.once()
    with closing(sqlite3.connect(expecting.state / FILE)) as raw:
        raw.execute("ALTER TABLE checkpoints DROP COLUMN content_keys")
        for table in ("points", "series", "logs", "attached", "alarms", "weight_scans"):
            raw.execute(f"DROP TABLE {table}")
        raw.execute("UPDATE alembic_version SET version_num = '0002'")
        raw.commit()
    open_writing(expecting.state).close()
    assert alerts(expecting) == {} and expecting.states() == {"a/0100.pt": "complete"}
    save(expecting.root / "a/0200.pt", {"quality": 2.0, "model": 1})
    expecting.once()
    assert alerts(expecting) == {"a": ["0200.pt lacks optimizer, model_ema1, model_ema2"]}
