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
import hashlib
import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from apps.search.sheets import printable, save, shown
from apps.search.store import Index, scan, sha256, stamp_of, times_of

AWAY = 0.5  # how far --not pushes: of 0, 1/4, 1/2, 3/4, 1 and 3/2 the best on Flickr8k dev (see `combine`)
NEAR = 0.92  # cosine of sketches; measured on Flickr8k (see `duplicates`)
EXACT_ROWS = 1_000_000  # an exact search above this reads gigabytes
PROBES = (
    "a dog",
    "two people talking",
    "a red car",
    "children at play",
    "snow on a mountain",
    "a busy street at night",
    "food on a plate",
    "a man on a bicycle",
    "a bird in flight",
    "flowers",
    "a football match",
    "an empty room",
)


def load_model(run, device):
    """(VLJEPA, the digest of all that an embedding depends on: predictor, towers, preprocessing)."""
    from models.vljepa import VLJEPA

    model = VLJEPA.load(run, device)
    weights = (
        name.encode() + value.cpu().numpy().tobytes() for name, value in model.predictor.state_dict().items()
    )
    towers = repr([model.predictor.config, model.vision.key, model.text.key]).encode()
    return model, hashlib.sha256(b"".join([towers, *weights])).hexdigest()


def index(
    directory, file=".cache/search.sqlite", run="runs/default", device="auto", batch_size=32, quiet=False
):
    """Bring the index `file` up to date with the images below `directory`, and print what was done. Towers are loaded only
    when there is something to encode. A file whose content is known under another name is not encoded again."""
    from models.dataset import FORMATS

    root = Path(directory).resolve()
    if not root.is_dir():
        raise ValueError(f"{directory}: no such folder of photographs")
    found, others, links = scan(
        root, FORMATS, lambda error: print(f"passed over: {printable(str(error))}", file=sys.stderr)
    )
    passed = f"{others:,} other files and {links:,} symbolic links passed over"
    if not found:  # an unmounted disk looks like this: nothing is deleted
        raise ValueError(
            f"{directory}: no images in it ({passed}); an index of what was there stays as it is"
        )
    trained = (
        Path(run, name) for name in ("", "best.pt", "config.json", "model.safetensors")
    )  # `run` itself may be the file
    trained = b"".join(sha256(path) for path in trained if path.is_file())
    model = None
    with closing(Index(file, create=True)) as store:
        if store.root not in ("", str(root)):
            raise ValueError(
                f"{file}: is the index of {shown(store.root)}; name another file with --index, or delete it"
            )
        if (
            not trained or store.meta.get("trained") != trained
        ):  # told by its files, which spares torch; another may hold the same model
            model, identity = load_model(run, device)
            with store.db:
                if store.meta.get("model", identity.encode()) != identity.encode():
                    print(
                        f"{file}: was made with another model ({store.meta['run'].decode()}); encoding all images anew"
                    )
                    store.clear()
                store.put(root=os.fsencode(root), model=identity, trained=trained, run=str(run), complete="0")
        todo, gone = store.compare(root, found)
        if todo or gone:
            with store.db:
                store.put(complete="0", ann="")  # the approximate index is of other rows
        encoded, damaged = (
            add(store, root, todo, found, model or load_model(run, device)[0], batch_size, quiet)
            if todo
            else (0, 0)
        )
        with store.db:
            store.remove(gone)  # last, so that a renamed file finds its own content
            if todo or gone or model or store.meta["complete"] != b"1":
                store.put(complete="1")
        usable = store.count()
    print(
        f"{directory}: {usable:,} images in {file}, {len(found) - usable:,} more can't be decoded; {len(todo):,} new or changed "
        f"({encoded:,} encoded, {damaged:,} damaged), {len(gone):,} gone; {passed}"
    )


