"""``build``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import print_facts, print_json, say, timed
from bliss_index.cli.options import JsonOption, ThreadsOption, one_of, path_or_uri
from bliss_index.search.registry import NEAR, index_names

if TYPE_CHECKING:
    from bliss_index.search.faiss.search import FaissSearch

_LINKS = 32


def build(
    corpus: Annotated[
        str, typer.Argument(help="Text store to index; local or a URI.", parser=path_or_uri)
    ],
    index: Annotated[
        str,
        typer.Option(
            "--index",
            help=f"{', '.join(index_names())}: 'flat' is exact, 'cagra' is built on a GPU; all but "
            "'near' are FAISS's.",
            callback=one_of(index_names()),
        ),
    ] = "flat",
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries", help="Image store to tune an approximate index on.", parser=path_or_uri
        ),
    ] = None,
    recall: Annotated[
        float,
        typer.Option("--recall", min=0.0, max=1.0, help="Recall that the tuned index must reach."),
    ] = 0.95,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Entries per image to tune for.")] = 10,
    cells: Annotated[
        int | None, typer.Option("--cells", min=1, help="Cells of an 'ivf' index.")
    ] = None,
    links: Annotated[
        int, typer.Option("--links", min=2, help="Links per entry of an 'hnsw' index.")
    ] = _LINKS,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build an index beside a corpus; approximate ones are tuned on held-out images.

    'near' is the package's own: lists of near entries, of which an image looks into a few. The
    exact search is prepared as well, into CORPUS/search.
    """
    from bliss_index.errors import InvalidInputError
    from bliss_index.search.index import save_index
    from bliss_index.search.native.backend import load_native
    from bliss_index.search.near_index import NearSearch
    from bliss_index.search.prepared import corpus_search, entries_of, save_prepared
    from bliss_index.store import EmbeddingStore, require_same_model

    store = EmbeddingStore.open(corpus, kind="text")
    parameters = None
    with timed() as seconds:
        search: FaissSearch | NearSearch
        if index == NEAR:
            for option, given in (("--cells", cells is not None), ("--links", links != _LINKS)):
                if given:
                    raise InvalidInputError(f"{option} is for FAISS's indexes: leave it out")
            search = NearSearch(entries_of(store), k, threads=threads)
        else:
            from bliss_index.search.faiss.build import IndexParameters, build_index

            parameters = IndexParameters(cells=cells, links=links)
            search = build_index(store.embeddings(), index, parameters, k=k, threads=threads)
        report = None
        if queries is not None:
            from bliss_index.search.tuning import tune_index

            images = EmbeddingStore.open(queries, kind="image")
            require_same_model(images.model, store.model, f"images {queries}", f"corpus {corpus}")
            if index == "flat":
                raise InvalidInputError("a flat index is exact: leave --queries out")
            report = tune_index(search, images.good_embeddings(), recall, k, threads=threads)
            search = search.replace(effort=report.parameter)
            say(report.describe())
        elif index != "flat":
            say(
                f"the {index} index is not tuned: give --queries IMAGES to reach a recall that is "
                "measured"
            )
        prepared = None
        if load_native()[0] is not None:
            prepared = save_prepared(
                corpus_search(store, k, backend="native", threads=threads), store
            )
        record = save_index(search, store, parameters, None if report is None else report.to_json())
        facts: dict[str, Any] = {
            "corpus": str(corpus),
            "kind": record.kind,
            "entries": record.rows,
            "dim": record.dim,
            "effort": record.effort,
            "recall": record.recall,
            "content_hash": record.content_hash,
            "prepared_search": None if prepared is None else prepared.kernel,
            "seconds": round(seconds(), 2),
        }
    if as_json:
        print_json(facts)
    else:
        facts["recall"] = "exact" if index == "flat" else "not measured"
        if report is not None:
            facts["recall"] = f"{report.recall:.4f} on {report.queries} held-out images"
        facts = {n.replace("_", " "): v for n, v in facts.items() if v is not None}
        print_facts(f"{corpus}/index", facts)
