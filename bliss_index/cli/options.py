"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Name of an open_clip model, 'local-dir:PATH', or the built-in 'bliss-tiny'.",
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        "--pretrained", help="Tag of the weights, or a checkpoint file (safetensors, pt)."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="'auto', 'cpu', or a torch device such as 'cuda:0'.")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Weights in 'float32' or 'bfloat16'.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Type of the stored embeddings: 'float16' or 'float32'.")
]
StoreOutput = Annotated[Path, typer.Option("--out", help="Directory of the store to make.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads [default: BLISS_INDEX_THREADS, or all]."),
]
EmbeddingColumnOption = Annotated[
    str | None, typer.Option("--embedding-column", help="Parquet column with the embeddings.")
]
KeyColumnOption = Annotated[
    str | None, typer.Option("--key-column", help="Parquet column with the keys.")
]
