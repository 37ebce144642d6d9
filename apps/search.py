"""Search a folder of photographs by text or by photograph, and list its duplicates.

    python -m apps.search index my_image_archive                     again after changes: only what is new or changed is read
    python -m apps.search find "a dog on a beach"                    paths and cosine scores, best first
    python -m apps.search find "a dog" --not snow --html dogs.html   and a contact sheet; --and and --not add and take away
    python -m apps.search find --image photo.jpg --grid like.png     photographs like this one
    python -m apps.search duplicates                                 identical files and near-duplicates

The index is one SQLite file that knows its folder and the model that made it. Each batch is one transaction: a killed run
leaves an index that can be searched, and the next one goes on and ends with the same rows in the same order.
"""

import argparse
import base64
import hashlib
import html
import io
import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

FORMAT = "vl-jepa search 1"
SCHEMA = """CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB);
CREATE TABLE images (id INTEGER PRIMARY KEY, path BLOB UNIQUE, stamp TEXT, digest BLOB, row BLOB, sketch BLOB);
CREATE INDEX digests ON images (digest);"""  # a file that can't be decoded has a stamp and no row
KNOWN = "SELECT row, sketch FROM images WHERE digest = ? AND row IS NOT NULL"
UPSERT = """INSERT INTO images (path, stamp, digest, row, sketch) VALUES (?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE
SET stamp = excluded.stamp, digest = excluded.digest, row = excluded.row, sketch = excluded.sketch"""
AWAY = 0.5  # how far --not pushes: of 0, 1/4, 1/2, 3/4, 1 and 3/2 the best on Flickr8k dev (see `combine`)
NEAR = 0.92  # cosine of sketches; measured on Flickr8k (see `duplicates`)
EXACT_ROWS = 1_000_000  # an exact search above this reads gigabytes
PROBES = ("a dog", "two people talking", "a red car", "children at play", "snow on a mountain", "a busy street at night", "food on a plate",
          "a man on a bicycle", "a bird in flight", "flowers", "a football match", "an empty room")  # fmt: skip


def stamp_of(stat):
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def printable(text):
    """File names are strangers' text: escape sequences and bytes that are no UTF-8 come out as \\x1b and \\udcff."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(path):
    """A path from the current folder, fit for a terminal."""
    return printable(os.path.relpath(path))


def open_index(path, create=False):
    """(connection, {key: value as bytes}) of an index file. Raises FileNotFoundError when there is none, ValueError when it
    is another kind of file."""
    path = Path(path)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no index there; make one first (python -m apps.search index DIR), or name yours with --index")
    db = sqlite3.connect(path, timeout=60)
    try:
        db.execute("PRAGMA trusted_schema = OFF")  # nothing a stranger's file defines may call functions
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and create:
            db.executescript(f"PRAGMA page_size = 16384; BEGIN; {SCHEMA} INSERT INTO meta VALUES ('format', '{FORMAT}'); COMMIT;")
            tables = {"meta", "images"}
        meta = dict(db.execute("SELECT CAST(key AS TEXT), CAST(value AS BLOB) FROM meta")) if tables == {"meta", "images"} else {}
        if meta.get("format") != FORMAT.encode():
            raise sqlite3.DatabaseError("another kind of file")
    except sqlite3.OperationalError:  # locked, read-only, full
        db.close()
        raise
    except sqlite3.DatabaseError as error:
        db.close()
        raise ValueError(f"{path}: not an index of this program, or damaged ({error}); name another file with --index, "
                         "or delete it and index again") from None  # fmt: skip
    if not create and not {"root", "model", "run", "complete"} <= set(meta):
        db.close()
        raise ValueError(f"{path}: nothing was indexed yet; python -m apps.search index DIR")
    return db, meta


def put(db, **values):
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def blobs(db, column, where="1"):
    """(ids, (N, D) float16): `column` of the images that have one, in the index's order."""
    import torch

    chosen = f"FROM images WHERE typeof({column}) = 'blob' AND {where}"
    count, width = db.execute(f"SELECT count(*), max(length({column})) {chosen}").fetchone()
    if not count:
        return [], torch.empty(0, 1, dtype=torch.float16)
    ids, flat = [], bytearray(count * width)
    for number, blob in db.execute(f"SELECT id, {column} {chosen} ORDER BY id LIMIT {count}"):
        if len(blob) != width or width % 2:
            raise ValueError(f"the index is damaged: image {number} has {len(blob)} bytes, another {width}; delete it and index again")
        flat[len(ids) * width : (len(ids) + 1) * width] = blob
        ids.append(number)
    del flat[len(ids) * width :]  # another program may have deleted some meanwhile
    return ids, torch.frombuffer(flat, dtype=torch.float16).view(len(ids), -1)


