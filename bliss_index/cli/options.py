"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

# Written here as well, so that a misspelt option is a usage error before anything is imported.
KINDS = ("text", "image")
DTYPES = ("float16", "float32")
PRECISIONS = ("float32", "bfloat16")
PREPROCESSES = ("model", "authors")
ENGINES = ("local", "ray")


def one_of(known: tuple[str, ...]) -> Callable[[str | None], str | None]:
    """Make the check of an option that takes one of some words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return value

    return check


def as_key(argument: str) -> str:
    """Read a key of whatever bytes, in any locale, as the names of files become keys."""
    try:
        return os.fsencode(argument).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # it did not come from the shell
        return argument


def path(value: str) -> Path:
    """Read an option that is a local path; an address is refused, not taken for one."""
    from bliss_index.storage.files import is_address

    if is_address(value):
        raise typer.BadParameter(
            f"{value} is an address; a local path is needed here. Copy it first, or name another"
        )
    return Path(value)


def path_or_uri(value: str) -> str:
    """Read an option that is a local path or in an object store."""
    from bliss_index.storage.files import is_address
    from bliss_index.storage.objects import is_object_store

    if is_address(value) and not is_object_store(value):
        raise typer.BadParameter(
            f"{value} is neither a local path nor in an object store, such as s3://bucket/name, "
            "gs:// or az://"
        )
    return value


def path_or_any_uri(value: str) -> str:
    """Read an option that is a local path, or a URI that obstore, pyarrow or fsspec reads."""
    from bliss_index.storage.files import is_address

    if is_address(value) and "://" not in value:
        raise typer.BadParameter(f"{value} is no URI, which has two slashes, nor a local path")
    return value


def tag_or_file(value: str) -> str:
    """Read an option that is a name or a local path."""
    return str(path(value))


def between_0_and_1(value: float | None) -> float | None:
    """Check an option that is a probability."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} does not lie between 0 and 1")
    return value


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Name of an open_clip model, 'local-dir:PATH', or the built-in 'bliss-tiny'.",
    ),
]
PreprocessOption = Annotated[
    str,
    typer.Option(
        "--preprocess",
        help="'model', or 'authors' as in the paper's code.",
        callback=one_of(PREPROCESSES),
    ),
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", min=1)]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        help="Tag of the weights, or a checkpoint file (safetensors, pt).",
        show_default="'openai' for OpenAI's models, such as ViT-B-16; others need it",
        parser=tag_or_file,
    ),
]
PromptEnsembleOption = Annotated[
    bool,
    typer.Option(
        "--prompt-ensemble",
        help="Average the 80 prompts of CLIP's authors, which takes 80 times as long.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="'auto', 'cpu', or a torch device such as 'cuda:0'.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision", help="Weights in 'float32' or 'bfloat16'.", callback=one_of(PRECISIONS)
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Type of the stored embeddings: 'float16' or 'float32'.",
        callback=one_of(DTYPES),
    ),
]
LamOption = Annotated[
    float | None,
    typer.Option(
        "--lam",
        min=0.0,
        help="Weight of the external score, lambda.",
        show_default="the calibration's: 0.5 unless it was chosen",
    ),
]
ImageWeightOption = Annotated[
    str,
    typer.Option(
        "--image-weight",
        metavar="W|auto",
        help="Weight of the image term: how much the class's mean image says beside its name. For "
        "classes whose names the model does not know. 'auto' chooses it and lambda from the "
        "calibration images, of two classes or more; 0 is the paper's.",
    ),
]
StoreOutput = Annotated[
    str, typer.Option("--out", help="Directory or URI of the store to make.", parser=path_or_uri)
]
CorpusOption = Annotated[
    str, typer.Option("--corpus", help="Text store of the vocabulary.", parser=path_or_uri)
]
CalibrationOption = Annotated[
    str, typer.Option("--calibration", help="Calibration directory.", parser=path_or_uri)
]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="Where scored images are now.",
        show_default="where they were scored",
        parser=path_or_any_uri,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads.", show_default="BLISS_INDEX_THREADS, or all"),
]
EmbeddingColumnOption = Annotated[
    str | None,
    typer.Option("--embedding-column", help="Column, or array of a file, with the embeddings."),
]
EmbeddingDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--embedding-dtype",
        help="Type of the values, where a column holds them as bytes: 'float16', 'float32' or "
        "'float64'.",
        callback=one_of(("float16", "float32", "float64")),
    ),
]
KeyColumnOption = Annotated[str | None, typer.Option("--key-column", help="Column with the keys.")]
MovedCorpusOption = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="Where the vocabulary is now.",
        show_default="where it was",
        parser=path_or_uri,
    ),
]


def refuse_both(ensemble: bool, template: object) -> None:
    """Refuse a prompt ensemble beside templates."""
    if ensemble and template:
        raise typer.BadParameter("--prompt-ensemble takes the place of --template: give one")
