"""What is published, before any file is written: points and summary lines."""

import math
from pathlib import Path

from ckptwatch.model import Contender, Mode, Place, Ranking, Score, Unranked, evolve
from ckptwatch.publish.scalars import Point, points_of
from ckptwatch.publish.summary import summary_lines
from ckptwatch.publish.tracker import kept_best


def contender(step, variant="", epoch=None, **values):
    scores = {m: Score(metric=m, value=v) for m, v in values.items()}
    return Contender(checkpoint_id=step or 0, path=Path(f"/runs/a/{step}.pt"), generation=0, step=step, epoch=epoch,
                     variant=variant, scores=scores)


def ranking(*contenders, unranked=()):
    places = tuple(
        Place(rank=i, contender=c, score=c.scores["fid"], reason="r") for i, c in enumerate(contenders, start=1)
    )
    return Ranking(metric="fid", mode=Mode.MIN, digest="d", places=places, unranked=tuple(unranked))


def values(points):
    return {p.tag: p.value for p in points}


def test_each_metric_has_its_tag_at_the_training_step():
    points = points_of(
        contender(2000, clip_score=0.3, lpips=0.2, inception_score=5.0, fid=7.0, kid=0.1, composite_score=0.4, mine=1.0),
        is_best=True, wall_time=9.0,
    )
    assert values(points) == {
        "Evaluation/CLIP_Score": 0.3, "Evaluation/LPIPS": 0.2, "Evaluation/Inception_Score": 5.0, "Evaluation/FID": 7.0,
        "Evaluation/KID": 0.1, "Evaluation/Composite_Score": 0.4, "Evaluation/mine": 1.0, "Evaluation/IsBest": 1.0,
    }
    assert {(p.step, p.wall_time) for p in points} == {(2000, 9.0)}


def test_variants_have_tags_of_their_own():
    found = values(points_of(contender(1, variant="model_ema1", fid=7.0), is_best=False, wall_time=0))
    assert found == {"Evaluation/FID/model_ema1": 7.0, "Evaluation/IsBest/model_ema1": 0.0}


def test_what_has_no_value_or_no_place_has_no_point():
    assert points_of(contender(1), is_best=True, wall_time=0) == []
    assert points_of(contender(1, fid=math.nan), is_best=True, wall_time=0) == []
    assert points_of(contender(None, fid=1.0), is_best=True, wall_time=0) == []
    assert points_of(contender(None, epoch=7, fid=1.0), is_best=False, wall_time=0)[0] == Point(
        tag="Evaluation/FID", step=7, value=1.0, wall_time=0
    )
    assert values(points_of(contender(0, fid=0.0), is_best=False, wall_time=0))["Evaluation/FID"] == 0.0


def test_the_summary_tells_metric_count_and_every_place():
    one = contender(385000, epoch=12, fid=7.41, clip_score=0.31)
    one = evolve(one, scores={**one.scores, "fid": Score(metric="fid", value=7.41, low=7.27, high=7.55, n=2000)})
    lost = Unranked(contender=contender(1), reason="evaluation pending")
    assert summary_lines("demo", ranking(one, contender(395000, variant="ema", fid=7.44), unranked=[lost]), 3) == [
        "Best Checkpoint Summary: demo",
        "  Tracked metric: fid (lower is better)",
        "  Saved checkpoints: 2/3",
        "  Rank 1: step 385000, epoch 12",
        "    Path: /runs/a/385000.pt",
        "    fid: 7.4100 (7.2700 to 7.5500), 2000 samples",
        "    clip_score: 0.3100",
        "  Rank 2: step 395000, epoch unknown, variant ema",
        "    Path: /runs/a/395000.pt",
        "    fid: 7.4400",
        "  Unranked: 1",
    ]


def test_save_top_k_says_how_many_count_as_best():
    field = ranking(*(contender(i, fid=float(i)) for i in range(5)))
    assert [len(kept_best(field, k)) for k in (None, -1, 0, 3, 9)] == [5, 5, 0, 3, 5]
    assert "  Saved checkpoints: 3/3" in summary_lines("a", field, 3)
    assert "  Saved checkpoints: 5" in summary_lines("a", field, -1)
    assert "  Saved checkpoints: 0/0" in summary_lines("a", field, 0)
    assert summary_lines("a", ranking(), 3)[-1] == "  Saved checkpoints: 0/3"
