"""The normal classes' names and text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bliss_index.errors import EncoderError, InvalidInputError
from bliss_index.storage import open_directory
from bliss_index.storage.files import is_address
from bliss_index.store import EmbeddingStore, ModelIdentity, require_same_model
from bliss_index.vocabulary import load_vocabulary, prompt_templates, render_prompts


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Names and text embeddings of the normal classes.

    Attributes
    ----------
    names
        C names.
    embeddings
        (C, d), unit norm.
    model
        The model that made them.
    source
        Where they are from.
    prompt
        Template they were put into.
    """

    names: tuple[str, ...]
    embeddings: npt.NDArray[Any]
    model: ModelIdentity
    source: str
    prompt: str | None

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: ModelIdentity,
        *,
        template: str | None = None,
        device: str = "auto",
    ) -> ClassTexts:
        """Take the texts of a text store's directory, or encode the names in a file.

        Parameters
        ----------
        path
            The store or the file.
        model
            The images' model; names are encoded with it.
        template, device
            Prompt for the names, and where to encode them; not used for a store.

        Raises
        ------
        StoreError, InvalidInputError, EncoderError, ModelMismatchError
            As for :meth:`of_store` and :meth:`of_file`.
        """
        if Path(path).is_dir() or (is_address(path) and open_directory(path).names()):
            return cls.of_store(path)
        return cls.of_file(path, model, template=template, device=device)

    @classmethod
    def of_store(cls, path: str | Path) -> ClassTexts:
        """Take the texts of a text store."""
        store = EmbeddingStore.open(path, kind="text")
        return cls(tuple(store.texts()), store.embeddings(), store.model, str(path), store.prompt)

    @classmethod
    def of_file(
        cls,
        path: str | Path,
        model: ModelIdentity,
        *,
        template: str | None = None,
        device: str = "auto",
    ) -> ClassTexts:
        """Encode the names in a file with the model that encoded the images.

        Raises
        ------
        EncoderError
            The model cannot be loaded by its name and tag.
        ModelMismatchError
            What was loaded is not the model of the images.
        """
        vocabulary = load_vocabulary([path])
        if vocabulary.duplicate or vocabulary.empty:
            raise InvalidInputError(
                f"{path} lists {vocabulary.duplicate} classes twice and has {vocabulary.empty} "
                "empty lines; class numbers would be unclear"
            )
        return cls.of_names(
            vocabulary.entries, model, template=template, device=device, source=str(path)
        )

    @classmethod
    def of_names(
        cls,
        names: Sequence[str],
        model: ModelIdentity,
        *,
        template: str | None = None,
        device: str = "auto",
        source: str = "the names",
    ) -> ClassTexts:
        """Encode names with the model that encoded the images.

        Parameters
        ----------
        names : sequence of str
            C different names.
        model : ModelIdentity
            The images' model.
        template, device : str
            Prompt for the names (PROMPT_ENSEMBLE for CLIP's 80), and where to encode them.
        source : str
            Where the names are from, for messages.

        Raises
        ------
        EncoderError
            The model cannot be loaded by its name and tag.
        ModelMismatchError
            What was loaded is not the model of the images.
        """
        from bliss_index.encode.encode_work import EncoderSpec

        try:
            encoder = EncoderSpec(model.name, model.pretrained).load(device)
        except EncoderError as error:
            raise EncoderError(
                f"class names must be encoded by the images' model, {model.describe()}, which "
                f"cannot be loaded: {error}. Encode them with encode-text and give that store as "
                "--classes."
            ) from error
        require_same_model(model, encoder.identity, "the images", f"classes {source}")
        templates = prompt_templates(template)
        if len(templates) == 1:
            rows = encoder.encode_text(render_prompts(names, templates[0]))
        else:
            rows = encoder.encode_ensemble(names, templates)
        return cls(tuple(names), rows, encoder.identity, source, " | ".join(templates))
