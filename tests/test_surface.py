"""What users see of an engine is this and no more, and every error of ours has one base class."""

import importlib
import inspect
import pkgutil

import pytest

import pyrerank
from pyrerank import Embedder, PyrerankError, Reranker

COMMON = {"close", "core", "details", "device_memory", "max_tokens", "warmup"}
METHODS = {Reranker: {"explain", "rank", "score"}, Embedder: {"embed"}}
FACTS = {
    Reranker: {"device", "dtype", "instruction", "token_budget"},
    Embedder: {"device", "dim", "dtype", "normalize", "token_budget"},
}
NEEDS = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"}  # of what is optional


@pytest.fixture(scope="module", params=FACTS, ids=lambda face: face.__name__)
def engine(request, random_reranker):
    with request.param(random_reranker, device="cpu", max_tokens=512) as engine:
        yield engine


def test_the_public_surface_of_an_engine(engine):
    public = {name for name in dir(engine) if not name.startswith("_")}
    assert public == COMMON | METHODS[type(engine)] | FACTS[type(engine)]


def test_facts_are_read_only(engine):
    for name in FACTS[type(engine)]:
        with pytest.raises(AttributeError, match="has no setter"):
            setattr(engine, name, getattr(engine, name))


def ours() -> set[type[BaseException]]:
    """The classes of errors that modules of pyrerank define for others to catch."""
    found = set()
    for module in pkgutil.walk_packages(pyrerank.__path__, "pyrerank."):
        if module.name.endswith("__main__"):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError as error:
            assert error.name in NEEDS, error
            continue
        public = [value for name, value in names.items() if not name.startswith("_")]
        classes = [value for value in public if getattr(value, "__module__", "") == module.name]
        found.update(c for c in classes if inspect.isclass(c) and issubclass(c, BaseException))
    return found


def test_every_error_stands_under_the_base_class():
    errors = {error for error in ours() if not issubclass(error, Warning)}
    assert errors > {pyrerank.CheckpointChanged, pyrerank.NonFiniteScore, pyrerank.OutOfMemory}
    assert [error for error in errors if not issubclass(error, PyrerankError)] == []


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (pyrerank.CheckpointError, ValueError),
        (pyrerank.NonFiniteScore, ArithmeticError),
        (pyrerank.DeviceError, RuntimeError),
        (pyrerank.OutOfMemory, pyrerank.DeviceError),
        (pyrerank.EngineClosed, pyrerank.DeviceError),
        (pyrerank.CheckpointChanged, pyrerank.CheckpointError),
        (pyrerank.CheckpointChanged, pyrerank.EngineClosed),
    ],
)
def test_errors_stand_under_builtin_ones_too(error, builtin):
    assert issubclass(error, builtin)


def test_a_wrong_argument_is_no_error_of_ours(engine):
    with pytest.raises(ValueError, match="max_tokens must be an int") as raised:
        engine.max_tokens = -1
    assert not isinstance(raised.value, PyrerankError)
