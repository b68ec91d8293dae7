"""The engine with pictures against transformers: same prompt, same positions, same score."""

import base64
import itertools
import re
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from checkpoints import DECODER, strip_prefix, write_classifier, write_random
from hypothesis import given, settings
from hypothesis import strategies as st
from published import Clip, Content, Prompt, Published, PublishedEmbedder, resized

from pyrerank import Embedder, Media, Reranker
from pyrerank.engine.batch import positions

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data/pictures"
CAT, COFFEE, ROCKET, PAGE = (DATA / f for f in ("cat.jpg", "coffee.jpg", "rocket.jpg", "page.png"))
STARS = DATA / "stars.mp4"
SHARED = Path(__file__).parents[3] / "shared/data"  # more of them, beside some checkouts
PAGES = sorted((SHARED / "pages").glob("*.png"))

# |score - reference|: float32 rounding of a few layers; bfloat16 has 8 bits of mantissa
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
BATCH_TOLERANCE = 1e-6  # a matrix product may add in another order when it has more rows


def opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as picture:
        picture.load()
        return picture


def tiny(seed: int, height: int = 40, width: int = 70) -> PIL.Image.Image:
    """A picture of few tokens: four coarse patches of any colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return PIL.Image.fromarray(colours).resize((width, height), PIL.Image.Resampling.NEAREST)


def pan(count: int) -> list[PIL.Image.Image]:
    """Frames that move over a picture."""
    rocket = opened(ROCKET)
    return [rocket.crop((5 * i, 2 * i, 5 * i + 200, 2 * i + 150)) for i in range(count)]


def data_uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


# What a caller passes, and the parts that the published scripts make of it, in their order.
CONTENTS: dict[str, tuple[object, Content]] = {
    "text": ("A cup of espresso, 一杯咖啡", "A cup of espresso, 一杯咖啡"),
    "no part": ({"text": None, "image": None}, []),
    "empty text": ("", ""),
    "image": ({"image": CAT}, [opened(CAT)]),
    "page": ({"image": str(PAGE)}, [opened(PAGE)]),
    "text and image": ({"text": "A cat", "image": CAT}, [opened(CAT), "A cat"]),
    "image and text": ({"image": opened(CAT), "text": "A cat"}, [opened(CAT), "A cat"]),
    "images": (
        {"image": [COFFEE, opened(CAT)], "text": ["Coffee", " and a cat."]},
        [opened(COFFEE), opened(CAT), "Coffee and a cat."],
    ),
    "images, other order": ({"image": [CAT, COFFEE]}, [opened(CAT), opened(COFFEE)]),
    "parts": (
        [
            {"type": "text", "text": "On its way"},
            {"type": "image_url", "image_url": {"url": data_uri(ROCKET)}},
            {"type": "text", "text": " up."},
        ],
        [opened(ROCKET), "On its way up."],
    ),
    "3 frames": ({"video": pan(3)}, [Clip.of_pictures(pan(3))]),
    "8 frames": ({"video": pan(8), "text": "Up"}, [Clip.of_pictures(pan(8)), "Up"]),
    "20 frames": ({"video": pan(20)}, [Clip.of_pictures(pan(20))]),
    "file": ({"video": STARS}, [Clip.of_file(STARS)]),
    "everything": (
        {"text": "All.", "image": [tiny(1), COFFEE.read_bytes()], "video": [pan(2), STARS]},
        [Clip.of_pictures(pan(2)), Clip.of_file(STARS), tiny(1), opened(COFFEE), "All."],
    ),
}
for photo in ("horse.png", "coins.png", "hubble_deep_field.jpg"):  # with transparency, grey, large
    if (path := SHARED / "photos" / photo).exists():
        CONTENTS[photo] = {"image": path}, [opened(path)]
for path in PAGES[:2]:
    CONTENTS[path.name] = {"image": path}, [opened(path)]
LARGE = {"page", "20 frames", "hubble_deep_field.jpg", *(path.name for path in PAGES)}

QUERIES: dict[str, tuple[object, Content]] = {
    "text": ("Which one shows a drink?", "Which one shows a drink?"),
    "image": CONTENTS["image"],
    "several": CONTENTS["images"],
    "video": CONTENTS["3 frames"],
    "no part": CONTENTS["no part"],
}

# few tokens each, and all different
POOL: list[tuple[object, Content]] = []
for i in range(8):
    POOL += [
        (f"{i}. A cup", f"{i}. A cup"),
        ({"image": tiny(i), "text": f"{i}"}, [tiny(i), f"{i}"]),
        ({"image": [tiny(i, 70, 40), tiny(50)]}, [tiny(i, 70, 40), tiny(50)]),
        (
            {"video": [tiny(i), tiny(i + 1)], "text": "Moving"},
            [Clip.of_pictures([tiny(i), tiny(i + 1)]), "Moving"],
        ),
    ]


# Any content, of tiny pictures and of texts that stand at the edges of others.
SIZES = st.tuples(st.integers(17, 99), st.integers(17, 99))
EDGES = ["<0.5 seconds>", ":", " ", "\n", ">", "<", "seconds", "\u0301", "é", "NULL", "{query}"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(EDGES)
TEXTS = st.lists(TEXT, max_size=2).filter(
    # transformers takes these for control tokens wherever they stand
    lambda texts: not re.search(r"<\|?/?\w+\|?>", "".join(texts))
)
PICTURE = st.builds(lambda size, seed: tiny(seed, *size), SIZES, st.integers(0, 3))
FRAMES = st.builds(
    lambda size, count: [tiny(i, *size) for i in range(count)], SIZES, st.integers(1, 5)
)


@st.composite
def mixed(draw) -> tuple[object, Content]:
    """A content: what a caller passes, the keys in any order, and its parts."""
    texts = draw(TEXTS)
    if draw(st.booleans()):
        return "".join(texts), "".join(texts)
    videos, images = (draw(st.lists(kind, max_size=2)) for kind in (FRAMES, PICTURE))
    if not videos + images + texts:
        return {"text": None}, []
    given = draw(st.permutations([("video", videos), ("image", images), ("text", texts)]))
    return dict(given), [*map(Clip.of_pictures, videos), *images, *texts]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    # bfloat16 on disk, as published; the reference widens the same weights to float32
    write_random(folder, "qwen3-vl-reranker", tied=False, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def published(reranker) -> Published:
    return Published(reranker)


@pytest.fixture(scope="module")
def reference(published):
    """The published score of a query and a document, by their names above, computed once."""
    return cache(lambda q, d: published.score(QUERIES[q][1], CONTENTS[d][1]))


@pytest.fixture(scope="module")
def engine(reranker):
    return cache(lambda dtype="float32": Reranker(reranker, dtype=dtype))


def check_prompt(got, want: Prompt, model) -> None:
    assert got.ids == want.ids
    assert [tuple(span) for span in got.spans] == want.spans()
    assert positions(len(got.ids), got.spans).tolist() == want.positions(model)
    images = [visual.frames[0] for visual in got.visuals if not visual.seconds]
    videos = [visual.frames for visual in got.visuals if visual.seconds]
    for ours, theirs in ((images, want.images), (videos, want.videos)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


class TestPrompts:
    @pytest.mark.parametrize("document", CONTENTS)
    @pytest.mark.parametrize("query", QUERIES)
    def test_equal_the_published_ones(self, engine, published, query, document):
        (q, query_parts), (d, document_parts) = QUERIES[query], CONTENTS[document]
        [got] = engine().core.encoder.encode([engine().core.encoder.pair("document", q, d)])
        want = published.prompt(query_parts, document_parts)
        check_prompt(got, want, published.model)
        assert got.truncated == 0

    def test_equal_for_frames_larger_than_an_image_may_be(self, engine, published):
        frames = [frame.resize((1920, 1090)) for frame in pan(2)]
        [got] = engine().core.encoder.encode(
            [engine().core.encoder.pair("document", "Which?", {"video": frames})]
        )
        want = published.prompt("Which?", [Clip.of_pictures(frames)])
        check_prompt(got, want, published.model)

    @settings(max_examples=40)
    @given(query=mixed(), document=mixed())
    def test_equal_for_any_pair(self, engine, published, query, document):
        [got] = engine().core.encoder.encode(
            [engine().core.encoder.pair("document", query[0], document[0])]
        )
        check_prompt(got, published.prompt(query[1], document[1]), published.model)


class TestParity:
    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    @pytest.mark.parametrize("query", QUERIES)
    def test_documents_of_all_kinds_in_one_call(self, engine, reference, query, dtype):
        names = [name for name in CONTENTS if query == "text" or name not in LARGE]
        want = torch.tensor([reference(query, name) for name in names])
        got = torch.tensor(engine(dtype).score(QUERIES[query][0], [CONTENTS[n][0] for n in names]))
        assert (got - want).abs().max() <= TOLERANCE[dtype]
        # the checkpoint must be able to show a difference
        assert want.max() - want.min() > 0.1
        clear = (want[:, None] - want) > TOLERANCE[dtype]
        assert ((got[:, None] - got) > 0)[clear].all()

    @pytest.mark.parametrize("part", ["pos_embed", "blocks.2.attn", "deepstack_merger_list.1"])
    def test_the_checkpoint_shows_every_part_of_the_tower(self, published, reference, part):
        weights = dict(published.model.model.visual.named_parameters())
        held = {name: weight.clone() for name, weight in weights.items() if name.startswith(part)}
        try:
            for name in held:
                weights[name].data.zero_()
            without = published.score(QUERIES["text"][1], CONTENTS["images"][1])
        finally:
            for name, weight in held.items():
                weights[name].data.copy_(weight)
        assert abs(without - reference("text", "images")) > 100 * TOLERANCE["float32"]

    @pytest.mark.parametrize("count", [1, 2, 7, 32])
    def test_so_many_documents(self, engine, published, count):
        documents = POOL[-count:]
        want = [published.score("Which?", parts) for _, parts in documents]
        got = engine().score("Which?", [value for value, _ in documents])
        assert got == pytest.approx(want, abs=TOLERANCE["float32"])

    def test_an_instruction(self, engine, published):
        value, parts = CONTENTS["images"]
        want = published.score("Which?", parts, "Find the opposite.")
        assert want != pytest.approx(published.score("Which?", parts), abs=1e-3)
        [got] = engine().score("Which?", [value], instruction="Find the opposite.")
        assert got == pytest.approx(want, abs=TOLERANCE["float32"])

    def test_limits_of_a_call(self, engine, published):
        cat = PIL.Image.fromarray(resized(opened(CAT), 20))
        picked = [pan(8)[i] for i in (0, 2, 4, 7)]
        want = published.score("Which?", [Clip.of_pictures(picked), cat])
        media = Media(max_image_tokens=20, max_video_frames=4)  # frames are larger
        [got] = engine().score("Which?", [{"image": CAT, "video": pan(8)}], media=media)
        assert got == pytest.approx(want, abs=TOLERANCE["float32"])

    def test_truncation_cuts_the_text_behind_the_pictures(self, engine, published):
        text = "The rain in Spain stays mainly in the plain. " * 1200
        parts = [Clip.of_pictures(pan(3)), opened(CAT), text]
        value = {"image": CAT, "text": text, "video": pan(3)}
        [prompt] = engine().core.encoder.encode(
            [engine().core.encoder.pair("document", "Which?", value)]
        )
        check_prompt(prompt, published.prompt("Which?", parts), published.model)
        [result] = engine().details("Which?", [value])
        assert result.tokens == len(prompt.ids) == 10240 + 5
        assert result.truncated == prompt.truncated > 1000
        assert result.score == pytest.approx(published.score("Which?", parts), abs=1e-5)

    def test_a_converted_classifier(self, engine, reranker, tmp_path):
        write_classifier(reranker, tmp_path)
        names = [name for name in CONTENTS if name not in LARGE]
        documents = [CONTENTS[name][0] for name in names]
        classifier = Reranker(tmp_path, dtype="float32")
        assert classifier.score(QUERIES["image"][0], documents) == engine().score(
            QUERIES["image"][0], documents
        )
        want = Published(tmp_path).score(QUERIES["image"][1], CONTENTS["images"][1])
        [got] = classifier.score(QUERIES["image"][0], [CONTENTS["images"][0]])
        assert got == pytest.approx(want, abs=TOLERANCE["float32"])


class TestBatches:
    @pytest.fixture(scope="class")
    @staticmethod
    def alone(engine) -> list[float]:
        return [engine().score("Which?", [value])[0] for value, _ in POOL]

    @pytest.fixture(scope="class")
    @staticmethod
    def budgets(reranker):
        """Engines that forget features, so that pictures are batched anew each time."""
        return [
            Reranker(reranker, dtype="float32", token_budget=budget, vision_cache=0)
            for budget in (1, 300, 1000, 8192)
        ]

    @settings(max_examples=10)
    @given(data=st.data())
    def test_in_any_batch_as_alone(self, budgets, alone, data):
        numbers = st.integers(0, len(POOL) - 1)
        picked = data.draw(st.lists(numbers, min_size=1, max_size=32, unique=True))
        engine = data.draw(st.sampled_from(budgets))
        scores = engine.score("Which?", [POOL[i][0] for i in picked])
        assert scores == pytest.approx([alone[i] for i in picked], abs=BATCH_TOLERANCE)


# --- embeddings


WORDS = {
    "words": "What is the capital of China?",
    "empty text": "",
    "chinese": "北京是中国的首都，也是全国的政治和文化中心。",
    "long": "The sea rises and falls twice a day under the pull of the Moon. " * 30,
}
FAMILIES = {
    "qwen3": {name: (text, text) for name, text in WORDS.items()},
    "qwen3-vl": {name: value for name, value in CONTENTS.items() if name not in LARGE},
}


class TestEmbeddings:
    @pytest.fixture(scope="class")
    @staticmethod
    def embedder(tmp_path_factory):
        """Folders of embedders that are wide enough for a published ``dim``."""

        @cache
        def write(family: str) -> Path:
            folder = tmp_path_factory.mktemp(family)
            # with three layers bfloat16 is near the bound, and transformers' own beyond it
            size = {"hidden_size": 576, "intermediate_size": 320, "num_hidden_layers": 2}
            write_random(
                folder, f"{family}-reranker", tied=True, dtype=torch.bfloat16, seed=2, **size
            )
            if family == "qwen3":
                strip_prefix(folder)
            return folder

        return write

    @pytest.fixture(scope="class")
    @staticmethod
    def published(embedder):
        return cache(lambda family: PublishedEmbedder(embedder(family)))

    @pytest.fixture(scope="class")
    @staticmethod
    def hidden(published):
        """The last hidden states of all contents of a family."""

        @cache
        def states(family: str) -> np.ndarray:
            contents = FAMILIES[family].values()
            return np.stack([published(family).hidden(parts) for _, parts in contents])

        return states

    @pytest.mark.parametrize("dim", [64, 512, None])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_are_those_of_transformers(self, embedder, hidden, family, dim):
        want = hidden(family)[:, :dim]
        want = want / np.linalg.norm(want, axis=1, keepdims=True)
        inputs = [value for value, _ in FAMILIES[family].values()]
        got = Embedder(embedder(family), dim=dim, dtype="float32").embed(inputs)
        assert got.dtype == np.float32 and got.shape == (len(inputs), dim or 576)
        assert np.abs(got - want).max() <= 1e-5
        half = Embedder(embedder(family), dim=dim, dtype="bfloat16").embed(inputs)
        cosines = (half * want).sum(1) / np.linalg.norm(half, axis=1)
        assert cosines.min() >= 0.9999
        # the inputs are not all one to this model
        names = list(FAMILIES[family])
        others = want @ want.T
        for a, b in itertools.combinations(range(len(names)), 2):
            same = {names[a], names[b]} == {"text and image", "image and text"}
            assert same or others[a, b] < 0.9999, (names[a], names[b])

    @pytest.fixture(scope="class")
    @staticmethod
    def engine(embedder):
        return Embedder(embedder("qwen3-vl"), dtype="float32")

    @pytest.mark.parametrize("instruction", [None, "Find it."])
    @pytest.mark.parametrize("name", CONTENTS)
    def test_prompts_equal_the_published_ones(self, engine, published, name, instruction):
        value, parts = CONTENTS[name]
        [got] = engine.core.encoder.encode(
            [engine.core.encoder.input("inputs[0]", value, instruction)]
        )
        want = published("qwen3-vl").prompt(parts, instruction)
        check_prompt(got, want, published("qwen3-vl").model)

    @settings(max_examples=20)
    @given(content=mixed())
    def test_prompts_equal_for_any_content(self, engine, published, content):
        [got] = engine.core.encoder.encode([engine.core.encoder.input("inputs[0]", content[0])])
        want = published("qwen3-vl").prompt(content[1])
        check_prompt(got, want, published("qwen3-vl").model)

    def test_truncation_cuts_the_text_behind_the_pictures(self, engine, published):
        text = "The rain in Spain stays mainly in the plain. " * 1000
        value = {"text": text, "image": [CAT, COFFEE]}
        want = published("qwen3-vl").prompt([opened(CAT), opened(COFFEE), text])
        [got] = engine.core.encoder.encode([engine.core.encoder.input("inputs[0]", value)])
        check_prompt(got, want, published("qwen3-vl").model)
        assert len(got.ids) == 8192 and got.truncated > 1000


# --- how often pictures are encoded

FEW = Media(max_image_tokens=20)


@pytest.fixture(scope="module")
def twelve() -> list[object]:
    return PAGES or [tiny(i, 300, 200) for i in range(12)]


class TestCounting:
    def test_a_query_image_once_for_all_documents(self, reranker):
        engine = Reranker(reranker, dtype="float32", token_budget=1000)
        engine.score({"image": COFFEE}, [f"Document {i}" for i in range(100)])
        assert engine.core.features.encoded == 1
        engine.score({"image": COFFEE}, ["Another"])
        assert engine.core.features.encoded == 1  # remembered between calls

    def test_pages_once_for_all_queries(self, reranker, twelve):
        engine = Reranker(reranker, dtype="float32", token_budget=2000)
        queries = [f"Query {i}?" for i in range(20)]
        pairs = list(itertools.product(queries, [{"image": page} for page in twelve]))
        scores = engine.score(*map(list, zip(*pairs, strict=True)), media=FEW)
        assert engine.core.features.encoded == 12
        documents = [{"image": page} for page in twelve]
        again = engine.score(queries[-1], documents, media=FEW)
        assert again == pytest.approx(scores[-12:], abs=BATCH_TOLERANCE)
        assert engine.core.features.encoded == 12

    @staticmethod
    def room(pictures: int) -> int:
        """Bytes of so many pictures' features and two levels, in float32."""
        return pictures * FEW.max_image_tokens * 3 * DECODER["hidden_size"] * 4

    @pytest.mark.parametrize("pictures", [0, 1, 5])
    def test_room_for_some_changes_no_score(self, reranker, twelve, pictures):
        room = self.room(pictures)
        documents = [{"image": page} for page in [*twelve, *twelve]]
        queries = ["One?"] * 12 + ["Two?"] * 12
        want = Reranker(reranker, dtype="float32").score(queries, documents, media=FEW)
        # every pass has other pictures than the one before it
        engine = Reranker(reranker, dtype="float32", token_budget=300, vision_cache=room)
        got = engine.score(queries, documents, media=FEW)
        assert got == pytest.approx(want, abs=BATCH_TOLERANCE)
        assert 12 < engine.core.features.encoded <= 24
        assert sum(rows.nbytes for rows in engine.core.features._kept.values()) <= room

    def test_pictures_used_last_are_remembered(self, reranker, twelve):
        engine = Reranker(reranker, dtype="float32", vision_cache=self.room(2))
        encoded = []
        for picture in (0, 1, 0, 2, 0, 1):
            engine.score("Which?", [{"image": twelve[picture]}], media=FEW)
            encoded.append(engine.core.features.encoded)
        assert encoded == [1, 2, 2, 3, 3, 4]

    def test_every_form_of_a_picture_is_one_picture(self, reranker):
        engine = Reranker(reranker, dtype="float32")
        forms = [CAT, str(CAT), opened(CAT), CAT.read_bytes(), np.asarray(opened(CAT))]
        documents = [{"image": form, "text": f"{i}"} for i, form in enumerate(forms)]
        scores = engine.score({"image": data_uri(CAT)}, documents)
        assert engine.core.features.encoded == 1
        assert len(set(scores)) == len(forms)
        alone = engine.core.computed
        engine.score("Which?", [{"image": CAT}])
        alone = engine.core.computed - alone
        before = engine.core.computed
        scores = engine.score("Which?", [{"image": form} for form in forms])
        assert engine.core.computed - before == alone
        assert len(set(scores)) == 1
