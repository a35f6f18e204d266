"""``import``."""

from __future__ import annotations

from typing import Annotated

import typer

from bliss_index.cli.console import (
    counts,
    print_facts,
    print_json,
    progress_line,
    say,
)
from bliss_index.cli.jobs import (
    EngineOption,
    MemoryOption,
    TaskOption,
    WorkersOption,
    end,
    job_options,
    make_listener,
)
from bliss_index.cli.options import (
    KINDS,
    DtypeOption,
    EmbeddingColumnOption,
    EmbeddingDtypeOption,
    JsonOption,
    KeyColumnOption,
    StoreOutput,
    one_of,
    path_or_any_uri,
    path_or_uri,
)


def import_(
    embeddings: Annotated[
        str,
        typer.Argument(
            help="File or folder: .npy, .npz, Parquet, Arrow, Feather, safetensors, .pt, "
            "Lance, tars of .npy, .fvecs, .fbin, a saved Hugging Face data set, a clip-retrieval "
            "folder; local, or a URI.",
            parser=path_or_any_uri,
        ),
    ],
    kind: Annotated[str, typer.Option("--kind", help="'image' or 'text'.", callback=one_of(KINDS))],
    model: Annotated[
        str, typer.Option("--model", help="Model that made the embeddings, such as ViT-B-32.")
    ],
    out: StoreOutput,
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="Tag of its weights, such as openai.")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            help="File of keys, one a row.",
            show_default="row numbers",
            parser=path_or_uri,
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts", help="File of texts, one a row (for --kind text).", parser=path_or_uri
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Template the texts were put into.")
    ] = None,
    dtype: DtypeOption = "float16",
    drop_bad_rows: Annotated[
        bool, typer.Option("--drop-bad-rows", help="Leave out texts without a usable embedding.")
    ] = False,
    embedding_column: EmbeddingColumnOption = None,
    embedding_dtype: EmbeddingDtypeOption = None,
    key_column: KeyColumnOption = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Column with the texts.")
    ] = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    task: TaskOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring embeddings that exist already; they are normalised and checked row by row."""
    from bliss_index.store import ModelIdentity
    from bliss_index.store.import_work import import_embeddings
    from bliss_index.store.source_reader import ColumnNames

    with progress_line("importing") as progress:
        summary = import_embeddings(
            embeddings,
            out,
            kind=kind,
            model=ModelIdentity(model, pretrained),
            keys=keys,
            texts=texts,
            dtype=dtype,
            prompt=prompt,
            columns=ColumnNames(embedding_column, key_column, text_column, embedding_dtype),
            drop_bad_rows=drop_bad_rows,
            options=job_options(workers, ("cpu",), engine, task, memory),
            listener=make_listener(progress, "imported"),
        )
    if as_json:
        print_json(summary.to_json())
    else:
        facts = {name.replace("_", " "): value for name, value in summary.to_json().items()}
        print_facts(
            str(out),
            {
                **facts,
                "status": counts(summary.status),
                "skipped files": counts(summary.skipped_files),
            },
        )
    if summary.repeated_keys:
        say(f"{summary.repeated_keys} keys occur in several parts; the manifest names the first")
    bad, rows = summary.bad_rows, summary.rows
    message = f"{bad} of {rows} rows are bad; see 'status' and 'error'"
    end(summary.failed, summary.complete, bad, message)
