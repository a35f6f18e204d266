"""``threshold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_json, print_table, say
from bliss_index.cli.options import (
    CalibrationOption,
    CorpusOption,
    JsonOption,
    LamOption,
    ThreadsOption,
    between_0_and_1,
    path,
    path_or_uri,
)

_RATES = (0.001, 0.01, 0.05, 0.1)
_KEPT_WITH = 0.95


def threshold(
    images: Annotated[
        str,
        typer.Argument(help="Image store that the calibration was made of.", parser=path_or_uri),
    ],
    calibration: CalibrationOption,
    corpus: CorpusOption,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            help="Parquet file, or its URI, for the scores of the held-out images.",
            parser=path_or_uri,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="The labels that the calibration was made with; or 'folders'.",
            parser=path_or_uri,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    lam: LamOption = None,
    folds: Annotated[
        int, typer.Option("--folds", min=2, help="Parts that are held out in turn.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random split into parts.")] = 0,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="Keep false-alarm rates with this probability, such as 0.95, over the images "
            "that are held out; without it they are kept on average only.",
            callback=between_0_and_1,
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            "--scores",
            help="Scores of which a random sample was judged: its images that belong are held "
            "out, in place of IMAGES (--judgements).",
            parser=path_or_uri,
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            help="Folder of the logs of 'bliss-index review' (--scores).",
            parser=path,
        ),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find thresholds: score normal images, each by a calibration made without it.

    'bliss-index score --normal-scores FILE --false-alarm-rate RATE' uses them. A rate is kept on
    average over sets of held-out images: one set may flag more. The column "at most" says what
    each threshold keeps with a probability of 95 %; --confidence asks for thresholds that keep the
    rate itself with a given probability. With --scores and --judgements the images that belong of
    a random sample take the place of IMAGES, which then only say what must not count.
    """
    from bliss_index.calibration import Calibration
    from bliss_index.calibration.labels import Labels
    from bliss_index.errors import InvalidInputError
    from bliss_index.scoring.normal_scores import ScoreIdentity, score_held_out
    from bliss_index.scoring.thresholds import rate_kept
    from bliss_index.search.prepared import corpus_search
    from bliss_index.store import EmbeddingStore, require_same_model

    if (scores is None) != (judgements is None):
        raise typer.BadParameter("--scores and --judgements go together")
    store = EmbeddingStore.open(images, kind="image")
    entries = EmbeddingStore.open(corpus, kind="text")
    normal = Calibration.load(calibration)
    if normal.model is not None:
        require_same_model(
            entries.model, normal.model, f"corpus {corpus}", f"calibration {calibration}"
        )
    if scores is not None and judgements is not None:
        from bliss_index.review.sample import judged_sample

        sample = judged_sample(scores, judgements, images)
        say(sample.left_out)
        found = sample.normal_scores(confidence)
        asked_for = ScoreIdentity(k, normal.lam_for(lam), entries.content_hash, normal.content_hash)
        found.require(asked_for, scores)
    else:
        given = Labels.open(labels, store)
        search = corpus_search(entries, k, threads=threads)
        found = score_held_out(
            store, given, normal, entries, search, lam=lam, folds=folds, seed=seed,
            confidence=confidence,
        )  # fmt: skip
    found.write(out)
    values: dict[float, float | None] = {}
    kept: dict[float, float | None] = dict.fromkeys(_RATES)
    for rate in _RATES:
        try:
            value = values[rate] = found.threshold(rate).value
            kept[rate] = rate_kept(found.scores, value, _KEPT_WITH)
        except InvalidInputError as error:
            values[rate] = None
            say(str(error))
    if as_json:
        thresholds = {str(rate): value for rate, value in values.items()}
        rates = {str(rate): value for rate, value in kept.items()}
        print_json(
            {
                "images": found.scores.size, "folds": found.folds, "confidence": confidence,
                "thresholds": thresholds, "rates_kept_with_95_percent": rates,
            }
        )  # fmt: skip
        return
    rows = [
        [f"{rate:.1%}", "too few images", ""]
        if value is None or kept[rate] is None
        else [f"{rate:.1%}", f"{value:.4f}", f"{kept[rate]:.2%}"]
        for rate, value in values.items()
    ]
    asked = "on average" if confidence is None else f"with {confidence:.0%}"
    print_table(
        f"{found.scores.size} held-out scores in {out}",
        [f"false alarms, {asked}", "threshold", f"at most, with {_KEPT_WITH:.0%}"],
        rows,
    )
