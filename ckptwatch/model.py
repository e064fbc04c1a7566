"""The vocabulary: what the words of docs/glossary.md are made of.

Everything here is plain data: frozen, keyword-only, standard library only, no behaviour beyond derived properties.
Times are seconds since the epoch (float, UTC), sizes are bytes, directories and files are absolute paths.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Mode(StrEnum):
    """Which direction of a metric is better."""

    MIN = "min"
    MAX = "max"


class Role(StrEnum):
    """What a file name says about a checkpoint besides its step."""

    REGULAR = "regular"  # one saved state among others
    FINAL = "final"      # the trainer says this is the end of the run
    LAST = "last"        # a rolling file, overwritten each time: `last.ckpt`, `latest.pt`
    BEST = "best"        # the trainer's own best: `best.pt`, `model_best.pth`


class CheckpointState(StrEnum):
    INCOMPLETE = "incomplete"  # settled, but its format finds something missing or broken: kept, never evaluated
    COMPLETE = "complete"      # whole and on disk under its own name
    TRASHED = "trashed"        # moved to the trash by us; `restore` brings it back
    PURGED = "purged"          # removed for good by us
    REPLACED = "replaced"      # the same name now holds another identity
    GONE = "gone"              # removed by somebody else


class CheckpointEvent(StrEnum):
    FOUND_COMPLETE = "found_complete"
    FOUND_INCOMPLETE = "found_incomplete"
    REWRITTEN = "rewritten"
    VANISHED = "vanished"
    TRASH = "trash"
    RESTORE = "restore"
    PURGE = "purge"


CHECKPOINT_TRANSITIONS: dict[tuple[CheckpointState, CheckpointEvent], CheckpointState] = {
    (CheckpointState.INCOMPLETE, CheckpointEvent.FOUND_COMPLETE): CheckpointState.COMPLETE,
    (CheckpointState.INCOMPLETE, CheckpointEvent.FOUND_INCOMPLETE): CheckpointState.INCOMPLETE,
    (CheckpointState.INCOMPLETE, CheckpointEvent.REWRITTEN): CheckpointState.REPLACED,
    (CheckpointState.INCOMPLETE, CheckpointEvent.VANISHED): CheckpointState.GONE,
    (CheckpointState.COMPLETE, CheckpointEvent.REWRITTEN): CheckpointState.REPLACED,
    (CheckpointState.COMPLETE, CheckpointEvent.VANISHED): CheckpointState.GONE,
    (CheckpointState.COMPLETE, CheckpointEvent.TRASH): CheckpointState.TRASHED,
    (CheckpointState.GONE, CheckpointEvent.FOUND_COMPLETE): CheckpointState.COMPLETE,
    # A removal interrupted after the rename is first seen as vanished; the journal then says it is ours.
    (CheckpointState.GONE, CheckpointEvent.TRASH): CheckpointState.TRASHED,
    # The trainer wrote the name again while the old identity was on its way to the trash.
    (CheckpointState.REPLACED, CheckpointEvent.TRASH): CheckpointState.TRASHED,
    (CheckpointState.TRASHED, CheckpointEvent.RESTORE): CheckpointState.COMPLETE,
    (CheckpointState.TRASHED, CheckpointEvent.PURGE): CheckpointState.PURGED,
    (CheckpointState.TRASHED, CheckpointEvent.VANISHED): CheckpointState.GONE,
}


class EvaluationState(StrEnum):
    PENDING = "pending"      # waits for a free slot, perhaps until `available_at`
    RUNNING = "running"      # claimed by a worker
    DONE = "done"            # has scores
    FAILED = "failed"        # attempts used up, or no use in trying again; `retry` makes it pending
    ABANDONED = "abandoned"  # its checkpoint went away before it was evaluated


class EvaluationEvent(StrEnum):
    CLAIM = "claim"
    RESULT = "result"
    FAIL = "fail"        # an attempt ended badly and another is worth while
    GIVE_UP = "give_up"  # the last attempt ended badly
    REQUEUE = "requeue"  # the attempt ended through no fault of its own (shutdown, crash of the daemon)
    RETRY = "retry"      # a person asked
    ABANDON = "abandon"
    REVIVE = "revive"    # the checkpoint came back


EVALUATION_TRANSITIONS: dict[tuple[EvaluationState, EvaluationEvent], EvaluationState] = {
    (EvaluationState.PENDING, EvaluationEvent.CLAIM): EvaluationState.RUNNING,
    (EvaluationState.PENDING, EvaluationEvent.ABANDON): EvaluationState.ABANDONED,
    (EvaluationState.PENDING, EvaluationEvent.RETRY): EvaluationState.PENDING,
    (EvaluationState.RUNNING, EvaluationEvent.RESULT): EvaluationState.DONE,
    (EvaluationState.RUNNING, EvaluationEvent.FAIL): EvaluationState.PENDING,
    (EvaluationState.RUNNING, EvaluationEvent.GIVE_UP): EvaluationState.FAILED,
    (EvaluationState.RUNNING, EvaluationEvent.REQUEUE): EvaluationState.PENDING,
    (EvaluationState.RUNNING, EvaluationEvent.ABANDON): EvaluationState.ABANDONED,
    (EvaluationState.FAILED, EvaluationEvent.RETRY): EvaluationState.PENDING,
    (EvaluationState.FAILED, EvaluationEvent.ABANDON): EvaluationState.ABANDONED,
    (EvaluationState.DONE, EvaluationEvent.RETRY): EvaluationState.PENDING,
    (EvaluationState.ABANDONED, EvaluationEvent.REVIVE): EvaluationState.PENDING,
}


class RemovalState(StrEnum):
    """The journal of one removal. Each arrow is written before the next step on disk is taken."""

    INTENDED = "intended"    # written before the rename into the trash
    TRASHED = "trashed"      # renamed, verified
    RESTORING = "restoring"  # written before the rename back
    RESTORED = "restored"    # back under its own name
    PURGING = "purging"      # written before the unlink
    PURGED = "purged"
    ABANDONED = "abandoned"  # not carried out: the file changed, vanished or was needed


class FailureKind(StrEnum):
    """Why an attempt at an evaluation ended without a result."""

    CHECKPOINT = "checkpoint"        # the checkpoint cannot be loaded, or lacks the variant
    NOT_FINITE = "not_finite"        # NaN or Inf in weights or images
    SAMPLER = "sampler"              # the user's sampler failed, hung, wrote too little or unreadable images
    RECIPE = "recipe"                # reference, prompts or network weights missing or wrong
    METRIC = "metric"                # a metric (perhaps the user's own) failed
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASH = "crash"                  # the worker process died
    LOST = "lost"                    # the daemon died or was stopped meanwhile
    INTERNAL = "internal"            # a fault of ckptwatch


class AlarmKind(StrEnum):
    """What can be wrong with a training run."""

    LOSS_SPIKE = "loss_spike"          # a loss far above its recent average
    METRIC_DROP = "metric_drop"        # a metric far below its best
    NOT_FINITE = "not_finite"          # NaN or Inf in a logged value
    WEIGHTS = "weights_not_finite"     # NaN or Inf in the weights of a checkpoint
    PLATEAU = "plateau"                # a loss that has stopped falling
    DIVERGENCE = "divergence"          # a loss that rises for good
    OVERFITTING = "overfitting"        # validation worsens while the training loss falls
    STUCK = "stuck_at_zero"            # a metric that has never been anything but 0
    STALLED = "stalled"                # no checkpoint for a multiple of the usual interval


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a re-written file a different checkpoint, without reading tensors."""

    device: int
    inode: int
    size: int         # bytes
    mtime_ns: int
    fingerprint: str = ""  # the format's own: digest of the header or directory of the file


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a format can say about a path without reading tensors."""

    format: str
    complete: bool
    evidence: str  # in words: "end of central directory at byte 80,412; 31 entries"
    step: int | None = None
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # logged by the trainer
    variants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # top-level entries: "model", "optimizer"; () where the format cannot tell
    fingerprint: str = ""
    content_digest: bool = False  # does an equal fingerprint mean equal weights?
    name_counts_saves: bool = False  # the number in the name is no step: Accelerate's `checkpoint_3` is the fourth save


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One saved training state, as recorded."""

    id: int
    run_id: int
    path: Path
    members: tuple[str, ...] = ()  # names of all entries, in the directory of `path`, of a set; (): `path` alone
    format: str
    state: CheckpointState
    evidence: str
    identity: Identity
    role: Role
    generation: int  # 0, then +1 each time a run starts over below its own newest step in the same directory
    step: int | None
    epoch: int | None
    metrics: Mapping[str, float]
    variants: tuple[str, ...]
    keys: tuple[str, ...] = ()  # top-level entries; () where the format cannot tell
    found_at: float
    pinned_by: str | None = None  # who, and why: "alice: used in the paper"
    logged: Mapping[str, "Attached"] = field(default_factory=dict)  # from the run's logs, by name; never what `metrics` has

    @property
    def entries(self) -> tuple[Path, ...]:
        """Everything that is moved when it is: its files, or its directory."""
        return tuple(self.path.with_name(name) for name in self.members) or (self.path,)

    @property
    def order(self) -> tuple[int, int, int]:
        """Position in its run: generation, step, epoch; never modification time. What is unknown comes first, so runs
        that count only epochs are ordered by epoch."""
        return (self.generation, -1 if self.step is None else self.step, -1 if self.epoch is None else self.epoch)


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A logged value that belongs to a checkpoint, and where it stood."""

    value: float
    step: int | None
    epoch: float | None
    source: str  # "metrics.csv": the log's path below the run's directory


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured metric. `low` and `high` bound the value at this sample count (95 %), where a method is honest."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None  # samples it rests on
    mode: Mode | None = None
    definition: str = ""  # e.g. "max(cos, 0), mean over pairs"
    source: str = ""      # of a logged value: "metrics.csv, step 400"; "": measured by an evaluation


@dataclass(frozen=True, kw_only=True)
class Failure:
    kind: FailureKind
    message: str
    hint: str = ""
    retryable: bool = True  # False where another attempt must end the same way (NaN weights)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One (checkpoint, variant, recipe digest)."""

    id: int
    checkpoint_id: int
    variant: str  # "" is the checkpoint as a whole
    recipe: str
    digest: str
    state: EvaluationState
    attempts: int
    available_at: float
    queued_at: float
    started_at: float | None = None
    finished_at: float | None = None
    seconds: float | None = None  # cost of the successful attempt
    failure: Failure | None = None
    log: Path | None = None
    samples: Path | None = None  # directory with generated images kept for people
    published: bool = False      # are samples and scalars out
    scores: Mapping[str, Score] = field(default_factory=dict)