def load_model(run, device):
    """(VLJEPA, the digest of all that an embedding depends on: predictor, towers, preprocessing)."""
    from models.vljepa import VLJEPA

    model = VLJEPA.load(run, device)
    digest = hashlib.sha256(repr([model.predictor.config, model.vision.key, model.text.key]).encode())
    for name, value in model.predictor.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return model, digest.hexdigest()


def scan(root):
    """({path below root as bytes: stamp} of its image files, number of other files, of symbolic links). Hidden names are
    left out, links are not followed: a photograph is indexed once, under its own name."""
    from PIL import Image

    from models.dataset import FORMATS

    suffixes = {suffix.encode() for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    found, others, links, folders = {}, 0, 0, [b""]
    while folders:
        folder = folders.pop()
        try:
            entries = [entry for entry in os.scandir(os.path.join(os.fsencode(root), folder)) if not entry.name.startswith(b".")]
        except (PermissionError, FileNotFoundError) as error:
            print(f"passed over: {printable(str(error))}", file=sys.stderr)
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.is_symlink():
                links += 1
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in suffixes:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found[path] = stamp_of(entry.stat())
            else:
                others += 1
    return found, others, links


def index(directory, file=".cache/search.sqlite", run="runs/default", device="auto", batch_size=32, quiet=False):
    """Bring the index `file` up to date with the images below `directory`, and print what was done. Towers are loaded only
    when there is something to encode. A file whose content is known under another name is not encoded again."""
    root = Path(directory).resolve()
    if not root.is_dir():
        raise ValueError(f"{directory}: no such folder of photographs")
    found, others, links = scan(root)
    passed = f"{others:,} other files and {links:,} symbolic links passed over"
    if not found:  # an unmounted disk looks like this: nothing is deleted
        raise ValueError(f"{directory}: no images in it ({passed}); an index of what was there stays as it is")
    trained = [Path(run), *(Path(run, name) for name in ("best.pt", "config.json", "model.safetensors"))]
    trained = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in trained if path.is_file())
    model = None
    db, meta = open_index(file, create=True)
    with closing(db):
        if meta.get("root", os.fsencode(root)) != os.fsencode(root):
            raise ValueError(f"{file}: is the index of {shown(os.fsdecode(meta['root']))}; name another file with --index, or delete it")
        if not trained or meta.get("trained") != trained:  # told by its files, which spares torch; another file may hold the same model
            model, identity = load_model(run, device)
            with db:
                if meta.get("model", identity.encode()) != identity.encode():
                    print(f"{file}: was made with another model ({meta['run'].decode()}); encoding all images anew")
                    db.execute("DELETE FROM images")
                put(db, root=os.fsencode(root), model=identity, trained=trained, run=str(run), complete="0")
        known = dict(db.execute("SELECT CAST(path AS BLOB), stamp FROM images"))
        todo = sorted(path for path, stamp in found.items() if known.get(path) != stamp)
        gone = [(path,) for path in known.keys() - found.keys()]
        if todo or gone:
            with db:
                put(db, complete="0")
                db.execute("DELETE FROM meta WHERE key = 'ann'")  # the approximate index is of other rows
        encoded, damaged = add(db, root, todo, found, model or load_model(run, device)[0], batch_size, quiet) if todo else (0, 0)
        with db:
            db.executemany("DELETE FROM images WHERE path = ?", gone)  # last, so that a renamed file finds its own content
            if todo or gone or model or meta["complete"] != b"1":
                put(db, complete="1")
        (usable,) = db.execute("SELECT count(*) FROM images WHERE row IS NOT NULL").fetchone()
    print(f"{directory}: {usable:,} images in {file}, {len(found) - usable:,} more can't be decoded; {len(todo):,} new or changed "
          f"({encoded:,} encoded, {damaged:,} damaged), {len(gone):,} gone; {passed}")  # fmt: skip


