"""``review``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_facts, print_json, say
from bliss_index.cli.options import JsonOption, path


def review(
    target: Annotated[
        Path,
        typer.Argument(help="Run of 'bliss-index screen', or scores directory.", parser=path),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of the images, to show them.",
            show_default="the photos of the run",
            parser=path,
        ),
    ] = None,
    person: Annotated[
        str | None,
        typer.Option(
            "--person",
            help="Whose judgements these are: each person has a log.",
            show_default="the name that you are logged in with",
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            help="Folder of the logs.",
            show_default="RUN/judgements, or SCORES/_judgements",
            parser=path,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            help="File of 'bliss-index groups --out FILE'.",
            show_default="that of the run",
            parser=path,
        ),
    ] = None,
    normal_scores: Annotated[
        Path | None,
        typer.Option(
            "--normal-scores",
            help="File of 'bliss-index threshold', for the number of images to look at.",
            show_default="that of the run",
            parser=path,
        ),
    ] = None,
    normal: Annotated[
        Path | None,
        typer.Option(
            "--normal",
            help="Image store that calibrated the scores: its images count in no sample.",
            show_default="that of the run",
            parser=path,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port on this machine; 0 for any.",
            show_default="the first free from 8700 on",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="Name under which a proxy, such as Jupyter's, serves it; repeat for several.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at scored images in a browser, judge them by a key, and see what follows.

    The page is served on this machine only, to whoever has the token. Every verdict is on disk
    before it shows as saved; stop the command at any moment, and run it again to go on.
    """
    import getpass
    import secrets
    import socket

    from bliss_index.review.inputs import ReviewInputs, ReviewOptions
    from bliss_index.review.server import HOST, listen, make_app, serve
    from bliss_index.review.session import ReviewSession

    options = ReviewOptions(
        images=images,
        groups=None if groups is None else str(groups),
        normal_scores=None if normal_scores is None else str(normal_scores),
        normal=None if normal is None else str(normal),
        judgements=judgements,
    )
    inputs = ReviewInputs.open(target, options)
    with listen(port) as listener, ReviewSession(inputs, person or getpass.getuser()) as session:
        number, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        app = make_app(
            session, token, cookie=f"bliss_review_{number}", hosts=tuple(allow_host or ())
        )
        for notice in inputs.notices:
            say(notice)
        address = f"http://{HOST}:{number}/?token={token}"
        facts = {"images": session.catalogue.rows, "judgements": str(inputs.judgements)}
        if as_json:
            print_json({**facts, "address": address, "port": number, "token": token})
        else:
            print_facts(
                str(target),
                {
                    **facts,
                    "open": address,
                    "from afar": f"ssh -L {number}:{HOST}:{number} {socket.gethostname()}",
                    "in Jupyter": f"its address, then proxy/{number}/?token={token}; "
                    "--allow-host NAME",
                    "end with": "Ctrl-C; run it again to go on",
                },
            )
        serve(app, listener)
