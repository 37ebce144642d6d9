"""Contact sheets: what a search found, as one picture or as one HTML file that works offline.

    results = [(0.31, "photos/a.jpg"), ...]                       # (score, path), best first
    save("dogs.html", results, "a dog", open_image)               # open_image: path -> RGB PIL image
    sheet = grid(results, "a dog", open_image)                    # RGB PIL image; page(...) is the HTML as text
    print(shown("photos/a.jpg"))                                  # fit for a terminal

Names of files are strangers' text: in a page they are escaped, in print their control characters are spelled out.
"""

import base64
import html
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote


def printable(text):
    """Escape sequences and bytes that are no UTF-8 come out as \\x1b and \\udcff."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(path):
    """A path from the current folder, fit for a terminal."""
    return printable(os.path.relpath(path))


def thumbnails(paths, side, open_image):
    """RGB images that fit a square of `side` pixels; grey where `open_image` raises OSError or ValueError, which is printed."""
    from PIL import Image

    def thumbnail(path):
        try:
            image = open_image(path)
        except (OSError, ValueError) as error:
            print(f"not shown: {error}; index again", file=sys.stderr)
            return Image.new("RGB", (side, side), "lightgrey")
        image.thumbnail((side, side))
        return image

    with ThreadPoolExecutor() as pool:
        return list(pool.map(thumbnail, paths))


def grid(results, title, open_image, columns=4, side=256):
    """A contact sheet as an RGB image: the title, then a tile of `side` pixels for each (score, path)."""
    from PIL import Image, ImageDraw, ImageFont

    gap, text = 16, 24  # pixels
    width, height = columns * (side + gap) + gap, -(-len(results) // columns) * (side + text + gap) + 4 * gap
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, large = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(22)

    def fit(line, font, room):
        while pen.textlength(line, font=font) > room:
            line = line.rstrip("…")[:-1] + "…"
        return line

    pen.text((gap, gap), fit(title, large, width - 2 * gap), fill="black", font=large)
    for n, ((score, path), image) in enumerate(
        zip(results, thumbnails([path for _, path in results], side, open_image))
    ):
        x, y = gap + n % columns * (side + gap), 3 * gap + n // columns * (side + text + gap)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        pen.text((x, y + side + 5), f"{score:.3f}", fill="black", font=font)
        pen.text(
            (x + 48, y + side + 5),
            fit(os.path.basename(shown(path)), font, side - 48),
            fill="dimgrey",
            font=font,
        )
    return sheet


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><title>{title}</title>
<style>:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }} body {{ max-width: 1200px; margin: 2rem auto }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1.2rem }} figure {{ margin: 0 }}
img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; border-radius: 6px }}
figcaption {{ overflow-wrap: anywhere; font-size: 13px }}</style><h1>{title}</h1><main>{figures}</main></html>
"""


def page(results, title, folder, open_image):
    """A contact sheet as one HTML text: thumbnails inside it, links from `folder` to the files, nothing fetched, no script."""
    figures = []
    for (score, path), image in zip(results, thumbnails([path for _, path in results], 360, open_image)):
        image.save(jpeg := io.BytesIO(), "JPEG", quality=82)
        link, name = quote(os.fsencode(os.path.relpath(path, folder))), html.escape(shown(path))
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        image = f'<a href="{link}"><img alt="{name}" src="{source}"></a>'
        figures.append(f"<figure>{image}<figcaption><b>{score:.4f}</b> {name}</figcaption></figure>")
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))


def save(file, results, title, open_image):
    """Write a contact sheet: the page for a name that ends in .html, else the picture."""
    if str(file).lower().endswith(".html"):
        Path(file).write_text(
            page(results, title, os.path.dirname(os.path.abspath(file)), open_image), encoding="utf-8"
        )
    else:
        grid(results, title, open_image).save(file)