def add(db, root, todo, stamps, model, batch_size, quiet):
    """Write the images `todo` into the index batch by batch; (number encoded, number damaged)."""
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from models.dataset import open_image

    # Near-duplicates are told by what the image tower saw, since the predictor leaves out what captions don't mention. 256
    # random directions keep its cosines to 0.01 (Johnson-Lindenstrauss) in 512 bytes.
    directions = torch.randn(model.vision.dim, 256, generator=torch.Generator().manual_seed(0))
    seen = {digest for (digest,) in db.execute("SELECT digest FROM images WHERE row IS NOT NULL")}
    pixels_of = model.vision.preprocess  # made here, once, and not by several threads at the same time

    def read(path):
        """(SHA-256, pixels or None when the content is known, reason or None) of one file."""
        file = root / os.fsdecode(path)
        try:
            digest = hashlib.sha256(file.read_bytes()).digest()
            pixels = None if digest in seen else pixels_of(open_image(file))
            if stamp_of(file.stat()) != stamps[path]:
                raise ValueError(f"{file}: changed while it was read; index again")
            return digest, pixels, None
        except (OSError, ValueError) as error:
            return None, None, str(error)

    batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
    encoded = damaged = 0
    with ThreadPoolExecutor() as pool, tqdm(total=len(todo), desc="images", unit="", disable=quiet) as bar:
        ahead = [pool.submit(read, path) for path in batches[0]]
        for n, batch in enumerate(batches):  # the next batch is decoded while this one is encoded
            contents, ahead = [f.result() for f in ahead], [pool.submit(read, path) for path in (batches[n + 1 :] or [[]])[0]]
            new = {digest: pixels for digest, pixels, _ in contents if pixels is not None and digest not in seen}
            rows = {None: (None, None)}  # what can't be decoded is remembered without a row
            if new:
                features = model.vision.encode(torch.stack(list(new.values())))  # (B, Dv)
                predicted, sketches = model.predict(features).half().cpu(), F.normalize(features.cpu() @ directions, dim=-1).half()
                if not torch.isfinite(predicted).all():
                    raise ValueError("the image tower gave non-finite features; its weights may be damaged")
                rows |= {d: (p.tobytes(), s.tobytes()) for d, p, s in zip(new, predicted.numpy(), sketches.numpy())}
            with db:
                for path, (digest, _, reason) in zip(batch, contents):
                    if digest not in rows:
                        rows[digest] = db.execute(KNOWN, (digest,)).fetchone()
                    if reason:
                        tqdm.write(f"left out: {printable(reason)}", file=sys.stderr)
                    db.execute(UPSERT, (path, stamps[path], digest, *rows[digest]))
            seen |= new.keys()
            encoded, damaged = encoded + len(new), damaged + sum(reason is not None for *_, reason in contents)
            bar.update(len(batch))
    return encoded, damaged


def combine(wanted, unwanted):
    """wanted (A, D), unwanted (B, D) unit rows -> the query (1, D), a unit row: their scores added, less AWAY times those of
    the unwanted. Being one vector it needs one scan, and the approximate index answers it too.

    Flickr8k dev, 28 pairs such as "a dog" --not "snow": of the top 12, 13.7 % have a caption that mentions the unwanted without
    --not and 1.8 % with it, while the wanted is in 89.3 and 87.8 %. Projecting the unwanted out left 5.4 %, and the text "a dog
    without snow" gave 80 %. For --and, adding found both things as often as the least score did (62.8 and 62.5 %)."""
    import torch.nn.functional as F

    return F.normalize(wanted.mean(0, keepdim=True) - AWAY * unwanted.sum(0), dim=-1)


