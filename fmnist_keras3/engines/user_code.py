"""Errors in the steps that a user wrote: which line it is, and what to write instead."""

from __future__ import annotations

import contextlib
import linecache
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from fmnist_keras3.ground.errors import UserError

_PACKAGES = ("keras", "jax", "jaxlib", "tensorflow", "numpy", "optree", "fmnist_keras3")
_BRANCH = (
    "Python cannot branch on a tensor, which has no value while the step is compiled (if, while, "
    "and, or, not, assert). Type keras.ops.where(condition, a, b), or keras.ops.cond."
)
_VALUE = (
    "a tensor has no value while the step is compiled. Leave float(), int() and .item() out: log "
    "the tensor itself, and compute with keras.ops."
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
    ("ValueError", "create a variable", _VARIABLE),
    ("AttributeError", "'numpy'", _VALUE),
    ("AttributeError", "'item'", _VALUE),
)


@contextlib.contextmanager
def explained_at(owner: type, name: str) -> Iterator[None]:
    """Raise UserError, with the line of the user's code, for what ``owner.name`` raises inside."""
    try:
        yield
    except UserError:
        raise
    except NotImplementedError as error:
        if not str(error):
            raise UserError(
                f"{owner.__name__} has no {name}. Write it: def {name}(self, batch): ..."
            ) from None
        raise _explained(error, owner, name) from error
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
    return UserError(f"{owner.__name__}.{name}, {_line(error)}: {what}")


def _line(error: Exception) -> str:
    """Return the innermost line that is not of a library: "mine.py, line 31, `if loss > 1:`"."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _of_library(f.filename)]
    if not frames:
        return "in a library"
    frame = frames[-1]
    code = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"{Path(frame.filename).name}, line {frame.lineno}" + f", `{code}`" * bool(code)


def _of_library(file: str) -> bool:
    here = [str(Path(sys.modules[n].__file__ or "").parent) for n in _PACKAGES if n in sys.modules]
    own = any(file.startswith(f"{folder}/") for folder in here) and "/examples/" not in file
    return own or file.startswith("<") or "site-packages" in Path(file).parts
