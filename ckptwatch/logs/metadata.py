"""`checkpoint_metadata.json`: the metrics of one checkpoint, as the trainer last wrote them."""

from pathlib import PurePath
from typing import Any

from ckptwatch.core.naming import parse_name
from ckptwatch.core.series import LogRow
from ckptwatch.formats.reading import is_name, numbers_in, whole_number
from ckptwatch.logs.base import Fed, State
from ckptwatch.logs.documents import digest_of, epoch_in, looks_like_document, read_document
from ckptwatch.model import Logged

METADATA = "checkpoint_metadata.json"


class CheckpointMetadata:
    name = "checkpoint-metadata"
    precedence = 12
    title = "`metrics` of checkpoint_metadata.json"
    files = "`checkpoint_metadata.json`"

    def claims(self, path: PurePath, head: bytes) -> bool:
        return path.name == METADATA and looks_like_document(head)

    def reader(self, logged: Logged, state: State | None = None) -> "MetadataReader":
        return MetadataReader(logged, state or {})


class MetadataReader:
    """One row, told again only when it is another. Without `step`, `global_step` and `epoch` the name of the
    `source_checkpoint` says where it belongs; without any of these there is no row."""

    whole = True

    def __init__(self, logged: Logged, state: State) -> None:
        self._steps = (logged.step,) if logged.step else ("step", "global_step")
        self._epoch = logged.epoch or "epoch"
        self._told = str(state.get("told", ""))

    def feed(self, data: bytes) -> Fed:
        try:
            content = read_document(data)
        except ValueError as error:
            return Fed(consumed=0, trouble=str(error))  # half written, it comes again
        values = numbers_in(content.get("metrics"))
        step, epoch = self._counts(content)
        if not values:
            return Fed(consumed=len(data))
        if step is None and epoch is None:
            return Fed(consumed=len(data), bad=1, trouble="metrics without step and epoch belong to no checkpoint")
        digest = digest_of([step, epoch, values])
        if digest == self._told:
            return Fed(consumed=len(data))
        self._told = digest
        return Fed(consumed=len(data), rows=[LogRow(step=step, epoch=epoch, values=values)])

    def state(self) -> State:
        return {"told": self._told}

    def _counts(self, content: dict[str, Any]) -> tuple[int | None, float | None]:
        step = next((n for n in (whole_number(content.get(key)) for key in self._steps) if n is not None), None)
        epoch = epoch_in(content.get(self._epoch))
        source = content.get("source_checkpoint")
        if step is None and epoch is None and is_name(source):
            named = parse_name(PurePath(source).name)
            step, epoch = named.step, None if named.epoch is None else float(named.epoch)
        return step, epoch