def approximate(db, meta, file, query, k, model, quiet):
    """(ids, scores (k,)) by usearch's graph in FILE.usearch, mapped and not read. Built when the rows have changed since; its
    recall against `top_k` is measured then, on queries in text, and printed with every answer."""
    import torch
    from tqdm import tqdm
    from usearch.index import Index

    from models.nearest import top_k

    expansion = max(512, 4 * k)  # 150,000 rows, 500 captions: recall@12 0.9645 at 64, 0.9973 at 256, 0.9998 at 512; 5 ms a query
    graph_file = Path(f"{file}.usearch")
    kept = meta.get("ann", b"").decode().split("\t")
    # The stamp holds inode and change time: a graph that somebody else made, or that was damaged, is never mapped.
    if not graph_file.is_file() or kept[0] != stamp_of(graph_file.stat()):
        ids, rows = blobs(db, "row")
        graph, keys = Index(ndim=rows.shape[1], metric="ip", dtype="f16"), torch.tensor(ids)
        with tqdm(total=len(ids), desc="approximate index, made once", unit="", disable=quiet) as bar:
            for some, part in zip(keys.split(8192), rows.split(8192)):
                graph.add(some.numpy(), part.numpy())
                bar.update(len(some))
        temporary = graph_file.with_name(f".{graph_file.name}.{os.getpid()}.tmp")
        try:
            graph.save(temporary)
            os.replace(temporary, graph_file)
        finally:
            temporary.unlink(missing_ok=True)
        probes = model.encode_text(list(PROBES)).cpu()
        graph.expansion_search = expansion
        exact, near = keys[top_k(probes, rows, k)[1]].tolist(), graph.search(probes.numpy(), k).keys.tolist()
        recall = sum(len(set(a) & set(b)) for a, b in zip(exact, near)) / (len(exact) * len(exact[0]))
        kept = [stamp_of(graph_file.stat()), f"recall@{len(exact[0])} {recall:.3f}"]
        with db:
            put(db, ann="\t".join(kept))
    print(f"approximate: {kept[1]} against exact search, on {len(PROBES)} texts", file=sys.stderr)
    graph = Index.restore(graph_file, view=True, expansion_search=expansion)
    keys = ", ".join(map(str, graph.search(query[0].numpy(), k).keys.tolist()))
    ids, rows = blobs(db, "row", f"id IN ({keys})")
    scores, at = top_k(query, rows, k)
    return [ids[i] for i in at[0]], scores[0]


def find(texts=(), image=None, without=(), top=12, file=".cache/search.sqlite", run="runs/default", device="auto", ann=None, quiet=False):
    """[(score, path)] of the `top` best, best first: cosine with `combine` of the texts, the image and the texts `without`."""
    import torch

    from models.dataset import image_path
    from models.nearest import top_k

    db, meta = open_index(file)
    with closing(db):
        model, identity = load_model(run, device)
        if meta["model"] != identity.encode():
            raise ValueError(f"{file}: was made with another model than {run}; name that one (--run {meta['run'].decode()}), or index "
                             f"again: python -m apps.search index {shown(os.fsdecode(meta['root']))} --run {run}")  # fmt: skip
        wanted = ([model.encode_text(list(texts))] if texts else []) + ([model.encode_image([image])] if image else [])
        query = combine(torch.cat(wanted), model.encode_text(list(without))).cpu()  # (1, Dt)
        (count,) = db.execute("SELECT count(*) FROM images WHERE typeof(row) = 'blob'").fetchone()
        if not count:
            raise ValueError(f"{file}: holds no image that could be decoded")
        if count > EXACT_ROWS if ann is None else ann:
            ids, scores = approximate(db, meta, file, query, min(top, count), model, quiet)
        else:
            ids, rows = blobs(db, "row")
            if rows.shape[1] != query.shape[1]:
                raise ValueError(f"{file}: is damaged, its rows are {rows.shape[1]}, not {query.shape[1]} wide; delete it and index again")
            scores, at = top_k(query, rows, top)
            ids, scores = [ids[i] for i in at[0]], scores[0]
        if not (scores.abs() < 1.01).all():  # also NaN: top_k ranks it first
            raise ValueError(f"{file}: is damaged, a cosine can't be {scores[0].item()}; delete it and index again")
        names = [db.execute("SELECT CAST(path AS BLOB) FROM images WHERE id = ?", (i,)).fetchone()[0] for i in ids]
    root = os.fsdecode(meta["root"])
    return [(score, image_path(root, os.fsdecode(name))) for score, name in zip(scores.tolist(), names)]


