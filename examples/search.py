"""Searches documents: vectors fetch candidates from a database, the reranker sorts them.

    python examples/search.py --embedder DIR --reranker DIR --index DIR --documents FILE \\
        --query TEXT

The database is zvec, which runs inside this process and keeps the vectors in the folder --index
(pip install zvec). Without that folder the documents are embedded first. A line of the output is a
score, in brackets the place among the candidates, and the document's "_id".
"""

import argparse
import json
from pathlib import Path
from typing import Any

import zvec

from pyrerank import Embedder, Ranked, Reranker

INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

Document = dict[str, Any]  # "_id", and at least one of "text", "image" and "video"


def content(document: Document) -> Document:
    return {kind: document[kind] for kind in ("text", "image", "video") if kind in document}


def build(folder: Path, documents: list[Document], embedder: Embedder) -> zvec.Collection:
    schema = zvec.CollectionSchema(
        "documents",
        fields=zvec.FieldSchema("document", zvec.DataType.STRING),
        vectors=zvec.VectorSchema(
            "vector",
            zvec.DataType.VECTOR_FP32,
            embedder.dim,
            zvec.HnswIndexParam(zvec.MetricType.IP),
        ),
    )
    collection = zvec.create_and_open(str(folder), schema)
    for start in range(0, len(documents), 256):
        some = documents[start : start + 256]
        vectors = embedder.embed([content(document) for document in some])
        statuses = collection.upsert(
            [
                zvec.Doc(d["_id"], fields={"document": json.dumps(d)}, vectors={"vector": vector})
                for d, vector in zip(some, vectors, strict=True)
            ]
        )
        for status in statuses:
            if not status.ok():
                raise RuntimeError(status.message())
    return collection


def search(
    query: str | Document,
    collection: zvec.Collection,
    embedder: Embedder,
    reranker: Reranker,
    candidates: int = 100,
    top_n: int = 10,
) -> list[tuple[Ranked, Document]]:
    [vector] = embedder.embed([query], instruction=INSTRUCTION)
    hits = collection.query(zvec.Query("vector", vector=vector), topk=candidates)
    found = [json.loads(hit.fields["document"]) for hit in hits]
    ranking = reranker.rank(query, [content(document) for document in found], top_n=top_n)
    return [(item, found[item.index]) for item in ranking]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--reranker", required=True)
    parser.add_argument("--documents", required=True, nargs="+", type=Path)
    parser.add_argument("--index", required=True, type=Path)
    parser.add_argument("--query", required=True)
    parser.add_argument("--candidates", type=int, default=100, help="number of candidates")
    parser.add_argument("--top-n", type=int, default=10, help="number of lines printed")
    arguments = parser.parse_args()

    embedder, reranker = Embedder(arguments.embedder), Reranker(arguments.reranker)
    if arguments.index.exists():
        collection = zvec.open(str(arguments.index))
    else:
        lines = [line for file in arguments.documents for line in file.open(encoding="utf-8")]
        collection = build(arguments.index, [json.loads(line) for line in lines], embedder)
    limits = arguments.candidates, arguments.top_n
    for item, document in search(arguments.query, collection, embedder, reranker, *limits):
        print(f"{item.score:.6f}  [{item.index}]  {document['_id']}")


if __name__ == "__main__":
    main()
