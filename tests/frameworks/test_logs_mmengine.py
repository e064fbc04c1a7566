"""What mmengine logs is read as it trains: every loss, and each validation at its epoch or iteration."""

import pytest

from ckptwatch.formats.base import claim_at, examine, format_named
from ckptwatch.logs.finder import find_logs
from ckptwatch.logs.follower import Follower
from ckptwatch.logs.mmengine_text import MMEngineText
from ckptwatch.model import Logged
from tests.frameworks.following import Followed, only, train

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=["epochs", "iterations"])
def training(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("mm") / request.param
    told, logs = train("log_mmengine", out, request.param)
    return request.param, out, told, logs


def test_every_loss_is_read_at_its_iteration(training):
    by, _, told, logs = training
    read = only(logs, "mmengine-json").values("loss_kpt")
    trained = {step: (epoch, loss) for step, epoch, loss in told["trained"]}
    assert len(read) == 6 if by == "epochs" else len(read) == 7
    for step, epoch, loss in read:
        assert loss == pytest.approx(trained[step][1], rel=1e-6)
        assert epoch == (trained[step][0] if by == "epochs" else None)
    assert {"loss", "loss_kpt", "loss_reg", "lr"} <= only(logs, "mmengine-json").rows[0].values.keys()


def test_each_validation_is_read_where_it_happened(training):
    by, _, told, logs = training
    read = only(logs, "mmengine-json").values("coco/AP")
    assert [value for *_, value in read] == pytest.approx([ap for *_, ap in told["validated"]])
    if by == "epochs":
        assert [(step, epoch) for step, epoch, _ in read] == [(None, 1), (None, 2), (None, 3)]
    else:
        assert [(step, epoch) for step, epoch, _ in read] == [(5, None), (10, None), (15, None)]


def test_a_validations_count_is_that_of_the_checkpoint_saved_then(training):
    by, out, _, logs = training
    facts = []
    for path in sorted(out.glob("epoch_*.pth" if by == "epochs" else "iter_*.pth"), key=lambda p: p.stat().st_mtime_ns):
        claim = claim_at(path)
        facts.append(examine(claim, format_named(claim.format)))
    read = only(logs, "mmengine-json").values("coco/AP")
    counts = [fact.epoch if by == "epochs" else fact.step for fact in facts]
    assert counts == [epoch if by == "epochs" else step for step, epoch, _ in read]


def test_the_text_says_the_same_and_is_not_read_twice(training):
    by, out, _, logs = training
    [path] = out.glob("*/*.log")
    assert path not in find_logs(out).files  # as soon as there is something better
    assert MMEngineText().claims(path, path.read_bytes()[:4096])
    text = Followed(dialect="text", follower=Follower(path, MMEngineText(), Logged()))
    text.read()
    for name in ("loss_kpt", "coco/AP"):
        exact = only(logs, "mmengine-json").values(name)
        read = text.values(name)
        assert [value for *_, value in read] == pytest.approx([value for *_, value in exact], abs=1e-6)
        if name == "loss_kpt":
            assert [(step, epoch) for step, epoch, _ in read] == [(step, epoch) for step, epoch, _ in exact]
        elif by == "epochs":
            assert [epoch for _, epoch, _ in read] == [1, 2, 3]
        else:  # of the last line of training before
            assert [step for step, _, _ in read] == [4, 10, 14]
