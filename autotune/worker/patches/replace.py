"""How is a name replaced, or a callback added, for a while?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(target: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`target.name` is `make(what it was)` inside, and what it was afterwards.

    Args:
        target: a module, a class, or an object (whose class is left alone: the object gets an attribute of its own).
        name: an attribute that is there.
        make: gets the present value, so that several replacements of one name stack.
    """
    own = name in vars(target)
    stock = getattr(target, name)
    setattr(target, name, make(stock))
    try:
        yield
    finally:
        if own:
            setattr(target, name, stock)
        else:
            delattr(target, name)


@contextmanager
def callback(trainer: Any, event: str, function: Callable[[Any], None]) -> Iterator[None]:
    """The trainer calls `function(trainer)` at each `event` inside, after the callbacks that are there already."""
    trainer.add_callback(event, function)
    try:
        yield
    finally:
        trainer.callbacks[event].remove(function)
