"""What every public name says of itself: a sentence, its arguments, its errors, an example."""

import ast
import builtins
import inspect
import re
from pathlib import Path

import pytest

import fmnist_keras3

PACKAGE = Path(fmnist_keras3.__file__).parent
PUBLIC = {name: getattr(fmnist_keras3, name) for name in fmnist_keras3.__all__}
ERRORS = {n for n, made in PUBLIC.items() if isinstance(made, type) and issubclass(made, Exception)}
CLASSES = {n: m for n, m in PUBLIC.items() if isinstance(m, type) and n not in ERRORS}
METHODS = {
    f"{name}.{attribute}": (kind, attribute)
    for name, kind in CLASSES.items()
    for attribute, value in inspect.getmembers(kind)
    if not attribute.startswith("_")
    and (inspect.isfunction(value) or isinstance(value, property))
    and getattr(value, "fget", value).__module__.startswith("fmnist_keras3")
}
# What an example may take as given.
GIVEN = {"model", "data", "trainer", "result", "images", "x", "y", "x_val", "y_val"}
GIVEN |= {"x_train", "y_train", "np", "keras", "trial"}


def doc(name):
    """The docstring of a public name, or of a method: its own, or that of what it overrides."""
    kind, attribute = METHODS.get(name, (None, None))
    return inspect.getdoc(getattr(kind, attribute) if kind else PUBLIC[name]) or ""


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_it_begins_with_a_sentence_on_one_line(name):
    first, *rest = doc(name).splitlines() or [""]
    assert re.fullmatch(r"[A-Z`].*\.", first), first
    assert not rest or rest[0] == "", "the first sentence goes on in the second line"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_names_what_its_constructor_takes(name):
    kind = CLASSES[name]
    own = kind.__init__ is not object.__init__
    parameters = dict(inspect.signature(kind.__init__).parameters) if own else {}
    parameters.pop("self", None)
    texts = " ".join(doc(base.__name__) for base in kind.__mro__ if base.__name__ in CLASSES)
    named = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [n for n in named if not re.search(rf"``[^`]*\b{n}\b[^`]*``", texts)] == []


def functions():
    """All functions of the package by (class or None, name): their syntax trees.

    Without those whose name is in two modules, as calls do not tell which one they mean.
    """
    found, twice = {}, set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            owner = node.name if isinstance(node, ast.ClassDef) else None
            here = {(owner, f.name): f for f in inner if isinstance(f, ast.FunctionDef)}
            twice |= found.keys() & here.keys()
            found |= here
    return {key: tree for key, tree in found.items() if key not in twice}


def refusing():
    """Those functions that raise UserError, themselves or in what they call by its name."""

    def calls(owner, function):
        for node in ast.walk(function):
            match node:
                case ast.Call(ast.Name(name)):
                    yield (name, "__init__") if (name, "__init__") in trees else (None, name)
                case ast.Call(ast.Attribute(ast.Name("self"), name)):
                    yield owner, name

    trees = functions()
    raising = {
        key
        for key, function in trees.items()
        for node in ast.walk(function)
        if isinstance(node, ast.Raise) and "UserError" in ast.dump(node)
    }
    while more := {k for k, f in trees.items() if raising & set(calls(k[0], f))} - raising:
        raising |= more
    return raising


def test_what_raises_says_so():
    silent = []
    for owner, name in refusing():
        of_class = doc(owner) if owner in CLASSES else ""
        if owner is None and name in PUBLIC:
            own = doc(name)
        elif f"{owner}.{name}" in METHODS or (owner in CLASSES and name == "__init__"):
            own = "" if name == "__init__" else doc(f"{owner}.{name}")
        else:
            continue
        if "Raises UserError" not in own + of_class:
            silent.append(f"{owner}.{name}" if owner else name)
    assert sorted(silent) == []


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - ERRORS))
def test_it_has_an_example_of_names_that_exist(name):
    example = re.search(r"Example: ``(.*?)``(?=\s|$)", doc(name), re.DOTALL)
    assert example, "no Example: ``...``"
    tree = ast.parse(re.sub(r"\n\s*", " ", example[1]))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    unknown = {node.id for node in names} - bound - GIVEN - set(PUBLIC) - set(dir(builtins))
    assert not unknown
    for call in ast.walk(tree):
        match call:
            case ast.Call(ast.Name(called), positional, keywords) if called in PUBLIC:
                options = {keyword.arg: None for keyword in keywords}
                inspect.signature(PUBLIC[called]).bind(*positional, **options)
