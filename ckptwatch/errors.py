"""Every error a person can meet. Each names the operation, the path, the cause and the next step."""

from pathlib import Path


class CkptwatchError(Exception):
    """Base of all errors shown to a person.

    `operation` says what was being done, `cause` what went wrong, `path` where, `hint` what to do next.
    """

    exit_status = 1

    def __init__(self, operation: str, cause: str, *, path: Path | str | None = None, hint: str = "") -> None:
        self.operation = operation
        self.cause = cause
        self.path = path
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" {self.path}" if self.path is not None else ""
        hint = f"\n  → {self.hint}" if self.hint else ""
        return f"cannot {self.operation}{where}: {self.cause}{hint}"


class UsageError(CkptwatchError):
    """The command line cannot be followed."""

    exit_status = 2


class ConfigError(CkptwatchError):
    """The configuration has problems; all of them are listed, each with its place."""

    exit_status = 2

    def __init__(self, path: Path | str | None, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "".join(f"\n  - {p}" for p in problems)
        super().__init__("use configuration", f"{count}{listed}", path=path, hint="see docs/configuration.md")


class StateError(CkptwatchError):
    """The state directory cannot be used: not writable, held by another daemon, too new."""


class RootError(CkptwatchError):
    """A watched root is missing, unmounted or not the one it was."""


class RemovalRefused(CkptwatchError):
    """A removal, restore or purge was not carried out because something did not hold any more."""


class EvaluationError(CkptwatchError):
    """An evaluation ended without a result. `kind` is a model.FailureKind, `retryable` as in model.Failure."""

    def __init__(
        self, operation: str, cause: str, *, kind: str, path: Path | str | None = None, hint: str = "",
        retryable: bool = True,
    ) -> None:
        super().__init__(operation, cause, path=path, hint=hint)
        self.kind = kind
        self.retryable = retryable