def duplicates(file=".cache/search.sqlite", threshold=NEAR, quiet=False):
    """(groups of identical files, groups of near-duplicates [(lowest cosine that links them, paths)]). A chain of pairs is one
    group; of identical files one stands for all. Time grows with the square of N, memory stays bounded beside the sketches.

    NEAR, on 300 photographs of Flickr8k dev (224 pixels; tower efficientnet-lite2-stages): finds 99 % of copies saved again as JPEG of
    quality 50, 99.7 % of those cropped by a tenth, 99 % of those brightened by a fifth, 98 % of mirrored ones, all with a line of
    text, 33 % of those halved to 112 pixels, 5 % of those turned grey; and links 9 of the 18 million pairs of the 6,000 training
    photographs, 8 of which show the same scene twice. CLIP was not measured; its cosines lie higher."""
    from tqdm import tqdm

    from models.dataset import image_path

    db, meta = open_index(file)
    with closing(db):
        root, paths = os.fsdecode(meta["root"]), {}
        same = {}  # SHA-256 -> ids
        for number, digest in db.execute("SELECT id, CAST(digest AS BLOB) FROM images WHERE row IS NOT NULL ORDER BY id"):
            same.setdefault(digest, []).append(number)
        ids, sketches = blobs(db, "sketch", "id IN (SELECT min(id) FROM images WHERE row IS NOT NULL GROUP BY digest)")
        link, lowest = list(range(len(ids))), {}  # union-find over positions

        def first(i):
            while link[i] != i:
                link[i] = i = link[link[i]]
            return i

        for start in tqdm(range(0, len(ids), 512), desc="near-duplicates", unit="block", disable=quiet or len(ids) < 20_000):
            block = sketches[start : start + 512].float()
            for other in range(start, len(ids), 4096):
                cosines = block @ sketches[other : other + 4096].float().T  # (512, 4096)
                close = cosines >= threshold
                for (i, j), cosine in zip(close.nonzero().tolist(), cosines[close].tolist()):
                    if start + i < other + j:
                        a, b = sorted((first(start + i), first(other + j)))
                        link[b], lowest[a] = a, min(lowest.get(a, 1), lowest.get(b, 1), cosine)
        groups = {}
        for i in range(len(ids)):
            groups.setdefault(first(i), []).append(ids[i])
        identical = [group for group in same.values() if len(group) > 1]
        near = [(lowest[i], group) for i, group in groups.items() if len(group) > 1]
        for number in {number for group in [*identical, *(group for _, group in near)] for number in group}:
            (name,) = db.execute("SELECT CAST(path AS BLOB) FROM images WHERE id = ?", (number,)).fetchone()
            paths[number] = image_path(root, os.fsdecode(name))
    return [[paths[i] for i in group] for group in identical], [(cosine, [paths[i] for i in group]) for cosine, group in near]


def thumbnails(paths, side):
    """RGB images that fit a square of `side` pixels; grey where a file can't be opened any more."""
    from PIL import Image

    from models.dataset import open_image

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