# ---- how to evaluate ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A diffusers pipeline. With a base the checkpoint replaces one component of it, else it is a pipeline itself."""

    base: str = ""          # directory or hub name of the pipeline whose component the checkpoint is
    component: str = ""     # "unet", "transformer", …; "": the one of these two that the base has
    dtype: str = "float32"  # or float16, bfloat16


@dataclass(frozen=True, kw_only=True)
class Program:
    """A TorchScript or torch.export program, called as program(noise) or program(noise, labels)."""

    file: Path | None = None     # its weights are replaced by the variant's; None: the checkpoint is the program
    noise: tuple[int, ...] = ()  # shape of one sample's input, (C, H, W)
    low: float = -1.0            # range of its images
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Exactly one of command, factory, diffusers, program, images is set."""

    command: tuple[str, ...] = ()  # argv with {checkpoint} {variant} {prompts} {seed} {count} {out_dir} {device} …
    factory: str = ""              # "module:function", loaded once per worker
    diffusers: Pipeline | None = None
    program: Program | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the factory, or of the pipeline's call
    images: str = ""               # directory training wrote, with {step} {epoch} {run} {stem}
    timeout: float = 3600.0        # seconds, for one checkpoint

    @property
    def kind(self) -> str:
        return next((name for name in ("command", "diffusers", "program", "images") if getattr(self, name)), "python")


@dataclass(frozen=True, kw_only=True)
class EvaluationCommand:
    """The user's own evaluation program: it is given a checkpoint and answers with metrics as JSON."""

    # argv with {checkpoint} {run} {metadata} {lora} {csv_input} {max_samples} {out_dir} …; words that stand together in a
    # tuple are left out where a placeholder in them has no value: (("--csv", "{csv_input}"),)
    argv: tuple[str | tuple[str, ...], ...]
    result: str = ""                # file below {out_dir} with the metrics; "": the last line of standard output
    timeout: float = 3600.0         # seconds
    csv_input: Path | None = None
    max_samples: int | None = None
    log_samples: bool = False       # keep pairs of prediction and target
    log_interval: int = 1           # every n-th of them
    log_max_samples: int = 20       # at most so many


