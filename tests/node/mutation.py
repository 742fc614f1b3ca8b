"""Leaving a rule out of the program: one passage of a module's source is replaced while a test runs.

So a test can show that another one finds the program without the rule. A passage that is not there any more, or more
than once, is an error: a mutation never rots in silence.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Mutation(NamedTuple):
    """In this module, `passage` becomes `instead`; `why` says what is left out."""

    module: types.ModuleType
    passage: str
    instead: str
    why: str


@contextmanager
def left_out(mutation: Mutation) -> Iterator[None]:
    """Run with the methods of the changed source."""
    module = mutation.module
    source = inspect.getsource(module)
    assert source.count(mutation.passage) == 1, f"{module.__name__} has not exactly one {mutation.passage!r}"
    changed = types.ModuleType(module.__name__)
    changed.__dict__.update(module.__dict__)
    exec(compile(source.replace(mutation.passage, mutation.instead), str(module.__file__), "exec"), changed.__dict__)
    undo = []
    for name, original in vars(module).items():
        if not inspect.isclass(original) or original.__module__ != module.__name__:
            continue
        for attribute, value in list(vars(original).items()):
            if isinstance(value, types.FunctionType):
                undo.append((original, attribute, value))
                setattr(original, attribute, vars(getattr(changed, name))[attribute])
    try:
        yield
    finally:
        for original, attribute, value in undo:
            setattr(original, attribute, value)