def add(store, root, todo, stamps, model, batch_size, quiet):
    """Write the images `todo` into the index batch by batch, what can't be decoded without a row; (number encoded, number damaged)."""
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from models.dataset import open_image

    # Near-duplicates are told by what the image tower saw, since the predictor leaves out what captions don't mention. 256
    # random directions keep its cosines to 0.01 (Johnson-Lindenstrauss) in 512 bytes.
    directions = torch.randn(model.vision.dim, 256, generator=torch.Generator().manual_seed(0))
    seen = store.digests()
    pixels_of = model.vision.preprocess  # made here, once, and not by several threads at the same time

    def read(path):
        """(SHA-256 or None, pixels or None when the content is known, reason or None) of one file."""
        file = root / os.fsdecode(path)
        try:
            digest = sha256(file)
            pixels = None if digest in seen else pixels_of(open_image(file))
            if stamp_of(file.stat()) != stamps[path] and sha256(file) != digest:  # a young stamp never equals
                return None, None, f"{file}: changed while it was read; index again"
            return digest, pixels, None
        except OSError as error:
            return None, None, str(error)
        except ValueError as error:  # a damaged image, told by its content the next time
            return digest, None, str(error)

    batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
    encoded = damaged = 0
    with ThreadPoolExecutor() as pool, tqdm(total=len(todo), desc="images", unit="", disable=quiet) as bar:
        ahead = [pool.submit(read, path) for path in batches[0]]
        for n, batch in enumerate(batches):  # the next batch is decoded while this one is encoded
            contents, ahead = (
                [f.result() for f in ahead],
                [pool.submit(read, path) for path in (batches[n + 1 :] or [[]])[0]],
            )
            new = {
                digest: pixels for digest, pixels, _ in contents if pixels is not None and digest not in seen
            }
            rows = {}
            if new:
                features = model.vision.encode(torch.stack(list(new.values())))  # (B, Dv)
                predicted, sketches = (
                    model.predict(features).half().cpu(),
                    F.normalize(features.cpu() @ directions, dim=-1).half(),
                )
                if not torch.isfinite(predicted).all():
                    raise ValueError("the image tower gave non-finite features; its weights may be damaged")
                rows = {
                    d: (p.tobytes(), s.tobytes()) for d, p, s in zip(new, predicted.numpy(), sketches.numpy())
                }
            with store.db:
                for path, (digest, _, reason) in zip(batch, contents):
                    if reason:
                        tqdm.write(f"left out: {printable(reason)}", file=sys.stderr)
                    store.write(path, stamps[path], digest, *(rows.get(digest) or store.known(digest)))
            seen |= new.keys()
            encoded, damaged = (
                encoded + len(new),
                damaged + sum(reason is not None for *_, reason in contents),
            )
            bar.update(len(batch))
    return encoded, damaged


def combine(wanted, unwanted):
    """wanted (A, D), unwanted (B, D) unit rows -> the query (1, D), a unit row: their scores added, less AWAY times those of
    the unwanted. Being one vector it needs one scan, and the approximate index answers it too.

    Flickr8k dev, top 12 (EXPERIMENTS.md): the unwanted is in 1.8 % so, in 5.4 % if it is projected out, in 80 % of "a dog without
    snow". For --and, adding found both things as often as the least score did (62.8 and 62.5 %)."""
    import torch.nn.functional as F

    return F.normalize(wanted.mean(0, keepdim=True) - AWAY * unwanted.sum(0), dim=-1)


def approximate(store, file, query, k, model, quiet):
    """The ids of k rows near the query (1, D) by usearch's graph in FILE.usearch, mapped and not read. Built when the rows have
    changed since; its recall against `top_k` is measured then, on queries in text, and printed with every answer."""
    import torch
    from tqdm import tqdm
    from usearch.index import Index as Graph

    from apps.search.nearest import top_k

    expansion = max(
        512, 4 * k
    )  # 150,000 rows, 500 captions: recall@12 0.9645 at 64, 0.9973 at 256, 0.9998 at 512; 5 ms a query
    graph_file = Path(f"{file}.usearch")
    kept = store.meta.get("ann", b"").decode().split("\t")
    # Among the times are inode and change time: a graph that somebody else made, or that was damaged, is never mapped.
    if not graph_file.is_file() or kept[0] != times_of(graph_file.stat()):
        ids, rows = store.blobs("row")
        graph, keys = Graph(ndim=rows.shape[1], metric="ip", dtype="f16"), torch.tensor(ids)
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
        kept = [times_of(graph_file.stat()), f"recall@{len(exact[0])} {recall:.3f}"]
        with store.db:
            store.put(ann="\t".join(kept))
    print(f"approximate: {kept[1]} against exact search, on {len(PROBES)} texts", file=sys.stderr)
    graph = Graph.restore(graph_file, view=True, expansion_search=expansion)
    return graph.search(query[0].numpy(), k).keys.tolist()