@dataclass(frozen=True, kw_only=True)
class Logged:
    """Which of the trainer's own logs count, and how their values find their checkpoints."""

    files: tuple[str, ...] = ()     # glob patterns below the run's directory; (): those that are found there
    step: str = ""                  # columns or keys that hold the step and the epoch; "": the usual ones
    epoch: str = ""
    attach: str = "not_later"       # or "exact", "nearest", "carry": see ckptwatch.core.attaching


@dataclass(frozen=True, kw_only=True)
class Reference:
    images: Path | None = None  # directory of reference images
    stats: Path | None = None   # mu (d,) and sigma (d, d): npz of pytorch-fid, clean-fid, JiT, ADM; pkl of EDM2
    paired: Path | None = None  # directory of originals for paired metrics (LPIPS); default: images


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks that metrics rest on. Weights default to the library's own download."""

    features: str = "inception-v3-compat"  # a torch-fidelity feature extractor
    features_layer: str = "2048"           # FID and KID
    logits_layer: str = "logits_unbiased"  # Inception Score
    features_weights: Path | None = None
    features_module: str = ""              # "module:function" that registers a third-party extractor
    clip: str = "ViT-B-32-quickgelu"       # an open_clip model name or "local-dir:PATH"
    clip_pretrained: str = "openai"        # an open_clip tag or a file
    lpips: str = "alex"                    # alex, vgg, squeeze
    lpips_weights: Path | None = None      # state dict of trunk and heads; default: the library's own
    prc: str = "vgg16"                     # precision and recall: a torch-fidelity feature extractor
    prc_layer: str = "fc2_relu"
    prc_weights: Path | None = None
    dino: str = "vit_large_patch14_dinov2.lvd142m"  # FD-DINOv2: a timm model
    dino_weights: Path | None = None
    cmmd: str = "ViT-L-14-336-quickgelu"   # CMMD: an open_clip model name or "local-dir:PATH"
    cmmd_pretrained: str = "openai"
    precision: str = "fp32"                # or tf32, bf16, fp16: only where a drift check allows it


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric of a recipe. A custom one names its function; a built-in one only its name."""

    name: str
    function: str = ""  # "module:function" of the generated images
    mode: Mode | None = None


@dataclass(frozen=True, kw_only=True)
class CompositeTerm:
    """value ↦ clip((value − low) / (high − low), 0, 1), times weight. A negative weight means lower is better."""

    weight: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Composite:
    terms: Mapping[str, CompositeTerm]
    missing: str = "error"  # "error": no composite without every term; "renormalise": weights of present terms scaled up


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to evaluate: by images of a sampler, by a program of the user's own, or by what training logged. Its digest
    (ckptwatch.recipes) makes scores comparable; the composite is not part of it, because composites are recomputed from
    stored scores."""

    name: str
    sampler: Sampler = field(default_factory=Sampler)
    command: EvaluationCommand | None = None  # instead of a sampler
    logged: Logged | None = None              # instead of both: nothing is run
    metrics: tuple[MetricSpec, ...]
    samples: int = 2000
    seed: int = 0
    batch_size: int = 32
    workers: int = 1             # at most so many share one evaluation, each a range of the samples
    prompts: Path | None = None  # one a line; sample i uses line i modulo their number
    num_classes: int | None = None  # class-conditional: sample i is of class i modulo this
    image_size: int | None = None   # px a side, for samplers that can be asked
    reference: Reference = field(default_factory=Reference)
    networks: Networks = field(default_factory=Networks)
    composite: Composite | None = None
    keep_samples: int = 20  # images kept for people (num_evaluation_samples)
    version: int = 1        # raise it when the sampler's code changed so that old scores no longer compare

    @property
    def kind(self) -> str:
        return "command" if self.command is not None else "logged" if self.logged is not None else "images"


