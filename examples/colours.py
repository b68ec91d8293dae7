"""A Qwen3-VL vision tower that names colours: set by hand, not trained.

Each square of 32 x 32 pixels is one token of the decoder. For each, the tower writes the embedding
of the word of its colour, if that is one of the picture's main colours. So a picture is a text of
as many words to the decoder, such as "blue blue gray". The tower sees no shapes.

Block 0: on which side of each plane in the space of colours does the mean colour of a patch of
    16 x 16 pixels lie?
Block 1: which colour is on these sides?
Block 2: is it a main colour? Attention is even, so it adds to a patch's colour the part of the
    picture that has it.
Merger: where three of a square's four patches have one main colour, its word; elsewhere MIXED.

The attention of blocks 0 and 1 and the features of DeepStack are zero. Each LayerNorm is undone:
every channel has its negative, so that the mean is 0, and two channels are so large that the
deviation is always nearly the same.
"""

import math

import torch

# A colour (red, green and blue, from 0 to 1) is on a side of a plane if its product with the first
# three numbers is over the last.
PLANES = {
    "cool": (-1.0, 0.0, 1.0, 0.1),
    "warm": (1.0, 0.0, -1.0, 0.1),
    "greenish": (-1.0, 1.0, 0.0, 0.05),
    "reddish": (1.0, -1.0, 0.0, 0.1),
    "crimson": (1.0, -2.1, 0.0, 0.0),
    "golden": (-0.8, 1.0, 0.0, 0.0),
    "bright": (1.0, 0.0, 0.0, 0.65),
    "rich": (1.0, 0.0, -1.0, 0.35),
    "light": (0.3, 0.6, 0.1, 0.7),
    "dark": (-0.3, -0.6, -0.1, -0.2),
}
# The sides on which each colour lies; no two colours share a point.
COLOURS = {
    "blue": "+cool -reddish",
    "green": "+greenish -cool",
    "purple": "+reddish -warm",
    "red": "+warm -greenish +crimson",
    "brown": "+warm -greenish -crimson -bright",
    "pink": "+warm -greenish -crimson +bright -rich",
    "orange": "+warm -greenish -crimson +bright +rich -golden",
    "yellow": "+warm -greenish +bright +rich +golden",
    "white": "-cool -warm -greenish -reddish +light",
    "gray": "-cool -warm -greenish -reddish -light -dark",
    "black": "-cool -warm -greenish -reddish +dark",
}
MIXED = "mixed"
MAIN = 0.15  # a main colour covers at least this part of a picture

# This is half of the channels; the other half are their negatives.
RED, GREEN, BLUE, LARGE = range(4)
SIDES = 4
NAMED = SIDES + len(PLANES)
KEPT = NAMED + len(COLOURS)
HALF = KEPT + len(COLOURS)
WIDTH = 2 * HALF
BALLAST = 32.0  # the value of the large channels; the others are from -1 to 1
DEPTH = 3
PATCHES = 4  # of a square
NEURONS = 2 * len(COLOURS)  # of a block, two for each step
STEEP = 8.0  # height of a step before it is brought to 1: the corners of GELU are 2 wide


def vision_config(out_hidden_size: int) -> dict[str, object]:
    return {
        "deepstack_visual_indexes": [0],
        "depth": DEPTH,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": WIDTH,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": NEURONS,
        "model_type": "qwen3_vl",
        "num_heads": 1,
        "num_position_embeddings": 4,
        "out_hidden_size": out_hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def vision_tensors(words: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Makes the tensors of the tower, float32, by their published names.

    words: of each colour and of MIXED, the row [out_hidden_size] of the decoder that stands for it.
    """
    out, merged = len(words[MIXED]), PATCHES * WIDTH
    tensors = {
        "patch_embed.proj.weight": torch.zeros(WIDTH, 3, 2, 16, 16),
        "patch_embed.proj.bias": torch.zeros(WIDTH),
        "pos_embed.weight": torch.zeros(4, WIDTH),
    }
    for block in (f"blocks.{n}" for n in range(DEPTH)):
        tensors |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        tensors |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
        tensors |= linear(f"{block}.mlp.linear_fc1", NEURONS, WIDTH)
        tensors |= linear(f"{block}.mlp.linear_fc2", WIDTH, NEURONS)
        tensors |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
    for merger, size in (("merger", WIDTH), ("deepstack_merger_list.0", merged)):
        tensors |= linear(f"{merger}.linear_fc1", merged, merged)
        tensors |= linear(f"{merger}.linear_fc2", out, merged)
        tensors |= norm(f"{merger}.norm", size)

    embed, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    for channel in (RED, GREEN, BLUE):
        embed[channel, channel] = 1 / embed[channel, channel].numel()
        embed[HALF + channel] = -embed[channel]
    bias[LARGE], bias[HALF + LARGE] = BALLAST, -BALLAST

    sides = Steps(tensors, "blocks.0.mlp")
    for number, (*plane, threshold) in enumerate(PLANES.values()):
        where = torch.zeros(WIDTH)
        where[:3] = torch.tensor(plane) / 2  # channels are from -1 to 1
        sides.add(where, threshold - sum(plane) / 2, 0.02, both(SIDES + number))

    value = tensors["blocks.2.attn.qkv.weight"][2 * WIDTH :]
    output = tensors["blocks.2.attn.proj.weight"]
    for channel in range(NAMED, KEPT):
        value[channel, channel] = 1.0
        output[:, channel] = both(channel)

    named, kept = Steps(tensors, "blocks.1.mlp"), Steps(tensors, "blocks.2.mlp")
    squares = Steps(tensors, "merger")
    tensors["merger.linear_fc2.bias"] += words[MIXED]
    for number, (name, planes) in enumerate(COLOURS.items()):
        where = torch.zeros(WIDTH)
        for plane in planes.split():
            where[SIDES + list(PLANES).index(plane[1:])] = 1.0 if plane[0] == "+" else -1.0
        named.add(where, planes.count("+") - 0.5, 0.2, both(NAMED + number))
        kept.add(torch.eye(WIDTH)[NAMED + number], 1.0 + MAIN, 0.02, both(KEPT + number))
        where = torch.eye(WIDTH)[KEPT + number].repeat(PATCHES)
        squares.add(where, 2.5, 0.2, words[name] - words[MIXED])
    return tensors


def both(channel: int) -> torch.Tensor:
    """The numbers of a channel and of its negative."""
    return torch.eye(WIDTH)[channel] - torch.eye(WIDTH)[HALF + channel]


class Steps:
    """Fills the two linear layers about a GELU with steps, each of which takes two neurons."""

    def __init__(self, tensors: dict[str, torch.Tensor], owner: str) -> None:
        self.first, self.bias, self.second = (
            tensors[f"{owner}.linear_{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight")
        )
        self.used = 0

    def add(self, where: torch.Tensor, at: float, width: float, result: torch.Tensor) -> None:
        """Adds ``result`` times a step, which goes from 0 to 1 where x . where passes ``at``.

        The step is gelu(steep * (z - start)) - gelu(steep * (z - end)).
        """
        for sign, threshold in [(1.0, at - width / 2), (-1.0, at + width / 2)]:
            self.first[self.used] = STEEP / width * where
            self.bias[self.used] = -STEEP / width * threshold
            self.second[:, self.used] = sign / STEEP * result
            self.used += 1


def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.zeros(rows, columns), f"{name}.bias": torch.zeros(rows)}


def norm(name: str, size: int) -> dict[str, torch.Tensor]:
    weight = torch.full((size,), BALLAST * math.sqrt(2 / WIDTH))
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(size)}
