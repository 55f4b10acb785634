"""Errors in the steps that a user wrote: which line it is, and what to write instead."""

from __future__ import annotations

import contextlib
import dis
import inspect
import linecache
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from fmnist_keras3.ground.errors import UserError

_PACKAGES = ("keras", "jax", "jaxlib", "tensorflow", "numpy", "optree", "fmnist_keras3")
_BRANCH = (
    "Python cannot branch on a tensor, which has no value while the step is compiled (if, while, "
    "and, or, not, assert). Type keras.ops.where(condition, a, b), or keras.ops.cond."
)
_VALUE = (
    "a tensor has no value while the step is compiled. Leave float(), int(), .item() and formats "
    "out: log the tensor itself, and compute with keras.ops."
)
_NUMPY = "NumPy cannot compute with tensors of a compiled step. Type keras.ops instead of numpy."
_SHAPE = (
    "the shape of a tensor must not depend on values. Type keras.ops.where(mask, x, 0) instead of "
    "x[mask]."
)
_LOOP = "Python cannot loop over a tensor. Type keras.ops.scan, or compute with all at once."
_VARIABLE = "a step makes no variables. Make it in __init__, and only use it here."

# By the class of the exception, and what its message has.
_KNOWN = (
    ("TracerBoolConversionError", "", _BRANCH),
    ("NonConcreteBooleanIndexError", "", _SHAPE),
    ("TracerArrayConversionError", "", _NUMPY),
    ("TracerIntegerConversionError", "", _VALUE),
    ("ConcretizationTypeError", "", _VALUE),
    ("OperatorNotAllowedInGraphError", "terat", _LOOP),
    ("OperatorNotAllowedInGraphError", "", _BRANCH),
    ("NotImplementedError", "numpy array", _NUMPY),
    ("TypeError", "SymbolicTensor", _VALUE),
    ("TypeError", "symbolic", _VALUE),
    ("TypeError", "unsupported format string", _VALUE),
    ("ValueError", "create a variable", _VARIABLE),
    *(("AttributeError", f"attribute {name}", _VALUE) for name in ("numpy", "item")),
    *(("AttributeError", f"attribute '{name}'", _VALUE) for name in ("numpy", "item")),
)


# Where a step that its class has not written is looked for: a test is a validation by default.
_DEFAULTS = {"test_step": "validation_step", "validation_step": "training_step"}


@contextlib.contextmanager
def explained_at(owner: type, name: str) -> Iterator[None]:
    """Raise UserError, with the line of the user's code, for what is raised inside.

    That is of the method ``owner.name`` itself, or of what was found to be wrong with its result.
    """
    try:
        yield
    except NotImplementedError as error:
        if not str(error):
            takes = ", ".join(inspect.signature(getattr(owner, name)).parameters)
            where = _class_line(owner)
            raise UserError(
                f"{owner.__name__}{where} has no {name}. Write it: def {name}({takes}): ..."
            ) from None
        raise _explained(error, owner, name) from error
    except UserError as error:
        place = _line(error) or _result_line(owner, name)
        where = f"{owner.__name__}.{name}, {place}" if place else f"{owner.__name__}.{name}"
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        raise _explained(error, owner, name) from error


def _explained(error: Exception, owner: type, name: str) -> UserError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    what = next((how for kind, part, how in _KNOWN if kind in kinds and part in text), None)
    if what is None:
        what = (
            f"{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else error!r}"
        )
    place = _line(error) or _result_line(owner, name) or "in a library"
    return UserError(f"{owner.__name__}.{name}, {place}: {what}")


def _line(error: Exception) -> str:
    """Return the innermost line that is not of a library: "mine.py, line 31, `if loss > 1:`"."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _of_library(f.filename)]
    return _told(frames[-1].filename, frames[-1].lineno or 0) if frames else ""


def _result_line(owner: type, name: str) -> str:
    """Return the line of a method's return, or its first line where it has several."""
    code = _code(owner, name)
    while name in _DEFAULTS and (code is None or _of_library(code.co_filename)):
        name = _DEFAULTS[name]
        code = _code(owner, name)
    if code is None or _of_library(code.co_filename):
        return ""
    ends = {
        i.positions.lineno
        for i in dis.get_instructions(code)
        if i.opname in ("RETURN_VALUE", "RETURN_CONST") and i.positions is not None
    }
    line = ends.pop() if len(ends) == 1 else code.co_firstlineno
    return _told(code.co_filename, line or code.co_firstlineno)


def _code(owner: type, name: str) -> CodeType | None:
    method: Any = inspect.unwrap(getattr(owner, name))
    return getattr(method, "__code__", None)


def _class_line(owner: type) -> str:
    try:
        file, (_, number) = inspect.getsourcefile(owner), inspect.getsourcelines(owner)
    except (OSError, TypeError):  # typed into a shell, or made by type()
        return ""
    return f" ({Path(file or '').name}, line {number})"


def _told(file: str, number: int) -> str:
    code = linecache.getline(file, number).strip()
    return f"{Path(file).name}, line {number}" + f", `{code}`" * bool(code)


def _of_library(file: str) -> bool:
    here = [str(Path(sys.modules[n].__file__ or "").parent) for n in _PACKAGES if n in sys.modules]
    own = any(file.startswith(f"{folder}/") for folder in here) and "/examples/" not in file
    return own or file.startswith("<") or "site-packages" in Path(file).parts