# ---- what to do with a run ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvaluateRule:
    recipe: str
    every: int = 1        # every n-th checkpoint of the run, in its order
    every_steps: int | None = None   # instead of `every`: those whose step is a multiple
    every_epochs: int | None = None  # likewise by epoch; rolling files such as `last.ckpt` count
    final: bool = True    # `final` checkpoints are evaluated whatever `every` says
    variants: tuple[str, ...] = ()  # () means the checkpoint as a whole; ("all",) means every one found


@dataclass(frozen=True, kw_only=True)
class RankRule:
    by: str
    mode: Mode
    ties: str = "newest"  # or "oldest"
    period: int = 1       # only checkpoints of every n-th epoch take a place


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """One more metric by which the best are kept, with a ranking and an alias of its own."""

    rule: RankRule
    best: int  # −1 keeps all, 0 none, k the k best


@dataclass(frozen=True, kw_only=True)
class KeepRules:
    """Any rule that matches keeps. None switches a rule off."""

    best: int | None = None          # −1 keeps all, 0 none, k the k best, by the run's rank rule
    monitors: tuple[Monitor, ...] = ()  # by other metrics
    last: int | None = None
    every_steps: int | None = None   # one per so many steps, for good: milestones
    every_epochs: int | None = None
    within: float | None = None      # seconds


