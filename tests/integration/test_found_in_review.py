"""Ways in which a checkpoint was once removed, or the daemon once stopped, that no other test had thought of."""

import os

import pytest

from ckptwatch.apply.linker import AliasError, apply_aliases
from ckptwatch.errors import UsageError
from ckptwatch.model import Alias, Failure, FailureKind
from ckptwatch.workers.wire import Failed, decode, encode
from tests.support import save

pytestmark = pytest.mark.usefixtures("stub_workers")


def on_disk(project, run="a"):
    return sorted(p.name for p in (project.root / run).glob("*.pt") if not p.is_symlink())


def best(project, run="a"):
    return (project.root / ".ckptwatch" / "runs" / run / "best.pt").resolve().name


EVERY_SECOND = {"evaluate": {"recipe": "r", "every": 2, "variants": ["model"]}, "keep": {"best": 1, "last": 1}}


def test_the_trainers_own_best_coming_and_going_does_not_cost_ours(project):
    project.run_rule(**EVERY_SECOND)
    for name, quality in (("0100.pt", 1.0), ("0200.pt", 9.0), ("0300.pt", 2.0), ("0400.pt", 3.0)):
        project.save(f"a/{name}", quality=quality)
    project.once()
    assert best(project) == "0200.pt"
    save(project.root / "a" / "best.pt", {"quality": 3.0, "step": 400})
    project.save("a/0500.pt", quality=2.0)
    project.once()
    save(project.root / "a" / "best.pt", {"quality": 3.0, "step": 500}, padding=99)
    project.save("a/0600.pt", quality=2.0)
    project.once()
    assert "0200.pt" in on_disk(project)
    assert best(project) == "0200.pt"


def test_a_broken_checkpoint_written_whole_later_shifts_nobody(project):
    project.run_rule(**EVERY_SECOND)
    whole = save(project.root / "a" / "0100.pt", {"quality": 1.0})
    (project.root / "a" / "0100.pt").write_bytes(whole[:-30])
    for name, quality in (("0200.pt", 9.0), ("0300.pt", 2.0), ("0400.pt", 3.0)):
        project.save(f"a/{name}", quality=quality)
    project.once()
    (project.root / "a" / "0100.pt").write_bytes(whole)
    project.once()
    assert "0200.pt" in on_disk(project)


def test_asking_for_fewer_evaluations_does_not_cost_those_measured(project):
    project.run_rule(evaluate={"recipe": "r", "variants": ["model"]}, keep={"best": 2, "last": 1})
    for n, quality in enumerate((9.0, 1.0, 8.0, 2.0, 3.0), start=1):
        project.save(f"a/{n:02d}00.pt", quality=quality)
    project.once()
    project.run_rule(**EVERY_SECOND, **{}).run_rule(keep={"best": 2, "last": 1}).once()
    assert {"0100.pt", "0300.pt"} <= set(on_disk(project))


def test_a_link_by_another_name_of_the_directory_protects(project):
    real = project.base / "real"
    project.root.rename(real)
    project.root.symlink_to("real")
    project.save("a/0100.pt", quality=1.0)
    project.save("a/0200.pt", quality=2.0)
    project.save("a/0300.pt", quality=9.0)
    project.save("a/0400.pt", quality=8.0)
    (project.root / "a" / "resume.pt").symlink_to(real / "a" / "0100.pt")
    (project.root / "paper.pt").symlink_to("a/0200.pt")
    project.run_rule(keep={"best": 1, "last": 1}).once()
    assert {"0100.pt", "0200.pt"} <= set(on_disk(project))


def test_touching_an_old_checkpoint_starts_no_new_generation(project):
    project.run_rule(keep={"best": 1, "last": 1})
    for n, quality in enumerate((9.0, 2.0, 3.0), start=1):
        project.save(f"a/{n:02d}00.pt", quality=quality)
    project.once()
    os.utime(project.root / "a" / "0100.pt")
    project.once()
    assert "0300.pt" in on_disk(project)
    assert (project.root / ".ckptwatch" / "runs" / "a" / "last.pt").resolve().name == "0300.pt"
    assert len(project.evaluations()["a/0100.pt"]) == 1, "the same content is not measured twice"


def test_one_file_of_a_lower_step_does_not_cost_the_newest(project):
    project.run_rule(evaluate=None, rank=None, keep={"last": 1})
    project.save("a/0300.pt")
    project.once()
    project.save("a/0100.pt")
    project.once()
    assert on_disk(project) == ["0100.pt", "0300.pt"]


def test_a_pin_outlives_a_rewrite(project):
    project.run_rule(keep=None)
    project.save("a/0100.pt", quality=1.0)
    project.save("a/0200.pt", quality=9.0)
    project.once()
    project.run_rule(keep={"best": 1, "last": 1})
    from ckptwatch.daemon import run_commands

    run_commands(project.settings, {"command": "pin", "target": "a@100", "by": "alice"})
    project.save("a/0100.pt", quality=1.5)
    project.save("a/0300.pt", quality=2.0)
    project.once()
    assert "0100.pt" in on_disk(project)


