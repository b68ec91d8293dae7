"""Work done ahead: in order, one item ahead, and no thread is left behind."""

import threading

import pytest

from pyrerank.engine.ahead import ahead


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("pyrerank-ahead")]


def test_order():
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, False])) == [None, False]
    assert not threads()


def test_the_next_is_made_while_one_is_used_and_no_more():
    made = []
    second = threading.Event()

    def items():
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    numbers = ahead(items())
    assert next(numbers) == 0
    assert second.wait(60)  # nobody asked for it
    assert made == [0, 1]
    assert list(numbers) == [1, 2, 3]


def test_nothing_starts_before_it_is_asked_for():
    unused = ahead(pytest.fail("made") for _ in range(1))
    assert not threads()
    unused.close()


def test_an_error_comes_in_the_place_of_its_item():
    error = ValueError("of the third")

    def items():
        yield from (0, 1)
        raise error

    numbers = ahead(items())
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(ValueError) as caught:
        next(numbers)
    assert caught.value is error
    assert not threads()


@pytest.mark.parametrize("leave", [GeneratorExit, KeyboardInterrupt])
def test_leaving_early_ends_the_thread(leave):
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    numbers = ahead(items())
    next(numbers)
    with pytest.raises(leave):
        numbers.throw(leave)  # as closing it does, and a Ctrl-C while the item is used
    assert not threads()
    assert len(made) <= 2