@dataclass(frozen=True, kw_only=True)
class AliasRule:
    directory: Path | None = None  # below the run; None is <root>/.ckptwatch/<run>/
    best: str | None = "best{suffix}"  # {suffix} {metric} {value} {step} {epoch}
    last: str | None = "last{suffix}"
    monitors: str | None = "best_{metric}{suffix}"  # one for each monitor of the keep rules


@dataclass(frozen=True, kw_only=True)
class HealthRule:
    """When training counts as ill. None switches a check off."""

    enabled: bool = True
    loss_spike: float | None = 2.0      # times the recent average of a loss
    metric_drop: float | None = 0.05    # below the best of a metric, in its own units
    not_finite: bool = True             # NaN or Inf in what is logged
    weights: bool = True                # and in the weights of new checkpoints, which are read whole for it
    window: int = 50                    # points that count as recent
    plateau: int | None = 500           # points over which a loss has not fallen
    divergence: bool = True
    overfitting: int | None = 5         # validations in a row that worsen while the training loss falls
    stuck: int | None = 5               # validations that are all exactly 0
    stalled: float | None = 3.0         # times the usual interval of checkpoints
    ignore: tuple[str, ...] = ()        # glob patterns of logged names that are not looked at


@dataclass(frozen=True, kw_only=True)
class RunRule:
    """What the configuration says about the runs whose name matches."""

    match: str = "*"
    expect: tuple[str, ...] = ()    # top-level entries every checkpoint should have: "model", "model_ema1", "optimizer"
    expect_logged: tuple[str, ...] = ()  # names its logs should have: "loss_kpt", "loss_cls"
    logged: Logged = field(default_factory=Logged)
    health: HealthRule = field(default_factory=HealthRule)
    evaluate: EvaluateRule | None = None
    rank: RankRule | None = None
    keep: KeepRules | None = None   # None: nothing is ever removed
    grace: float = 86400.0          # seconds in the trash
    approve_over: float = 0.5       # a plan that removes a larger part of a run waits for `approve`
    aliases: AliasRule = field(default_factory=AliasRule)
    ended_after: float = 3600.0     # seconds without a new checkpoint after which a run counts as ended

    @property
    def best_count(self) -> int | None:
        """How many of the best by its rank rule are kept; None where no rule says so."""
        if self.keep is None or self.rank is None:
            return None
        own = (m.best for m in self.keep.monitors if m.rule.by == self.rank.by)
        return self.keep.best if self.keep.best is not None else next(own, None)


# ---- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A (checkpoint, variant) that wants a place in the ranking."""

    checkpoint_id: int
    path: Path
    generation: int
    step: int | None
    epoch: int | None
    variant: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)
    digest: str | None = None   # of the recipe that gave the scores; None: logged by the trainer, or not evaluated
    evaluation_id: int | None = None  # that gave them
    note: str = ""              # why it has no scores: "evaluation pending", "weights not finite: 3 tensors"


@dataclass(frozen=True, kw_only=True)
class Place:
    rank: int
    contender: Contender
    score: Score
    reason: str  # "fid 7.41, 0.03 behind #1, tie within error"


