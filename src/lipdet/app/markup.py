"""The part of the page that changes: panels side by side, what is proven, and the downloads.

Notable choices:
- Pictures and downloads stand in the page itself, as data: no files to keep, none to clean.
- Everything is escaped where it is put into markup.
"""

from __future__ import annotations

import json
from html import escape

from lipdet.app.exhibits import Shown
from lipdet.app.session import Panel, Session, as_dict, panels, sheet
from lipdet.files import png
from lipdet.reading.detections import count_certified
from lipdet.report.markup import data_url

CSS = """
.lipdet-detectors { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); }
.lipdet-detectors section { min-width: 0; }
.lipdet-detectors h3 { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
.lipdet-detectors p { margin: .2rem 0 .6rem; font-size: .9rem; min-height: 5.3em; }
.lipdet-panels { display: flex; flex-wrap: wrap; gap: .8rem; }
.lipdet-detectors figure { margin: 0; flex: 1 1 15rem; max-width: 23rem; }
.lipdet-detectors img { width: 100%; height: auto; display: block; }
.lipdet-detectors figcaption { font-size: .85rem; }
.lipdet-downloads { margin-bottom: .8rem; }
.lipdet-downloads a { margin-right: 1rem; text-decoration: underline; }
/* Gradio's own columns are at least 100 pixels wide and high, and then stick out. */
#samples .grid-wrap { max-height: none; min-height: 0; overflow: visible; padding: .4rem; }
#samples .grid-container { gap: .4rem; padding: 0; grid-auto-rows: auto;
  grid-template-columns: repeat(4, minmax(0, 1fr)); }
#samples button { height: auto; min-height: 0; aspect-ratio: 1; }
.lipdet-status { padding: .5rem .8rem; border-left: 4px solid #0072B2; }
.lipdet-status.problem { border-color: #D55E00; }
"""


def status(sentence: str, problem: bool = False) -> str:
    """Return one sentence that is read out when it changes."""
    kind = "alert" if problem else "status"
    look = "lipdet-status problem" if problem else "lipdet-status"
    return f'<div class="{look}" role="{kind}">{escape(sentence)}</div>'


def show(session: Session, epsilon: float) -> str:
    """Return all detectors side by side, and the downloads of exactly what is shown."""
    rows = panels(session, epsilon)
    sections = "".join(
        f"<section><h3>{escape(view.name)}</h3><p>{escape(proven(view, epsilon))}</p>"
        f'<div class="lipdet-panels">{"".join(_figure(panel) for panel in row)}</div></section>'
        for view, row in rows
    )
    picture = sheet([(view.name, row) for view, row in rows])
    text = json.dumps(as_dict(session, epsilon), indent=1)
    return (
        f'<div class="lipdet-downloads">{_download("lipdet.png", "image/png", png(picture))}'
        f"{_download('lipdet.json', 'application/json', text.encode())}</div>"
        f'<div class="lipdet-detectors">{sections}</div>'
    )


def proven(shown: Shown, epsilon: float) -> str:
    """Return one sentence on what is certain about a view at ε."""
    found = shown.at(epsilon)
    count = len(found)
    if not count:
        return "Nothing is detected, so there is nothing to certify."
    if shown.reason:
        return f"Nothing is certified. {shown.reason}"
    if epsilon == 0:
        return "Move ε: at 0 nothing may change, so there is nothing to certify."
    sure = count_certified(found)
    change = f"{epsilon:g} ({shown.view.canvas.in_grey_levels(epsilon)})"
    if not sure:
        return f"None of {count} certified at ε = {change}: that does not mean an attack exists."
    these = "this one" if sure == 1 else f"these {sure}"
    return (
        f"{sure} of {count} certified: no change of L2 norm up to {change} can take {these} away."
    )


def _figure(panel: Panel) -> str:
    return (
        f'<figure><img alt="{escape(panel.alternative)}" '
        f'src="{data_url("image/png", png(panel.picture))}">'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
    )


def _download(name: str, kind: str, data: bytes) -> str:
    return f'<a download="{name}" href="{data_url(kind, data)}">Download {name}</a>'