def find(
    texts=(),
    image=None,
    without=(),
    top=12,
    file=".cache/search.sqlite",
    run="runs/default",
    device="auto",
    ann=None,
    quiet=False,
):
    """[(score, path)] of the `top` best, best first: cosine with `combine` of the texts, the image and the texts `without`."""
    import torch

    from apps.search.nearest import top_k
    from models.dataset import image_path

    with closing(Index(file)) as store:
        model, identity = load_model(run, device)
        if store.meta["model"] != identity.encode():
            raise ValueError(
                f"{file}: was made with another model than {run}; name that one (--run {store.meta['run'].decode()}), "
                f"or index again: python -m apps.search index {shown(store.root)} --run {run}"
            )
        wanted = ([model.encode_text(list(texts))] if texts else []) + (
            [model.encode_image([image])] if image else []
        )
        query = combine(torch.cat(wanted), model.encode_text(list(without))).cpu()  # (1, Dt)
        count, where = store.count(), "1"
        if not count:
            raise ValueError(f"{file}: holds no image that could be decoded")
        if count > EXACT_ROWS if ann is None else ann:
            where = f"id IN ({', '.join(map(str, approximate(store, file, query, min(top, count), model, quiet)))})"
        ids, rows = store.blobs("row", where)  # (N, Dt)
        if rows.shape[1] != query.shape[1]:
            raise ValueError(
                f"{file}: is damaged, its rows are {rows.shape[1]}, not {query.shape[1]} wide; delete it and index again"
            )
        scores, found = top_k(query, rows, top)  # (1, top)
        if not (scores.abs() < 1.01).all():  # also NaN: top_k ranks it first
            raise ValueError(
                f"{file}: is damaged, a cosine can't be {scores[0, 0].item()}; delete it and index again"
            )
        return list(zip(scores[0].tolist(), store.paths([ids[i] for i in found[0]], image_path)))


