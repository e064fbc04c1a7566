"""The built-in metrics by name: direction, needs, scale. What computes them lives in `evaluate/metrics`."""

from dataclasses import dataclass

from ckptwatch.model import Mode

COMPOSITE = "composite_score"


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    name: str
    mode: Mode
    tag: str                      # its TensorBoard scalar
    needs_reference: bool = False  # reference images, or statistics where `accepts_stats`
    accepts_stats: bool = False
    needs_pairs: bool = False      # originals to compare with one by one
    needs_prompts: bool = False
    minimum_samples: int = 1
    summary: str = ""


METRICS: dict[str, MetricInfo] = {
    m.name: m
    for m in (
        MetricInfo(
            name="fid", mode=Mode.MIN, tag="Evaluation/FID", needs_reference=True, accepts_stats=True,
            minimum_samples=2, summary="Fréchet distance between feature distributions; 0 and up, biased upwards at small n",
        ),
        MetricInfo(
            name="inception_score", mode=Mode.MAX, tag="Evaluation/Inception_Score", minimum_samples=10,
            summary="exp of the mean KL divergence between class posteriors and their marginal; 1 to number of classes",
        ),
        MetricInfo(
            name="kid", mode=Mode.MIN, tag="Evaluation/KID", needs_reference=True, minimum_samples=2,
            summary="squared MMD with a cubic kernel on features; unbiased, may be slightly negative",
        ),
        MetricInfo(
            name="precision", mode=Mode.MAX, tag="Evaluation/Precision", needs_reference=True, minimum_samples=4,
            summary="share of generated images that lie among the reference images, by their nearest neighbours; 0 to 1",
        ),
        MetricInfo(
            name="recall", mode=Mode.MAX, tag="Evaluation/Recall", needs_reference=True, minimum_samples=4,
            summary="share of reference images that lie among the generated ones, by their nearest neighbours; 0 to 1",
        ),
        MetricInfo(
            name="fd_dinov2", mode=Mode.MIN, tag="Evaluation/FD_DINOv2", needs_reference=True, accepts_stats=True,
            minimum_samples=2, summary="Fréchet distance of DINOv2 features; 0 and up, biased upwards at small n",
        ),
        MetricInfo(
            name="cmmd", mode=Mode.MIN, tag="Evaluation/CMMD", needs_reference=True, minimum_samples=2,
            summary="1000 × squared MMD of CLIP embeddings with a Gaussian kernel; 0 and up",
        ),
        MetricInfo(
            name="clip_score", mode=Mode.MAX, tag="Evaluation/CLIP_Score", needs_prompts=True,
            summary="mean of max(cos(image, prompt), 0); 0 to 1",
        ),
        MetricInfo(
            name="lpips", mode=Mode.MIN, tag="Evaluation/LPIPS", needs_pairs=True,
            summary="learned perceptual distance to the paired original; 0 and up",
        ),
    )
}


def tag_of(metric: str) -> str:
    """The TensorBoard tag of any metric name: built-in, composite or the user's own."""
    if metric == COMPOSITE:
        return "Evaluation/Composite_Score"
    info = METRICS.get(metric)
    return info.tag if info else f"Evaluation/{metric}"
