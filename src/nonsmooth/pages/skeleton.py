"""One self-contained HTML file: a template of a package on the common skeleton; nothing is fetched."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nonsmooth.pages.numbers import prose, show

try:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"nonsmooth.pages needs {missing.name}, which is not installed; "
        "run: pip install 'nonsmooth[lab]' (or 'nonsmooth[torch]' beside PyTorch)",
        name=missing.name,
    ) from missing

__all__ = ["date", "document", "seconds", "write_whole"]

HOME = "nonsmooth.pages"
UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def document(
    package: str,
    template: str,
    drawn: Sequence[Mapping[str, Any]] = (),
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    **facts: Any,
) -> str:
    """The page as text: `template` of `package`, which extends skeleton.html, filled with `facts`, all of it escaped.

    drawn: what `drawn_plot` and `drawn_table` made, in the order in which the template shows them. scripts, styles:
    files of the package that follow the common ones. Same input, same page.

    >>> page = document("nonsmooth.pages", "skeleton.html")
    >>> "default-src 'none'" in page, "https://" in page.partition("<body>")[0]
    (True, False)
    """
    script = "".join([_text(HOME, "figures.js"), _text(HOME, "page.js"), *(_text(package, name) for name in scripts)])
    style = "".join([_text(HOME, "style.css"), *(_text(package, name) for name in styles)])
    plotly = get_plotlyjs()
    return (
        _environment(package)
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            plotly=Markup(_packed(plotly)),
            trusted=[_digest(script), _digest(plotly)],
            plots=Markup(_json([plot for plot in drawn if plot["kind"] == "plot"])),
            tables=Markup(_json([plot["raw"] for plot in drawn if plot["kind"] == "table"])),
            **facts,
        )
    )


def write_whole(target: Path, text: str, otherwise: str) -> Path:
    """`text` into the file `target`, whole or not at all; ValueError in one sentence that ends with `otherwise`.

    >>> write_whole(Path("no-such-folder/a.html"), "", "choose another folder with --out")
    Traceback (most recent call last):
    ValueError: no-such-folder/a.html: cannot be written (No such file or directory); choose another folder with --out.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="replace")  # half a surrogate pair, which JSON can hold
        os.replace(beside, target)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error.strerror}); {otherwise}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def date(iso: str) -> str:
    """A day and an hour as one reads them; what is no date stays.

    >>> date("2026-03-01T09:05:00+00:00"), date("soon")
    ('1 March 2026, 09:05 UTC', 'soon')
    """
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = " UTC" if when.tzinfo is not None and not when.utcoffset() else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def seconds(count: float) -> str:
    """A time in the unit that suits it.

    >>> seconds(12.34), seconds(600), seconds(7200)
    ('12 s', '10 min', '2 h')
    """
    if count < 90:
        return f"{show(count, 2)} s"
    return f"{show(count / 60, 2)} min" if count < 5400 else f"{show(count / 3600, 2)} h"


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(HOME)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "seconds": seconds}
    return environment


def _text(package: str, name: str) -> str:
    return files(package).joinpath("templates", name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no script element can be left by."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


@cache
def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


@cache
def _digest(script: str) -> str:
    """What the page's security policy knows a script by: nothing else runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
