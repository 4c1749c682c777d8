"""The page itself: what visitors can touch, and which of the other files answers.

Notable choices:
- Every answer is one visitor's own; detectors are the only thing that is shared.
- What was wrong is said in one sentence beside the picture and stays there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from lipdet.app.exhibits import Exhibit, attack
from lipdet.app.markup import show, status
from lipdet.app.session import (
    LARGEST_EPSILON,
    MOST_STEPS,
    Session,
    Stopped,
    Stops,
    attack_settings,
    open_session,
)
from lipdet.attack import DEFAULT_OBJECTIVE, OBJECTIVES, AttackSettings
from lipdet.errors import InputError
from lipdet.reading.detections import read_out

HEADING = "# lipdet\nWhat small detectors see, what is proven about it, and what an attack can do."
MEANING = """
A network sees the picture, or a small **square** of it, at its own input size. **ε** is the L2 norm
of a change of those values, each in [0, 1]; it says nothing about changes of the whole photograph.
**Grey levels** are the root mean square of the same change, white being 255.

**Certified** (blue, solid) means: whatever the change of at most ε, a detection of the same class
stays, with a score above the detector's threshold and an IoU of at least 0.5 with this box. `ε≤` is
the largest ε for which that is proven; shaded is where the box can be at worst. **Not certified**
(orange, dashed) means that nothing is proven, not that an attack exists. An **attack** that finds
nothing proves nothing.
"""
# Files of visitors are deleted when they are this old; looked at as often. Seconds.
OLDEST_FILE = 1_800
# Visitors who are computed for at once; the others wait in line, and no more than so many of them.
AT_ONCE = 2
WAITING = 64

# Detectors chosen when a visitor comes: bounds of each take seconds, once.
SHOWN_AT_FIRST = 2

# A part of an answer that leaves the page as it is.
_KEEP = gr.skip()


def build_page(exhibits: Mapping[str, Exhibit], samples: list[Path]) -> gr.Blocks:
    """Return the page, not yet served.

    Args:
        exhibits: detectors by name, at least one.
        samples: picture files to choose from, at least one.
    """
    stops, names = Stops(), list(exhibits)
    with gr.Blocks(
        title="lipdet", analytics_enabled=False, delete_cache=(OLDEST_FILE, OLDEST_FILE)
    ) as page:
        gr.Markdown(HEADING)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    str(samples[0]),
                    label="Picture",
                    type="filepath",
                    format="png",
                    height=260,
                    sources=["upload", "webcam", "clipboard"],
                    elem_id="picture",
                )
                # Handed over as a path, so that limits are checked before anything is decoded.
                picture.preprocess = lambda file: file and file.path
                gallery = gr.Gallery(
                    [str(sample) for sample in samples],
                    label="Rendered samples",
                    height="auto",
                    show_label=False,
                    buttons=[],
                    allow_preview=False,
                    interactive=False,
                    elem_id="samples",
                )
                search = gr.Checkbox(
                    True, label="Look for the number and crop around it", elem_id="search"
                )
                chosen = gr.CheckboxGroup(names, value=names[:SHOWN_AT_FIRST], label="Detectors")
                epsilon = gr.Slider(
                    0, LARGEST_EPSILON, 0.25, step=0.01, label="ε (L2)", elem_id="epsilon"
                )
                objective = gr.Dropdown(
                    ["worst", *OBJECTIVES],
                    value=DEFAULT_OBJECTIVE,
                    label="Objective of the attack (worst: the strongest of several)",
                )
                steps = gr.Slider(
                    1, MOST_STEPS, AttackSettings.steps, step=1, label="Steps", elem_id="steps"
                )
                with gr.Row():
                    start = gr.Button("Attack", variant="primary", elem_id="attack")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=3, min_width=280):
                message = gr.HTML(status("Looking…"), elem_id="message")
                result = gr.HTML(elem_id="result")
        with gr.Accordion("What this means", open=False):
            gr.Markdown(MEANING)
        session = gr.State(None)

        def look_again(
            path: str | None, wanted: list[str], crop: bool, radius: float, request: gr.Request
        ) -> tuple[Session | None, str, str]:
            stops.stop(str(request.session_hash))
            try:
                now = open_session(Path(path) if path else None, wanted, crop, exhibits)
            except InputError as error:
                return None, "", status(str(error), problem=True)
            return now, show(now, radius), status(_described(now))

        def take_sample(event: gr.SelectData) -> str:
            return str(samples[event.index])

        def move(now: Session | None, radius: float) -> Any:
            return show(now, radius) if now else _KEEP

        def run_attack(
            now: Session | None,
            radius: float,
            goal: str,
            count: float,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio looks for it here
        ) -> Iterator[tuple[Any, Any, str]]:
            if now is None:
                yield _KEEP, _KEEP, status("Choose a picture first.", problem=True)
                return
            try:
                settings = attack_settings(radius, goal, count)
            except InputError as error:
                yield _KEEP, _KEEP, status(str(error), problem=True)
                return
            with stops.running(str(request.session_hash)) as signal:
                try:
                    for place, view in enumerate(now.views, start=1):
                        label = f"{view.name} ({place} of {len(now.views)})"

                        def on_progress(done: int, total: int, label: str = label) -> None:
                            if signal.is_set():
                                raise Stopped(label)
                            progress((done, total), desc=f"Attacking {label}", unit="steps")

                        yield _KEEP, _KEEP, status(f"Attacking {label}…")
                        found = attack(exhibits[view.name], view.view.image, settings, on_progress)
                        if signal.is_set():
                            raise Stopped(label)
                        now = now._replace(attacked={**now.attacked, view.name: found})
                        yield now, show(now, radius), status(_described(now))
                except Stopped:
                    yield _KEEP, _KEEP, status("Stopped; what was finished is shown.")

        def stop_attack(request: gr.Request) -> Any:
            # The attack itself says that it has stopped; a word from here could come after that.
            running = stops.stop(str(request.session_hash))
            return _KEEP if running else status("No attack is running.")

        def leave(request: gr.Request) -> None:
            stops.stop(str(request.session_hash))

        gr.on(
            [page.load, picture.change, chosen.change, search.change],
            look_again,
            [picture, chosen, search, epsilon],
            [session, result, message],
            trigger_mode="always_last",
            show_progress="minimal",
            show_progress_on=message,
            concurrency_id="compute",
            concurrency_limit=AT_ONCE,
            api_visibility="private",
        )
        gallery.select(take_sample, None, picture, show_progress="hidden", api_visibility="private")
        epsilon.change(
            move,
            [session, epsilon],
            result,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        start.click(
            run_attack,
            [session, epsilon, objective, steps],
            [session, result, message],
            show_progress_on=message,
            concurrency_id="compute",
            concurrency_limit=AT_ONCE,
            api_visibility="private",
        )
        stop.click(stop_attack, None, message, queue=False, api_visibility="private")
        page.unload(leave)
    page.queue(max_size=WAITING)
    return page


def _described(now: Session) -> str:
    """Return what each detector reads, and what it reads after the attack."""
    parts = []
    for one in now.views:
        text = f"{one.name} reads {read_out(one.view.detections)}"
        if one.name in now.attacked:
            text += f", attacked {read_out(now.attacked[one.name].found)}"
        parts.append(text)
    return f"{now.picture}: {'; '.join(parts)}."
