"""Finding a user's function from its name "module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from ckptwatch.errors import EvaluationError
from ckptwatch.evaluate.failures import describe, recipe_error


def load_function(name: str, purpose: str) -> Callable[..., Any]:
    """The callable that "package.module:attribute.attribute" names.

    `purpose` says in the error what it was wanted for: "sampler factory". Raises EvaluationError of kind RECIPE when
    the module cannot be imported, has no such attribute, or the attribute cannot be called.
    """
    def problem(cause: str, hint: str = "") -> EvaluationError:
        return recipe_error(f"load {purpose}", cause, path=name, hint=hint, retryable=False)

    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise problem("not of the form module:function", "write it like mypackage.sampling:make_sampler")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise problem(
            f"no module named {error.name!r}",
            "install it where ckptwatch is installed, or put its directory into PYTHONPATH of the daemon",
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may do anything at import
        raise problem(f"importing it failed: {describe(error)}", "the log has the traceback") from error
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise problem(f"module {module_name} has no {attribute!r}") from error
    if not callable(value):
        raise problem(f"{attribute!r} is a {type(value).__name__}, not something to call")
    return value