@dataclass(frozen=True, kw_only=True)
class Unranked:
    contender: Contender
    reason: str  # "no score for fid: evaluation failed (…)"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    metric: str
    mode: Mode
    digest: str | None
    places: tuple[Place, ...]
    unranked: tuple[Unranked, ...]

    @property
    def best(self) -> Place | None:
        return self.places[0] if self.places else None


@dataclass(frozen=True, kw_only=True)
class RetentionFacts:
    """What the retention rules may know about one checkpoint."""

    checkpoint: Checkpoint
    rank: int | None = None          # best place among its variants
    ranks: Mapping[str, int] = field(default_factory=dict)  # the same by each monitor's metric
    unranked: str = ""               # why it has none, where a rank was wanted
    unranked_by: Mapping[str, str] = field(default_factory=dict)  # the same by each monitor's metric
    deliberately_unranked: bool = False  # `every` leaves it out: no rank is owed, the other rules decide
    awaits: str = ""                 # "evaluation pending", "evaluation running": never removed meanwhile
    protected: tuple[str, ...] = ()  # what else forbids removal: "best.pt points here"


class Action(StrEnum):
    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, kw_only=True)
class Decision:
    checkpoint: Checkpoint
    action: Action
    reasons: tuple[str, ...]  # never empty


@dataclass(frozen=True, kw_only=True)
class RetentionPlan:
    decisions: tuple[Decision, ...]  # one for every checkpoint given, in run order
    held: str = ""  # why the plan is not to be applied: "removes 8 of 12 (more than half): needs approval"

    @property
    def removals(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.action is Action.REMOVE)

    @property
    def reclaimed(self) -> int:
        """Bytes."""
        return sum(d.checkpoint.identity.size for d in self.removals)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A relative symlink and the checkpoint it should point to."""

    link: Path
    target: Path


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One entry of the removal journal."""

    id: int
    checkpoint_id: int
    run: str
    step: int | None
    original: Path
    trash: Path
    state: RemovalState
    reason: str
    bytes: int
    at: float
    purge_at: float
    members: tuple[str, ...] = ()  # names beside `original` and `trash` that move together; (): those two alone

    @property
    def moves(self) -> tuple[tuple[Path, Path], ...]:
        """(original, trash) of every entry; the one the checkpoint is called by comes first."""
        others = (m for m in self.members if m != self.original.name)
        return ((self.original, self.trash),
                *((self.original.with_name(m), self.trash.with_name(m)) for m in others))


@dataclass(frozen=True, kw_only=True)
class Run:
    id: int
    root: Path
    name: str
    path: Path
    created_at: float
    ended_at: float | None = None
    approved: frozenset[int] = frozenset()  # checkpoints whose removal a person approved


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """What looks ill at this moment. Equal `kind` and `subject`: the same alarm, perhaps grown worse."""

    kind: AlarmKind
    subject: str                 # the logged name, or the checkpoint
    message: str                 # what was seen, with its numbers: "loss 4.81 at step 1,200 is 6.2 × its average 0.78"
    numbers: Mapping[str, float] = field(default_factory=dict)  # {"current": 4.81, "average": 0.78, "ratio": 6.2}
    causes: tuple[str, ...] = ()  # likely ones, most likely first
    step: int | None = None      # since when, where that is known
    epoch: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A symptom from its first sight to its end."""

    id: int
    run_id: int
    symptom: Symptom
    go_back_to: Path | None      # the checkpoint from which training was still well
    opened_at: float
    updated_at: float
    closed_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightScan:
    """What reading all weights of a checkpoint found."""

    state: str                   # "finite", "not_finite", "unreadable", "unsupported"
    tensors: int = 0             # looked at
    bytes: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)  # tensor → how many of its numbers are NaN or Inf, the first 20
    bad_tensors: int = 0
    words: str = ""              # why it could not be done


@dataclass(frozen=True, kw_only=True)
class Event:
    """One row of the append-only history."""

    at: float
    kind: str
    message: str
    by: str = "ckptwatch"
    run: str | None = None
    path: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def evolve(value: T, **changes: Any) -> T:
    """A copy of a frozen dataclass with some fields changed."""
    return replace(value, **changes)


def to_plain(value: Any) -> Any:
    """A dataclass as JSON-ready dicts, lists, strings and numbers (paths become strings)."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
