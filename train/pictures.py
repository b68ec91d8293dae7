"""Generates pictures, and phrases in English and Chinese that some of them fit.

Of the pairs of a colour with a shape or a word, some are held out: no picture in training shows
one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

COLOURS = {
    "red": ((214, 39, 40), "红色"),
    "green": ((44, 150, 60), "绿色"),
    "blue": ((35, 90, 200), "蓝色"),
    "yellow": ((240, 205, 30), "黄色"),
    "orange": ((250, 130, 20), "橙色"),
    "purple": ((130, 50, 170), "紫色"),
    "pink": ((245, 140, 185), "粉色"),
    "black": ((15, 15, 15), "黑色"),
}
SHAPES = {"circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形"}
WORDS = ["open", "stop", "exit", "hello", "milk", "sale", "bank", "hotel", "taxi", "fire"]
NUMBERS = [("one", "一个"), ("two", "两个"), ("three", "三个"), ("four", "四个")]
# by name: a cell of a 3 x 3 grid (column, row), the axis that counts, and phrases
SIDES = {
    "left": ((0, 1), 0, "on the left", "左边"),
    "right": ((2, 1), 0, "on the right", "右边"),
    "top": ((1, 0), 1, "at the top", "上面"),
    "bottom": ((1, 2), 1, "at the bottom", "下面"),
}
BACKGROUNDS = [(255, 255, 255), (232, 232, 232), (250, 243, 224), (224, 236, 245)]
KINDS = ["number", "side", "pair", "word"]


def is_held_out(colour: str, form: str) -> bool:
    """Whether a pair of a colour and a shape, or a word, is for testing only."""
    forms = [*SHAPES, *WORDS]
    return (3 * list(COLOURS).index(colour) + forms.index(form)) % 5 == 0


@dataclass(frozen=True)
class Thing:
    """A shape, or a word, in a cell of the picture's grid (column, row)."""

    colour: str
    form: str
    cell: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Wanted:
    """What a phrase asks for; None asks for any, and the ``number`` 0 for at least one."""

    form: str | None
    colour: str | None = None
    number: int = 0
    side: str | None = None

    def fits(self, things: tuple[Thing, ...]) -> bool:
        """Whether a picture of these things is what the phrase asks for."""
        found = sum(self._is(thing) for thing in things)
        return found == self.number if self.number else found > 0

    def _is(self, thing: Thing) -> bool:
        if self.side is not None:
            cell, axis, *_ = SIDES[self.side]
            if thing.cell[axis] != cell[axis]:
                return False
        return self.form in (None, thing.form) and self.colour in (None, thing.colour)

    def phrase(self, chinese: bool, rng: Random) -> str:
        if self.form in WORDS:
            colour = COLOURS[self.colour][1] if self.colour else ""
            if chinese:
                return rng.choice([f"{colour}文字 {self.form}", f"写着{colour} {self.form} 的图片"])
            colour = f"{self.colour} " if self.colour else ""
            return rng.choice([f"the {colour}word {self.form}", f"a sign that says {self.form}"])
        if chinese:
            number = NUMBERS[self.number - 1][1] if self.number else ""
            side = f"{SIDES[self.side][3]}的" if self.side else ""
            colour = COLOURS[self.colour][1] if self.colour else ""
            form = SHAPES[self.form] if self.form else "东西" if self.number else "的东西"
            return f"{side}{number}{colour}{form}"
        form = self.form or "thing"
        words = [self.colour, form] if self.colour else [form]
        if self.number:
            word = NUMBERS[self.number - 1][0]
            words.insert(0, rng.choice([word, word, str(self.number)]))
            words[-1] += "s" * (self.number > 1)
        else:
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        if self.side:
            words.append(SIDES[self.side][2])
        return " ".join(words)


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn, and the wants that describe it: all of them fit."""

    kind: str
    things: tuple[Thing, ...]
    wants: tuple[Wanted, ...]

    def fits(self, wants: tuple[Wanted, ...]) -> bool:
        return all(wanted.fits(self.things) for wanted in wants)

    def said(self) -> Sequence[str | None]:
        """The words that the picture's first seven squares say; None for squares that say nothing.

        They are a colour and a form, those of a second thing, the number, left or right, and top or
        bottom.  Colours and forms are sorted, so it is not said which colour a form has.
        """
        first, last = self.things[0], self.things[-1]
        colours = sorted((first.colour, last.colour), key=list(COLOURS).index)
        forms = sorted((first.form, last.form), key=[*SHAPES, *WORDS].index)
        if self.kind == "pair":
            return [colours[0], forms[0], colours[1], forms[1]]
        if self.kind == "word":
            return [first.colour, first.form]
        sides: list[str | None] = [None, None]
        for side, (cell, axis, *_) in SIDES.items():
            if len(self.things) == 1 and first.cell[axis] == cell[axis]:
                sides[axis] = side
        return [first.colour, first.form, None, None, NUMBERS[len(self.things) - 1][0], *sides]

    def held_out(self) -> bool:
        return any(is_held_out(thing.colour, thing.form) for thing in self.things)


def phrase(wants: tuple[Wanted, ...], chinese: bool, rng: Random) -> str:
    parts = [wanted.phrase(chinese, rng) for wanted in wants]
    return ("和" if chinese else " and ").join(parts)


def scene(rng: Random, kind: str | None = None, like: Scene | None = None) -> Scene:
    """Makes a random scene; ``like`` another, it has the kind and most properties of that one."""
    kind = like.kind if like else kind or rng.choice(KINDS)

    def pick(choices: list, old):
        return old if like and rng.random() < 0.7 else rng.choice(choices)

    old, was = (like.things[0], like.wants[0]) if like else (None, None)
    colour = pick(list(COLOURS), old and old.colour)
    if kind == "word":
        word = pick(WORDS, old and old.form)
        return Scene(kind, (Thing(colour, word),), (Wanted(word),))
    form = pick(list(SHAPES), old and old.form)
    if kind == "number":
        number = pick([1, 2, 3, 4], was and was.number)
        cells = rng.sample([(x, y) for x in range(3) for y in range(3)], number)
        things = tuple(Thing(colour, form, cell) for cell in cells)
        known = rng.choice([(form, colour), (form, colour), (form, colour), (form, None)])
        return Scene(kind, things, (Wanted(*known, number),))
    others = [(c, f) for c in COLOURS for f in SHAPES if (c, f) != (colour, form)]
    near = [(c, f) for c, f in others if c == colour or f == form]
    other = like.things[-1] if like else None
    second = pick(rng.choice([others, near]), other and (other.colour, other.form))
    if second == (colour, form):
        second = rng.choice(others)
    if kind == "side":
        side = pick(list(SIDES), was and was.side)
        cell, *_ = SIDES[side]
        things = (Thing(colour, form, cell),)
        return Scene(kind, things, (Wanted(form, colour, side=side),))
    first, last = rng.sample([(x, y) for x in range(3) for y in range(3)], 2)
    things = (Thing(colour, form, first), Thing(*second, last))
    wants = tuple(Wanted(thing.form, thing.colour) for thing in things)
    return Scene(kind, things, wants)


def scenes_to_choose_from(rng: Random, count: int, held_out: bool) -> list[Scene]:
    """Makes ``count`` scenes, of which only the first is what its wants say.

    Half of the others are like it.  With ``held_out``, the first shows a held-out pair; without,
    none of them does.
    """
    drawn = _drawn(rng, held_out, None)
    first = next(s for s in drawn if s.held_out() == held_out)
    scenes = [first]
    while len(scenes) < count:
        like = first if rng.random() < 0.5 else None
        other = next(_drawn(rng, held_out, like))
        if not other.fits(first.wants) and (held_out or not other.held_out()):
            scenes.append(other)
    return scenes


def _drawn(rng: Random, held_out: bool, like: Scene | None) -> Iterator[Scene]:
    while True:
        yield scene(rng, like=like)


def draw(picture: Scene, rng: Random, any_colour: bool = False) -> PIL.Image.Image:
    """Draws the picture in RGB, with sides that are multiples of 32 pixels.

    ``rng`` decides all that is random.  With ``any_colour``, things do not have the scene's
    colours, but any that stand out.
    """
    background = rng.choice(BACKGROUNDS)
    fills = [_any_colour(rng) if any_colour else _shade(t.colour, rng) for t in picture.things]
    if picture.kind == "word":
        return _draw_word(picture.things[0].form, fills[0], background, rng)
    side, fine = rng.choice([96, 128]), 3
    image = PIL.Image.new("RGB", (side * fine, side * fine), background)
    pen = PIL.ImageDraw.Draw(image)
    cell = side * fine / 3
    scale = rng.uniform(0.34, 0.46)
    for thing, fill in zip(picture.things, fills, strict=True):
        radius = cell * scale
        slack = cell / 2 - radius
        x, y = ((n + 0.5) * cell + rng.uniform(-slack, slack) for n in thing.cell)
        _draw_shape(pen, thing.form, x, y, radius, fill)
    return image.reduce(fine)


def _shade(colour: str, rng: Random) -> tuple[int, ...]:
    return tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[colour][0])


def _draw_shape(
    pen: PIL.ImageDraw.ImageDraw, form: str, x: float, y: float, radius: float, fill: tuple
) -> None:
    if form == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
        return
    corners, first = {"square": (4, 45), "triangle": (3, -90), "star": (10, -90)}[form]
    points = []
    for n in range(corners):
        reach = radius * (0.42 if form == "star" and n % 2 else 1.15)
        angle = math.radians(first + 360 * n / corners)
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    pen.polygon(points, fill)


def _any_colour(rng: Random) -> tuple[int, ...]:
    """A random colour that is not as light as a background."""
    while True:
        colour = tuple(rng.randrange(256) for _ in range(3))
        if min(colour) < 160:
            return colour


def _draw_word(word: str, fill: tuple, background: tuple, rng: Random) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (128, 64), background)
    font = PIL.ImageFont.load_default(30)
    place = (64 + rng.randint(-3, 3), 32 + rng.randint(-3, 3))
    PIL.ImageDraw.Draw(image).text(place, word.upper(), fill, font=font, anchor="mm")
    return image


def _several(colour: str, form: str, *cells: tuple[int, int]) -> Scene:
    return Scene("number", tuple(Thing(colour, form, cell) for cell in cells), ())


# The pictures of `pyrerank demo`.
SHIPPED = {
    "three-red-circles": _several("red", "circle", (0, 0), (2, 1), (1, 2)),
    "two-red-circles": _several("red", "circle", (0, 1), (2, 2)),
    "three-blue-circles": _several("blue", "circle", (0, 0), (1, 1), (2, 0)),
    "three-red-stars": _several("red", "star", (0, 2), (1, 0), (2, 1)),
    "green-star-left": Scene("side", (Thing("green", "star", (0, 1)),), ()),
    "green-star-right": Scene("side", (Thing("green", "star", (2, 1)),), ()),
    "green-square-left": Scene("side", (Thing("green", "square", (0, 1)),), ()),
    "open": Scene("word", (Thing("blue", "open"),), ()),
}
