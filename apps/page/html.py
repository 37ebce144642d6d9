"""Pieces of HTML for the page. Captions, labels and names are untrusted text: each is escaped here.

bars([("a dog", 0.4), ("a cat", 0.1)])     # a bar for each score
timeline(scores, edges, end, best)         # a video from left to right
"""

from html import escape

from models.files import printable

HEIGHT = 60  # units of the timeline, which is 1000 wide


def bars(rows, note=""):
    """A bar for each (text, score), the first one bold. With no rows, `note`."""
    if not rows:
        return line(note)
    items = []
    for text, score in rows:
        width = f"{100 * min(max(score, 0), 1):.0f}%"
        items.append(
            f'<li><span style="width:{width}"></span><b>{score:.2f}</b> {escape(printable(text))}</li>'
        )
    return f'<ol class="bars">{"".join(items)}</ol>'


def line(text):
    """A paragraph of plain text."""
    return f"<p>{escape(printable(text))}</p>"


def timeline(scores, edges, times, end, best):
    """The segments of a video as boxes from left to right, the darker the better their best frame; a line of
    the score of each frame; and the `best` Moments marked with their time.

    scores (F,) are cosines, `edges` (S + 1) frame numbers, `times` (F) and `end` in seconds."""
    low, high = float(scores.min()), float(scores.max())
    scale = (high - low) or 1.0
    clock = [*times, end]

    def x(seconds):
        return 1000 * seconds / (end or 1.0)

    parts = []
    for a, b in zip(edges, edges[1:]):
        strength = (float(scores[a:b].max()) - low) / scale
        left, right = x(clock[a]), x(clock[b])
        opacity = f"{0.1 + 0.5 * strength:.2f}"
        parts.append(
            f'<rect x="{left:.1f}" width="{right - left - 1:.1f}" height="{HEIGHT}" opacity="{opacity}"/>'
        )
    points = " ".join(
        f"{x(time):.1f},{HEIGHT - (HEIGHT - 8) * (float(score) - low) / scale:.1f}"
        for time, score in zip(times, scores)
    )
    parts.append(f'<polyline points="{points}"/>')
    for moment in best:
        at = x(moment.at)
        parts.append(f'<path d="M {at:.1f} 0 V {HEIGHT}"/>')
        parts.append(f'<text x="{min(at + 4, 950):.1f}" y="{HEIGHT + 16}">{moment.at:.1f} s</text>')
    return f'<svg class="timeline" viewBox="0 0 1000 {HEIGHT + 22}">{"".join(parts)}</svg>'


STYLE = """
.bars { list-style: none; margin: 0; padding: 0 }
.bars li { position: relative; padding: 3px 8px; overflow-wrap: anywhere }
.bars li:first-child { font-weight: 600 }
.bars span { position: absolute; left: 0; top: 2px; bottom: 2px; border-radius: 3px;
  background: var(--color-accent); opacity: 0.22 }
.bars b { display: inline-block; min-width: 3.5em; font-variant-numeric: tabular-nums; font-weight: inherit }
.timeline { width: 100%; fill: var(--color-accent) }
.timeline polyline { fill: none; stroke: var(--body-text-color); stroke-width: 1.5 }
.timeline path { stroke: var(--body-text-color); stroke-dasharray: 3 3 }
.grid-wrap { min-height: 0 !important; max-height: none !important }
.caption-label { white-space: normal !important; max-width: 100% !important; inset: auto 0 0 0 !important;
  margin: 0 !important; font-size: 12px !important; overflow-wrap: anywhere }
.words .thumbnail-lg { aspect-ratio: 3 / 4 !important }
.words .thumbnail-lg > img { object-fit: contain !important; object-position: top }
.timeline text { fill: var(--body-text-color); font-size: 14px }
"""
