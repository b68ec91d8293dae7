"""Texts of XQuAD and WordNet, from which the demonstration model is made, and tasks to test it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pictures

# Every fourth article is for testing, and so are those of which tests/data has a part.
HELD_OUT = {f"d{n:02d}" for n in (0, 3, 5, 11, 16, 20, 24, 28, 32, 36, 40, 44)}
# Chinese is a small part of the text, but half of the model's work.
WEIGHTS = {"en": 1, "zh": 25}
LIMITS = {"en": 340, "zh": 90}  # characters of a shortened passage


@dataclass(frozen=True)
class Task:
    """A query, and contents as pyrerank takes them; only the first fits the query."""

    query: Any
    documents: list[Any]


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    passage: str  # the id of its passage


class Corpus:
    """The passages and questions of XQuAD in one language.

    folder: has corpus.jsonl, queries.jsonl and qrels.tsv.
    held_out: the articles for testing; otherwise all others.
    """

    def __init__(self, folder: Path, language: str, held_out: bool) -> None:
        def rows(name: str) -> list[dict[str, str]]:
            return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]

        self.limit = LIMITS[language]
        self.passages = {
            row["_id"]: row["text"]
            for row in rows("corpus.jsonl")
            if (row["_id"][:3] in HELD_OUT) == held_out
        }
        lines = (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]
        passage = dict(line.split("\t")[:2] for line in lines)
        self.questions = [
            Question(row["text"], row["answer"], passage[row["_id"]])
            for row in rows("queries.jsonl")
            if passage[row["_id"]] in self.passages
        ]

    def task(self, question: Question, count: int, rng: Random, whole: bool = False) -> Task:
        """A question, its passage and ``count - 1`` random others, shortened unless ``whole``."""
        others = rng.sample([id for id in self.passages if id != question.passage], count - 1)
        documents = [self.passages[id] for id in [question.passage, *others]]
        if not whole:
            answers = [question.answer] + [""] * len(others)
            documents = [
                shortened(text, self.limit, answer, rng)
                for text, answer in zip(documents, answers, strict=True)
            ]
        return Task(question.text, documents)


def shortened(text: str, limit: int, answer: str, rng: Random) -> str:
    """Cuts whole words from a text, about ``limit`` characters that hold the answer."""
    spare = max(0, len(text) - limit)
    at = text.find(answer) if answer else -1
    low, high = (0, spare) if at < 0 else (at + len(answer) - limit, at)
    start = rng.randint(max(0, min(spare, low)), max(0, min(spare, high)))
    end = start + limit
    while start > 0 and text[start - 1].isascii() and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and text[end].isascii() and not text[end].isspace():
        end += 1
    return re.sub(r"^\W+", "", text[start:end])


def definitions(folder: Path) -> list[tuple[list[str], str]]:
    """The sets of synonyms of WordNet: words, and a definition with examples."""
    found = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{kind}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue  # this line is of the licence
            entry, gloss = line.split(" | ", 1)
            fields = entry.split()
            words = [word.split("(")[0] for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            found.append(([word.replace("_", " ") for word in words], gloss.strip()))
    return found


def running_text(xquad: Path, wordnet: Path) -> list[str]:
    """The texts to learn tokens and frequencies from, without the articles for testing."""
    texts = [f"{', '.join(words)}: {gloss}" for words, gloss in definitions(wordnet)]
    rng = Random(0)
    for _ in range(2000):
        texts += [pictures.phrase(pictures.scene(rng).wants, c, rng) for c in (False, True)]
    for language, weight in WEIGHTS.items():
        corpus = Corpus(xquad / language, language, held_out=False)
        texts += [*corpus.passages.values(), *(q.text for q in corpus.questions)] * weight
    return texts


def picture_task(rng: Random, count: int, held_out: bool) -> Task:
    """A phrase, in English or Chinese, and ``count`` pictures."""
    scenes = pictures.scenes_to_choose_from(rng, count, held_out)
    phrase = pictures.phrase(scenes[0].wants, rng.random() < 0.5, rng)
    return Task(phrase, [{"image": pictures.draw(scene, rng)} for scene in scenes])
