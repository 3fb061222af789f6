"""The exception tree: every error survives the way to another process."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil

import pytest

import bindsearch
from bindsearch import errors
from bindsearch.errors import BindSearchError, DecodeError, MissingExtraError, UnknownNameError, reason_of

PARTS = {
    UnknownNameError: ("modality", "termal", ["thermal", "audio"], "Look again."),
    DecodeError: ("a.png", "is empty", "read"),
    MissingExtraError: ("faiss", "faiss", "searching by lists"),
}
"""What the errors with parts are made of; all others take their message."""


def tree(root: type[BindSearchError] = BindSearchError) -> list[type[BindSearchError]]:
    return [root, *(kind for below in root.__subclasses__() for kind in tree(below))]


def test_every_error_is_pickled_and_copied():
    for module in pkgutil.iter_modules(bindsearch.__path__):
        if module.name in ("embed", "index", "search", "store"):  # where errors of their own may be
            importlib.import_module(f"bindsearch.{module.name}")
    kinds = [kind for kind in tree() if kind.__module__.startswith("bindsearch.")]
    assert {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BindSearchError)
    } <= set(kinds)
    for kind in kinds:
        error = kind(*PARTS.get(kind, ("what went wrong",)))
        error.add_note("a note")
        for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert (type(again), str(again), again.args) == (kind, str(error), error.args)
            assert vars(again) == vars(error)
            assert again.exit_code == error.exit_code


@pytest.mark.parametrize(
    ("error", "reason"), [(EOFError(), "EOFError"), (ValueError("\n one\ntwo "), "one"), (OSError(" \n"), "OSError")]
)
def test_a_foreign_error_gives_a_reason_even_without_words(error, reason):
    assert reason_of(error) == reason
