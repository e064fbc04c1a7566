"""The real libraries train and save while ckptwatch watches: nothing half-written is recorded, nothing is missed, and the
training ends as it does without.

Each script trains three times in the same way: alone, with a daemon watching, and with somebody looking all the time.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.frameworks.dialogue import Account, Dialogue, Hearing, contents, environment
from tests.frameworks.poller import Poller
from tests.frameworks.watched import Record, Watched
from tests.support import Project

QUIET = 0.5  # seconds; more than a training may be held up between two steps of one save or one removal


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    trainer: "Trainer"
    alone: Account
    watched: Account
    looked: Account
    project: Project
    records: list[Record]
    half_written: list[str]
    verdicts: list[str]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    name: str
    quiet: float = QUIET
    # Names without a marker that is written last: only that nobody has written for a while says that they are finished.
    unproven: tuple[str, ...] = ()
    # Names under which the trainer writes the same weights twice; between the two the file is whole as well.
    rewritten: tuple[str, ...] = ()


TRAINERS = (
    Trainer(name="transformers"),
    Trainer(name="lightning"),
    Trainer(name="accelerate", quiet=1.0, unproven=("automatic/*", "diffusers/checkpoint-*")),
    Trainer(name="timm"),
    Trainer(name="ignite"),
    Trainer(name="mmengine", rewritten=("mmengine/epoch_*.pth",)),
    Trainer(name="distributed"),
    Trainer(name="orbax"),
    Trainer(name="keras"),
    Trainer(name="ultralytics"),
    Trainer(name="layouts", quiet=1.0, unproven=("nanochat/*", "edm2/*", "hunyuan/latest.pt")),
)


@pytest.fixture(scope="module")
def rehearsed(request, tmp_path_factory):
    trainer: Trainer = request.param
    base = tmp_path_factory.mktemp(trainer.name)
    watched = Watched(base, trainer.quiet)
    outs = [base / "alone", watched.project.root, base / "looked"]
    # Lightning writes a temporary file there and moves it: across file systems that is a copy onto the final name.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as elsewhere:
        dialogue = Dialogue(f"train_{trainer.name}", outs, base, environment(base) | {"TMPDIR": elsewhere})
        hearings = {str(out): Hearing(out, dialogue) for out in outs}
        accounts = [hearings[str(out)].account for out in outs]
        poller = Poller(accounts[2], trainer.unproven, trainer.quiet)
        half_written: list[str] = []
        conversation = dialogue.documents()
        for out in outs:
            hearing = hearings[str(out)]
            begin = next(conversation)
            assert begin == {"type": "begin", "out": str(out)}
            if out == outs[1]:
                with watched.daemon():
                    dialogue.answer(announce=True)
                    _hear(conversation, dialogue, hearing, watched.pause, watched.look, watched.hold)
            elif out == outs[2]:
                with poller.running():
                    dialogue.answer(announce=True)
                    _hear(conversation, dialogue, hearing, poller.pause, poller.look)
                half_written = poller.half_written(dialogue.load, base / "copies", trainer.rewritten)
            else:
                dialogue.answer()
                _hear(conversation, dialogue, hearing)
            dialogue.answer()
        assert list(conversation) == []
    yield Rehearsed(trainer=trainer, alone=accounts[0], watched=accounts[1], looked=accounts[2], project=watched.project,
                    records=watched.records, half_written=half_written,
                    verdicts=[str(v.claim.path.relative_to(outs[2])) for v in poller.verdicts])
    shutil.rmtree(base)


def _hear(conversation, dialogue, hearing, pause=lambda present: None, look=lambda: None, hold=lambda paths: None):
    """Up to the result, which is left to be answered."""
    for document in conversation:
        if document["type"] == "result":
            hearing.account.result = document["ended"]
            return
        if document["type"] == "pause":
            hearing.pause(document["present"])
            pause(document["present"])
        elif document["type"] == "hold":
            hold(document["paths"])
        else:
            look()
        dialogue.answer()


pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("rehearsed", [
        pytest.param(t, id=t.name, marks=pytest.mark.xdist_group(f"trainer-{t.name}")) for t in TRAINERS], indirect=True),
]


# ---- the training ---------------------------------------------------------------------------------------------------


def test_the_training_ends_as_it_does_without(rehearsed):
    """The same result, the same names, the same numbers in every checkpoint it ever had."""
    for other in (rehearsed.watched, rehearsed.looked):
        assert json.dumps(other.result) == json.dumps(rehearsed.alone.result)
        assert other.digests() == rehearsed.alone.digests()
        assert _tree(other.out) == _tree(rehearsed.alone.out)


def test_every_checkpoint_it_has_can_be_loaded(rehearsed):
    digests = [d for several in rehearsed.watched.digests().values() for d in several]
    assert digests and not [d for d in digests if d.startswith("failed")]


# ---- the record -----------------------------------------------------------------------------------------------------


def test_every_checkpoint_is_recorded_with_what_the_training_knows_of_it(rehearsed):
    """At each pause the daemon had all in its record as it lay there; so a rolling file is a new version each time."""
    recorded = {r.path for r in rehearsed.records}
    assert recorded == set(rehearsed.watched.versions)
    wrong = []
    for record in rehearsed.records:
        told, row = dict(record.declared), record.recorded
        metrics = told.pop("metrics", {})
        if {k: row.metrics.get(k) for k in metrics} != pytest.approx(metrics, rel=1e-3, abs=6e-4):
            wrong.append(f"{record.path}: metrics {dict(row.metrics)}, the training has {metrics}")
        wrong += [f"{record.path}: {what} {getattr(row, what)}, the training has {value}"
                  for what, value in told.items() if value != getattr(row, what)]
    assert not wrong


def test_nothing_else_is_recorded(rehearsed):
    """No alias, no part of a checkpoint, none that was half-written: each version is found whole once."""
    found = Counter(path for kind, path in rehearsed.project.history() if kind in ("found", "rewritten", "returned"))
    versions = {path: len(several) for path, several in rehearsed.watched.versions.items()}
    strangers = sorted(set(found) - set(versions))
    assert not strangers
    for path in [p for p in found if any(Path(p).match(r) for r in rehearsed.trainer.rewritten)]:
        assert found.pop(path) >= versions.pop(path)
    assert found == versions


def test_nothing_is_thought_to_be_there_or_half_written_at_the_end(rehearsed):
    present = set(rehearsed.watched.states[-1][0])
    states = rehearsed.project.states()
    assert {p for p, state in states.items() if state in ("complete", "incomplete")} == present
    assert {p for p, state in states.items() if state == "complete"} == present
    assert "Traceback" not in rehearsed.project.log and " ERROR " not in rehearsed.project.log


def test_what_is_recorded_lies_there_whole(rehearsed):
    """Those left at the end load, which the training itself has done, and are still as they were then."""
    present, files = rehearsed.watched.states[-1]
    assert present and contents(rehearsed.watched.out) == files


# ---- looking all the time -------------------------------------------------------------------------------------------


def test_no_half_written_one_passes_for_complete(rehearsed):
    assert not rehearsed.half_written, "\n".join(rehearsed.half_written)
    assert set(rehearsed.verdicts) >= set(rehearsed.looked.versions), "it has looked too late to prove anything"


# ---- comparing ------------------------------------------------------------------------------------------------------


def _tree(top: Path) -> dict[str, str]:
    """Names, and what the files hold of tensors; without what depends on the time of day or is drawn at random."""
    found = {}
    for name, digest in contents(top).items():
        path, told = top / name, digest
        shown = re.sub(r"\d{8}_\d{6}", "TIME", re.sub(r"/d/[0-9a-f]{32}$", "/d/RANDOM", name))
        if zipfile.is_zipfile(path):  # what is pickled may name the time or the directory
            with zipfile.ZipFile(path) as archive:
                told = str([r.CRC for r in archive.infolist() if "/data/" in r.filename or r.filename.endswith(".h5")])
        elif path.suffix not in (".safetensors", ".distcp", ".h5", ".pkl"):
            told = ""
        found[shown] = told
    return found
