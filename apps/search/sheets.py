"""Contact sheets: what a search found, as one picture or as one HTML file that works offline.

    results = [(0.31, "photos/a.jpg"), ...]      # (score, path), best first
    times = {"photos/b.mp4": 12.5}               # seconds of the frames to show of videos
    save("dogs.html", results, "a dog", times)   # or "dogs.png"
    sheet = grid(results, "a dog")               # RGB PIL image; `page` returns the HTML as text

File names are untrusted text: they are escaped in HTML, and control characters are spelled out.
"""

import base64
import html
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PureWindowsPath
from urllib.parse import quote

from apps.search.store import shown
from models.files import printable, relative, replacing

log = logging.getLogger(__name__)
GAP = 16  # pixels between tiles
LINE = 24  # pixels of a line of text
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }}
body {{ max-width: 1200px; margin: 2rem auto }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1.2rem }}
figure {{ margin: 0 }}
img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; border-radius: 6px }}
figcaption {{ overflow-wrap: anywhere; font-size: 13px }}</style><h1>{title}</h1><main>{figures}</main></html>
"""


def save(file, results, title, times=None):
    """Write a contact sheet: the page for a name that ends in .html, else the picture as PNG."""
    with replacing(file) as new:
        if str(file).lower().endswith(".html"):
            folder = os.path.dirname(os.path.abspath(file))
            new.write_text(page(results, title, folder, times), encoding="utf-8")
        else:
            grid(results, title, times).save(new, format="PNG")


def page(results, title, folder, times=None):
    """A contact sheet as HTML: thumbnails inside it, links from `folder` to the files. It fetches nothing and
    has no script."""
    figures = []
    images = thumbnails([path for _, path in results], 360, times)
    for (score, path), image in zip(results, images):
        image.save(jpeg := io.BytesIO(), "JPEG", quality=82)
        link = link_to(path, folder)
        name = html.escape(named(shown(path), (times or {}).get(path)))
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        image = f'<a href="{link}"><img alt="{name}" src="{source}"></a>'
        figures.append(f"<figure>{image}<figcaption><b>{score:.4f}</b> {name}</figcaption></figure>")
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))


def link_to(path, folder, system=os.path):
    """The link to a file from a page in `folder`: relative, or a file URL between two drives of Windows.
    `system` is os.path, or that of another system."""
    found = relative(path, folder, system)
    if system.isabs(found):
        return PureWindowsPath(found).as_uri()
    return quote(os.fsencode(found.replace(system.sep, "/")))


def grid(results, title, times=None, columns=4, side=256):
    """A contact sheet as an RGB image: the title, then a tile of `side` pixels for each result."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(results) // columns)
    width = columns * (side + GAP) + GAP
    sheet = Image.new("RGB", (width, rows * (side + LINE + GAP) + 4 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(14), ImageFont.load_default(22)
    pen.text((GAP, GAP), _fit(pen, title, large, width - 2 * GAP), fill="black", font=large)
    images = thumbnails([path for _, path in results], side, times)
    for n, ((score, path), image) in enumerate(zip(results, images)):
        x = GAP + n % columns * (side + GAP)
        y = 3 * GAP + n // columns * (side + LINE + GAP)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        name = named(os.path.basename(shown(path)), (times or {}).get(path))
        name = _fit(pen, name, small, side - 48)
        pen.text((x, y + side + 5), f"{score:.3f}", fill="black", font=small)
        pen.text((x + 48, y + side + 5), name, fill="dimgrey", font=small)
    return sheet


def named(name, time):
    """A name, and for a video where in it its frame is."""
    return name if time is None else f"{name} at {time:.1f} s"


def thumbnails(paths, side, times=None):
    """RGB images that fit a square of `side` pixels, of a video the frame at its time in `times` {path:
    seconds}. What cannot be decoded is logged and shown grey."""
    seconds = [(times or {}).get(path) for path in paths]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_thumbnail, side=side), paths, seconds))


def _thumbnail(path, time, side):
    from PIL import Image

    from models.dataset import frame_at, open_frames

    try:
        image = open_frames(path, 1)[0] if time is None else frame_at(path, time)
    except (OSError, ValueError) as error:
        log.warning("not shown: %s; index again", printable(str(error)))
        return Image.new("RGB", (side, side), "lightgrey")
    image.thumbnail((side, side))
    return image


def _fit(pen, line, font, room):
    """`line`, shortened to `room` pixels."""
    while pen.textlength(line, font=font) > room:
        line = line.rstrip("…")[:-1] + "…"
    return line
