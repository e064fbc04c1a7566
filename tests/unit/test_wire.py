"""What goes over the pipe arrives as it was; what is no document is told apart, whatever the bytes are."""

import json
import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptwatch.model import (
    Composite,
    CompositeTerm,
    Failure,
    FailureKind,
    MetricSpec,
    Mode,
    Networks,
    Pipeline,
    Program,
    Recipe,
    Reference,
    Sampler,
    Score,
    evolve,
    to_plain,
)
from ckptwatch.workers.parts import merge_of, parts_of
from ckptwatch.workers.wire import (
    Failed,
    Job,
    Partial,
    Progress,
    Ready,
    Result,
    WireError,
    decode,
    encode,
    recipe_from_plain,
)

RECIPE = Recipe(
    name="r", sampler=Sampler(command=("gen", "{checkpoint}"), timeout=5.0),
    metrics=(MetricSpec(name="fid", mode=Mode.MIN), MetricSpec(name="mine", function="a.b:c", mode=Mode.MAX)),
    prompts=Path("/p.txt"), reference=Reference(images=Path("/ref")), networks=Networks(lpips_weights=Path("/l.pt")),
    composite=Composite(terms={"fid": CompositeTerm(weight=-1.0, low=0.0, high=300.0)}, missing="renormalise"))
JOB = Job(job="3#1", checkpoint=Path("/runs/größe/1.pt"), format="torch-zip", run="größe", step=1, epoch=None, variant="ema",
          recipe=RECIPE, work_dir=Path("/w"), cache_dir=Path("/c"), log=Path("/l"), trusted=True)
DOCUMENTS = [
    JOB, Ready(device="cuda:0", pid=5), Progress(job="3#1", stage="sampling", done=1, total=2),
    Result(job="3#1", scores=(Score(metric="fid", value=7.5, low=7.0, high=8.0, n=50, mode=Mode.MIN, definition="d"),
                              Score(metric="x", value=1.0)), seconds=2.5, samples=Path("/w/s"), influence=Path("/w/i"),
           warnings=("careful",)),
    Partial(job="3#1", part=1),
    evolve(JOB, part=1, parts=3), evolve(JOB, parts=3, merge=True),
    evolve(JOB, recipe=evolve(RECIPE, sampler=Sampler(diffusers=Pipeline(base="/b", component="unet")), num_classes=10)),
    evolve(JOB, recipe=evolve(RECIPE, sampler=Sampler(program=Program(file=Path("/p.pt2"), noise=(3, 8, 8), low=0.0)))),
    Failed(job="3#1", failure=Failure(kind=FailureKind.NOT_FINITE, message="NaN", hint="h", retryable=False)),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_a_document_arrives_as_it_was(document):
    line = encode(document)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode(line) == document


def test_nan_and_infinity_arrive(tmp_path):
    line = encode(Result(job="1#1", scores=(Score(metric="m", value=math.nan, low=-math.inf),), seconds=1.0))
    score = decode(line).scores[0]
    assert math.isnan(score.value) and score.low == -math.inf


def test_a_recipe_survives_the_trip():
    assert recipe_from_plain(to_plain(RECIPE)) == RECIPE


def test_a_newer_workers_extra_keys_are_left_out():
    assert decode(b'{"type": "ready", "device": "cpu", "pid": 1, "mood": "good"}') == Ready(device="cpu", pid=1)


@pytest.mark.parametrize("line", [
    b"", b"\n", b"null", b"[]", b"5", b'"x"', b"{}", b'{"type": 5}', b'{"type": "unknown"}', b'{"type": "ready"}',
    b"\xff\xfe",
    b"[" * 100_000, b'{"type": "result", "job": "1", "seconds": 1, "scores": [{"metric": "m", "value": "much"}]}',
    b'{"type": "result", "job": "1", "seconds": 1, "scores": [{"metric": "m", "value": null}]}',
    b'{"type": "result", "job": "1", "seconds": 1, "scores": [{"metric": "m", "value": 1, "n": 99999999999999999999}]}',
    b'{"type": "result", "job": "1", "seconds": 1, "scores": [{"metric": "m", "value": 1, "mode": "up"}]}',
    b'{"type": "result", "job": "1", "seconds": 1, "scores": 5}',
    b'{"type": "result", "job": "1", "seconds": "long", "scores": []}',
    b'{"type": "result", "job": "1", "seconds": 1, "scores": [{"metric": "m", "value": 1' + b"0" * 400 + b"}]}",
    b'{"type": "failed", "job": "1", "failure": {"kind": "bad luck", "message": "x"}}',
    b'{"type": "progress", "job": "1", "stage": "x", "done": "y", "total": 2}', b"x" * 5_000_000,
])
def test_anything_else_is_a_wire_error(line):
    with pytest.raises(WireError):
        decode(line)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(line):
    with suppress(WireError):
        decode(line)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=8),
       st.sampled_from(["type", "job", "scores", "seconds", "failure", "recipe", "done", "samples", "warnings"]),
       st.sampled_from(DOCUMENTS))
def test_no_odd_value_raises_anything_else(value, key, document):
    raw = {**json.loads(encode(document)), key: value}
    with suppress(WireError):
        decode(json.dumps(raw).encode())


# ---- parts ----


@pytest.mark.parametrize(("samples", "batch_size", "workers", "free"), [
    (100, 8, 3, 3), (100, 8, 3, 2), (7, 8, 4, 4), (50, 5, 9, 4),
])
def test_parts_cover_every_sample_once_and_cut_no_batch(samples, batch_size, workers, free):
    job = evolve(JOB, recipe=evolve(RECIPE, samples=samples, batch_size=batch_size, workers=workers))
    parts = parts_of(job, free)
    assert 1 <= len(parts) <= min(workers, free)
    spans = [part.span for part in parts]
    assert spans[0][0] == 0 and spans[-1][1] == samples
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(begin % batch_size == 0 and begin < end for begin, end in spans)
    assert merge_of(parts[-1]).merge and merge_of(parts[-1]).parts == len(parts)
