"""What is screened, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bliss_index.calibration.calibration import require_weight
from bliss_index.calibration.unlabelled import require_trim
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.weights import AUTO
from bliss_index.report import ReportOptions
from bliss_index.scoring import ScoreSettings
from bliss_index.vocabulary import DEFAULT_TEMPLATE, prompt_templates

DEFAULT_RATE = 0.01
DEFAULT_TRIM = 0.1
"""Share of photos to leave out where the photos to screen calibrate themselves."""


@dataclass(frozen=True)
class ScreenSettings:
    """What is screened, and how.

    Attributes
    ----------
    photos : tuple of str
        Folders, tars or tables of images; or one image store; or embeddings, see `embeddings`.
    normal : str, default=None
        Known normal images, of any of these kinds; their first folders are the classes. None where
        the photos themselves calibrate.
    classes : str, default=None
        Names of the normal classes, with commas between them, or a file or text store of names.
        None for all folders of `normal`.
    vocabulary : tuple of str, default=("imagenet",)
        Files of entries and built-in lists, encoded once; or one text store.
    model, pretrained : str, default=None
        The model; by default that of the image store, else the paper's.
    precision, preprocess, batch_size
        As for :class:`bliss_index.encode.encode_work.EncoderSpec`.
    embeddings : bool, default=False
        Photos, and normal images, are embeddings that the model made, in a layout of ``import``.
    template : str
        Prompt for the entries and the class names; PROMPT_ENSEMBLE for CLIP's 80.
    dtype : str, default="float16"
        Type of stored embeddings.
    trim : float, default=None
        Share of every class to leave out, those farthest from its centre; by default a tenth where
        the photos themselves calibrate, else none.
    shrinkage : float, default=0
        As for :func:`bliss_index.calibration.from_store.calibrate_store`.
    image_weight : float or "auto", default=0
        W of :class:`bliss_index.calibration.Calibration`; "auto" chooses it and lambda from the
        images that calibrate.
    k, lam
        Entries per image, and the weight of the external score; None for that of the calibration,
        0.5 unless it was chosen.
    false_alarm_rate : float, default=None
        Largest share of normal images to flag; by default 0.01, or the smallest that so few normal
        images allow.
    confidence : float, default=None
        With which the rate is kept; None for a rate that is kept on average.
    images : Path, default=None
        Folder of the photos for the report's pictures; by default `photos`, if it is one folder.
    """

    photos: tuple[str, ...]
    normal: str | None = None
    classes: str | None = None
    vocabulary: tuple[str, ...] = ("imagenet",)
    model: str | None = None
    pretrained: str | None = None
    precision: str = "float32"
    preprocess: str = "model"
    batch_size: int | None = None
    embeddings: bool = False
    template: str = DEFAULT_TEMPLATE
    dtype: str = "float16"
    trim: float | None = None
    shrinkage: float = 0.0
    image_weight: float | str = 0.0
    k: int = 10
    lam: float | None = None
    false_alarm_rate: float | None = None
    confidence: float | None = None
    images: Path | None = None

    def __post_init__(self) -> None:
        if self.normal is None and self.classes is None:
            raise InvalidInputError(
                "what is normal must be said: --normal FOLDER of known images, whose sub-folders "
                "are the classes, or --classes cat,dog alone"
            )
        prompt_templates(self.template)
        require_trim(self.trim or 0.0)
        if self.image_weight != AUTO:
            require_weight("image_weight", self.image_weight)
        ScoreSettings("", "", self.k, self.lam)  # refuses what scoring will not take
        ReportOptions(images=self.images)

    @property
    def share_to_trim(self) -> float:
        """Share of every class to leave out."""
        if self.trim is not None:
            return self.trim
        return DEFAULT_TRIM if self.normal is None else 0.0