def duplicates(file=".cache/search.sqlite", threshold=NEAR, quiet=False):
    """(groups of identical files, groups of near-duplicates [(lowest cosine that links them, paths)]). A chain of pairs is one
    group; of identical files one stands for all. Time grows with the square of N, memory stays bounded beside the sketches.

    NEAR, on 300 photographs of Flickr8k dev (224 pixels; tower efficientnet-lite2-stages): finds 99 % of copies saved as JPEG of quality
    50, 99.7 % cropped by a tenth, 99 % brightened by a fifth, 98 % mirrored, all with a line of text, 33 % halved to 112 pixels, 5 % in
    grey; links 9 of the 18 million pairs of the 6,000 training photographs, 8 of them one scene. CLIP, not measured, has higher cosines."""
    from tqdm import tqdm

    from models.dataset import image_path

    with closing(Index(file)) as store:
        ids, sketches = store.blobs(
            "sketch", "id IN (SELECT min(id) FROM images WHERE row IS NOT NULL GROUP BY digest)"
        )
        link, lowest = list(range(len(ids))), {}  # union-find over positions

        def first(i):
            while link[i] != i:
                link[i] = i = link[link[i]]
            return i

        for start in tqdm(
            range(0, len(ids), 512), desc="near-duplicates", unit="block", disable=quiet or len(ids) < 20_000
        ):
            block = sketches[start : start + 512].float()
            for other in range(start, len(ids), 4096):
                cosines = (block @ sketches[other : other + 4096].float().T).triu_(
                    start - other + 1
                )  # (512, 4096), each pair once
                close = cosines >= threshold
                for (i, j), cosine in zip(close.nonzero().tolist(), cosines[close].tolist()):
                    a, b = sorted((first(start + i), first(other + j)))
                    link[b], lowest[a] = a, min(lowest.get(a, 1), lowest.get(b, 1), cosine)
        groups = {}
        for i in range(len(ids)):
            groups.setdefault(first(i), []).append(ids[i])
        identical = [store.paths(group, image_path) for group in store.identical()]
        return identical, [
            (lowest[i], store.paths(group, image_path)) for i, group in groups.items() if len(group) > 1
        ]


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m apps.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = argparse.BooleanOptionalAction
    every, model = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    every.add_argument(
        "--index", default=".cache/search.sqlite", help="the index file (default %(default)s)", metavar="FILE"
    )
    every.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    model.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)",
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("index", parents=[every, model], help="make or renew the index of a folder")
    c.add_argument(
        "dir",
        help="folder of photographs; those in its folders too, hidden ones and symbolic links not",
        metavar="DIR",
    )
    c.add_argument(
        "--batch-size", type=int, default=32, help="images a batch and a transaction (default %(default)s)"
    )
    c = commands.add_parser("find", parents=[every, model], help="search by text, by image, or by both")
    c.add_argument(
        "text",
        nargs="?",
        help="what the photographs show; one sentence does better than several --and",
        metavar="TEXT",
    )
    c.add_argument("--image", help="photographs like this file", metavar="FILE")
    c.add_argument(
        "--and",
        nargs="+",
        action="extend",
        default=[],
        dest="also",
        help="and this, each a text",
        metavar="TEXT",
    )
    c.add_argument(
        "--not",
        nargs="+",
        action="extend",
        default=[],
        dest="without",
        help="but not this, each a text",
        metavar="TEXT",
    )
    c.add_argument("--top", type=int, default=12, help="how many photographs (default %(default)s)")
    c.add_argument(
        "--html", help="write a contact sheet as one HTML file that works offline", metavar="FILE.html"
    )
    c.add_argument("--grid", help="write a contact sheet as a picture", metavar="FILE.png")
    c.add_argument(
        "--ann", action=flag, help=f"approximate search with usearch (default: above {EXACT_ROWS:,} images)"
    )
    c = commands.add_parser("duplicates", parents=[every], help="list identical files and near-duplicates")
    c.add_argument(
        "--threshold", type=float, default=NEAR, help="least cosine of image features (default %(default)s)"
    )
    args = p.parse_args(argv)
    if args.command == "find" and not (args.text or args.image or args.also):
        p.error("find what? give a text, --image FILE, or --and TEXT")
    for name, suffix in (("html", ".html"), ("grid", ".png")):
        if getattr(args, name, None) and not getattr(args, name).lower().endswith(suffix):
            p.error(f"--{name} {getattr(args, name)}: give a name that ends in {suffix}")
    if (
        getattr(args, "top", 1) < 1
        or getattr(args, "batch_size", 1) < 1
        or not 0 < getattr(args, "threshold", 1) <= 1
    ):
        p.error("--top and --batch-size start at 1; --threshold is over 0 and up to 1")
    return args


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        if args.command == "index":
            index(args.dir, args.index, args.run, args.device, args.batch_size, args.quiet)
            return 0
        store = Index(args.index)
        store.close()
        if store.meta["complete"] != b"1":
            print(
                f"note: {args.index} was not finished, so photographs are missing; run index again",
                file=sys.stderr,
            )
        if args.command == "find":
            from models.dataset import open_image

            if (
                args.grid
                and Path(args.grid).exists()
                and Path(args.grid).resolve().is_relative_to(store.root)
            ):
                raise ValueError(
                    f"--grid {args.grid}: would write over a picture in the indexed folder; name another file"
                )
            texts = ([args.text] if args.text else []) + args.also
            results = find(
                texts,
                args.image,
                args.without,
                args.top,
                args.index,
                args.run,
                args.device,
                args.ann,
                args.quiet,
            )
            for score, path in results:
                print(f"{score:7.4f}  {shown(path)}")
            like = [f"like {os.path.basename(args.image)}"] if args.image else []
            title = printable(", ".join([*texts, *like, *(f"not {text}" for text in args.without)]))
            for sheet in filter(None, (args.html, args.grid)):
                save(sheet, results, title, open_image)
        else:
            identical, near = duplicates(args.index, args.threshold, args.quiet)
            for what, paths in [("identical", group) for group in identical] + [
                (f"near, {cosine:.3f}", group) for cosine, group in near
            ]:
                print(what, *(f"  {shown(path)}" for path in paths), sep="\n")
            print(
                f"{len(identical):,} groups of identical files, {len(near):,} of near-duplicates (cosine from {args.threshold:g} on)"
            )
    except (OSError, ValueError, sqlite3.Error) as error:
        held = f"{args.index}: {error}; if no other program holds it, delete it and index again"
        print(f"search: {held if isinstance(error, sqlite3.Error) else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("search: interrupted; what was indexed is kept, the next run goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