@pytest.mark.parametrize("command", ["pin", "retry"])
def test_nothing_is_promised_about_what_is_in_the_trash(project, command):
    from ckptwatch.daemon import run_commands

    project.run_rule(keep={"best": 1, "last": 1})
    for n, quality in enumerate((1.0, 9.0, 3.0), start=1):
        project.save(f"a/{n:02d}00.pt", quality=quality)
    project.once()
    assert project.states()["a/0100.pt"] == "trashed"
    with pytest.raises(UsageError, match="in the trash"):
        run_commands(project.settings, {"command": command, "target": "a@100", "by": "alice"})


def test_a_real_file_of_our_alias_name_never_becomes_ours(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"the trainer's")
    alias = Alias(link=tmp_path / "best.pt", target=tmp_path / "0200.pt")
    with pytest.raises(AliasError):
        apply_aliases((alias,), record_dir=tmp_path / "record")
    (tmp_path / "best.pt").unlink()
    (tmp_path / "best.pt").symlink_to("0100.pt")  # the trainer's own link, later
    with pytest.raises(AliasError):
        apply_aliases((alias,), record_dir=tmp_path / "record")
    apply_aliases((), record_dir=tmp_path / "record")
    assert os.readlink(tmp_path / "best.pt") == "0100.pt"  # noqa: PTH115


def test_text_that_is_no_unicode_ends_nothing():
    failure = Failure(kind=FailureKind.SAMPLER, message="cannot open caf\udce9.yaml")
    line = encode(Failed(job="1#1", failure=failure))
    assert decode(line).failure.message.encode() == rb"cannot open caf\udce9.yaml"


def test_a_file_from_the_far_future_ends_nothing(project):
    project.run_rule(evaluate=None, rank=None, keep={"last": 2})
    for n in (1, 2, 3):
        project.save(f"a/{n:02d}00.pt")
    os.utime(project.root / "a" / "0200.pt", (13_569_465_600, 13_569_465_600))
    project.once()
    project.once()
    assert set(project.states()) == {"a/0100.pt", "a/0200.pt", "a/0300.pt"}


def test_a_large_run_is_pruned_in_turns_and_wholly(project):
    project.run_rule(evaluate=None, rank=None, keep={"last": 3}, approve_over=1.0)
    first = save(project.root / "a" / "0001.pt", {})
    for n in range(2, 131):
        (project.root / "a" / f"{n:04d}.pt").write_bytes(first)
    project.once()
    assert on_disk(project) == ["0128.pt", "0129.pt", "0130.pt"]


def test_many_refused_removals_neither_spin_nor_hold_up_the_others(project):
    project.run_rule(evaluate=None, rank=None, keep={"last": 1}, approve_over=1.0)
    first = save(project.root / "a" / "0001.pt", {})
    for n in range(2, 131):
        (project.root / "a" / f"{n:04d}.pt").write_bytes(first)
    (project.base / "elsewhere").mkdir()
    for n in range(1, 101):  # a second hard link forbids removal
        os.link(project.root / "a" / f"{n:04d}.pt", project.base / "elsewhere" / f"{n:04d}.pt")
    project.once()
    project.once()
    assert on_disk(project) == [f"{n:04d}.pt" for n in (*range(1, 101), 130)]


def test_state_below_a_watched_root_is_refused(project):
    from ckptwatch.errors import ConfigError

    project.write(state_dir="runs/a/state")
    with pytest.raises(ConfigError, match="among what trainers write"):
        project.settings  # noqa: B018


def test_wrong_values_do_not_hide_contradictions(project):
    from ckptwatch.errors import ConfigError

    project.write(watch=[{"root": "runs", "quiet": "soon"}], runs=[{"evaluate": {"recipe": "nowhere"}}])
    with pytest.raises(ConfigError) as told:
        project.settings  # noqa: B018
    assert "soon" in str(told.value) or "quiet" in str(told.value)
    assert "no recipe `nowhere`" in str(told.value)


def test_run_at_step_is_understood_by_inspect_and_eval(project):
    project.save("a/0100.pt", quality=1.0)
    project.once()
    assert project.json("inspect", "a@100")["step"] == 100
    unknown = project.cli("inspect", "a@999")
    assert unknown.returncode == 2
    assert "not known" in unknown.stderr


def test_roots_without_a_configuration_are_ranked_by_what_was_logged(project):
    for n, loss in enumerate((0.5, 0.1, 0.3), start=1):
        save(project.root / "a" / f"{n:02d}00.pt", {"val_loss": loss, "step": n * 100})
        os.utime(project.root / "a" / f"{n:02d}00.pt", (1_000_000_000, 1_000_000_000))
    from ckptwatch.config import settings_for_roots
    from ckptwatch.daemon import Daemon
    from ckptwatch.model import evolve

    settings = settings_for_roots([project.root], project.base / "elsewhere")
    settings = evolve(settings, roots=tuple(evolve(r, quiet=0.0) for r in settings.roots))
    assert Daemon(settings).run_once() == 0
    from ckptwatch.planning import assess
    from ckptwatch.store import runs
    from ckptwatch.store.database import open_reading

    db = open_reading(project.base / "elsewhere")
    with db.read() as conn:
        ranking = assess(conn, runs.all_runs(conn)[0], settings, now=2e9).ranking
    db.close()
    assert [p.contender.step for p in ranking.places] == [200, 300, 100]
    assert not (project.root / ".ckptwatch").exists()