def grid(results, title, columns=4, side=256):
    """A contact sheet as an RGB image: the title, then a tile for each (score, path)."""
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
    for n, ((score, path), image) in enumerate(zip(results, thumbnails([path for _, path in results], side))):
        x, y = gap + n % columns * (side + gap), 3 * gap + n // columns * (side + text + gap)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        pen.text((x, y + side + 5), f"{score:.3f}", fill="black", font=font)
        pen.text((x + 48, y + side + 5), fit(os.path.basename(shown(path)), font, side - 48), fill="dimgrey", font=font)
    return sheet


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><title>{title}</title>
<style>:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }} body {{ max-width: 1200px; margin: 2rem auto }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1.2rem }} figure {{ margin: 0 }}
img {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; border-radius: 6px }}
figcaption {{ overflow-wrap: anywhere; font-size: 13px }}</style><h1>{title}</h1><main>{figures}</main></html>
"""


def page(results, title, folder):
    """A contact sheet as one HTML text: thumbnails inside it, links from `folder` to the files, nothing fetched, no script."""
    figures = []
    for (score, path), image in zip(results, thumbnails([path for _, path in results], 360)):
        image.save(jpeg := io.BytesIO(), "JPEG", quality=82)
        link, name = quote(os.fsencode(os.path.relpath(path, folder))), html.escape(shown(path))
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        image = f'<a href="{link}"><img alt="{name}" src="{source}"></a>'
        figures.append(f"<figure>{image}<figcaption><b>{score:.4f}</b> {name}</figcaption></figure>")
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))


def parse(argv):
    p = argparse.ArgumentParser("python -m apps.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    every, model = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    every.add_argument("--index", default=".cache/search.sqlite", help="the index file (default %(default)s)", metavar="FILE")
    every.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    model.add_argument("--run", default="runs/default", help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("index", parents=[every, model], help="make or renew the index of a folder")
    c.add_argument("dir", help="folder of photographs; those in its folders too, hidden ones and symbolic links not", metavar="DIR")
    c.add_argument("--batch-size", type=int, default=32, help="images a batch and a transaction (default %(default)s)")
    c = commands.add_parser("find", parents=[every, model], help="search by text, by image, or by both")
    c.add_argument("text", nargs="?", help="what the photographs show; one sentence does better than several --and", metavar="TEXT")
    c.add_argument("--image", help="photographs like this file", metavar="FILE")
    c.add_argument("--and", nargs="+", action="extend", default=[], dest="also", help="and this, each a text", metavar="TEXT")
    c.add_argument("--not", nargs="+", action="extend", default=[], dest="without", help="but not this, each a text", metavar="TEXT")
    c.add_argument("--top", type=int, default=12, help="how many photographs (default %(default)s)")
    c.add_argument("--html", help="write a contact sheet as one HTML file that works offline", metavar="FILE.html")
    c.add_argument("--grid", help="write a contact sheet as a picture", metavar="FILE.png")
    c.add_argument("--ann", action=flag, help=f"approximate search with usearch (default: above {EXACT_ROWS:,} images)")
    c = commands.add_parser("duplicates", parents=[every], help="list identical files and near-duplicates")
    c.add_argument("--threshold", type=float, default=NEAR, help="least cosine of image features (default %(default)s)")
    args = p.parse_args(argv)
    if args.command == "find":
        if not (args.text or args.image or args.also):
            p.error("find what? give a text, --image FILE, or --and TEXT")
        for name, suffix in (("html", ".html"), ("grid", ".png")):
            if getattr(args, name) and not getattr(args, name).lower().endswith(suffix):
                p.error(f"--{name} {getattr(args, name)}: give a name that ends in {suffix}")
    if getattr(args, "top", 1) < 1 or getattr(args, "batch_size", 1) < 1 or not 0 < getattr(args, "threshold", 1) <= 1:
        p.error("--top and --batch-size start at 1; --threshold is over 0 and up to 1")
    return args


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        if args.command == "index":
            index(args.dir, args.index, args.run, args.device, args.batch_size, args.quiet)
            return 0
        db, meta = open_index(args.index)
        db.close()
        if meta["complete"] != b"1":
            print(f"note: {args.index} was not finished, so photographs are missing; run index again", file=sys.stderr)
        if args.command == "find":
            if args.grid and Path(args.grid).exists() and Path(args.grid).resolve().is_relative_to(os.fsdecode(meta["root"])):
                raise ValueError(f"--grid {args.grid}: would write over a picture in the indexed folder; name another file")
            texts = ([args.text] if args.text else []) + args.also
            results = find(texts, args.image, args.without, args.top, args.index, args.run, args.device, args.ann, args.quiet)
            for score, path in results:
                print(f"{score:7.4f}  {shown(path)}")
            like = [f"like {os.path.basename(args.image)}"] if args.image else []
            title = printable(", ".join([*texts, *like, *(f"not {text}" for text in args.without)]))
            if args.html:
                Path(args.html).write_text(page(results, title, os.path.dirname(os.path.abspath(args.html))), encoding="utf-8")
            if args.grid:
                grid(results, title).save(args.grid)
        else:
            identical, near = duplicates(args.index, args.threshold, args.quiet)
            for what, paths in [("identical", group) for group in identical] + [(f"near, {cosine:.3f}", group) for cosine, group in near]:
                print(what, *(f"  {shown(path)}" for path in paths), sep="\n")
            print(f"{len(identical):,} groups of identical files, {len(near):,} of near-duplicates (cosine from {args.threshold:g} on)")
    except sqlite3.Error as error:
        print(f"search: {args.index}: {error}; if no other program holds it, delete it and index again", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("search: interrupted; what was indexed is kept, the next run goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
