"""What a pass leaves comes before the keys and values of the next, in each layer."""

import torch

from pyrerank.engine.prefix import Prefix

LAYERS = 2


def rows_of(*tokens: str) -> torch.Tensor:
    """[T, 1, 1], a number for each token, which are letters."""
    return torch.tensor([[[float(ord(token))]] for token in tokens])


def a_pass(prefix: Prefix, tokens: str, left: list[int]) -> list[str]:
    """What each layer's keys are after it; layers are told apart by capital letters."""
    prefix.rows = torch.tensor(left, dtype=torch.int32)
    seen = []
    for own in (tokens.lower(), tokens.upper()):
        key, value = prefix.extend(rows_of(*own), rows_of(*own) + 1000)
        assert torch.equal(key + 1000, value)
        seen.append("".join(chr(int(number)) for number in key.flatten()))
    return seen


def test_passes_follow_one_another():
    prefix = Prefix(LAYERS)
    prefix.cut(0)
    assert a_pass(prefix, "abcd", [0, 1, 3]) == ["abcd", "ABCD"]
    assert a_pass(prefix, "ef", [0, 2, 4]) == ["abdef", "ABDEF"]
    prefix.cut(2)
    assert a_pass(prefix, "g", []) == ["adg", "ADG"]
    assert a_pass(prefix, "h", [0]) == ["h", "H"]
    prefix.cut(0)
    assert a_pass(prefix, "i", [0]) == ["i", "I"]
