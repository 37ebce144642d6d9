"""Search an index by text, by image, or by both.

with opened("index.sqlite") as store:
    results, recall, times = find(store, ["a dog on a beach"], without=["snow"])    # [(score, path), ...]
"""

import logging
import shlex
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from apps.search.index import place
from apps.search.store import shown
from models.files import replacing, times_of

log = logging.getLogger(__name__)
# How far --not pushes. Of 0, 1/4, 1/2, 3/4, 1 and 3/2 the best on Flickr8k dev (docs/EXPERIMENTS.md).
AWAY = 0.5
EXACT_ROWS = 1_000_000  # an exact search of more reads gigabytes
PROBES = (
    "a dog, two people talking, a red car, children at play, snow on a mountain, a busy street at night, "
    "food on a plate, a man on a bicycle, a bird in flight, flowers, a football match, an empty room"
).split(", ")


class Found(NamedTuple):
    results: list  # [(score, path)], best first; a video scores as its best frame
    recall: str | None  # of an approximate search against the exact one, such as "recall@12 0.998"
    times: dict  # {path of a video: seconds at which its best frame is shown}


def find(
    store,
    texts=(),
    image=None,
    without=(),
    top=12,
    run="runs/default",
    device="auto",
    ann=None,
    quiet=True,
    model=None,
    after=None,
    before=None,
):
    """The `top` best images for the texts and the image, without what the texts `without` describe, as Found.

    Scores are cosines with the query of `combine`. `ann` asks for an approximate search; None asks for one
    above EXACT_ROWS. `model` is that of `run`, for a caller that has loaded it. `after` and `before` are
    those of Index.between: only images taken then are looked at, exactly, and how many there are is logged.
    Raises ValueError for an index that is empty, damaged, or not of the model in `run`."""
    import torch

    from models.vljepa import VLJEPA

    model = model or VLJEPA.load(run, device)
    _check_model(store, model, run)
    wanted = [model.encode_text([text]) for text in texts]
    if image:
        wanted.append(model.encode_image(image))
    unwanted = [model.encode_text([text]) for text in without]
    no_rows = wanted[0][:0]  # (0, Dt): torch.cat refuses an empty list
    query = combine(torch.cat(wanted), torch.cat([no_rows, *unwanted])).cpu()  # (1, Dt)
    count, most = store.frames()
    if not count:
        raise ValueError(f"{store.path}: holds no image that can be decoded")
    dated = after is not None or before is not None
    is_approximate = count > EXACT_ROWS and not dated if ann is None else ann
    where, recall = "1", None
    if is_approximate:
        near, recall = approximate(store, query, min(top * most, count), model, quiet)
        where = f"id IN ({', '.join(map(str, near))})"
    ids, rows = store.rows(where)  # (N, Dt)
    if rows.shape[1] != query.shape[1]:
        raise ValueError(
            f"{store.path}: damaged, width {rows.shape[1]} is not {query.shape[1]}; delete it and index again"
        )
    if dated:
        among, by_file = store.between(after, before)
        kept = [i for i, number in enumerate(ids) if number in among]
        ids, rows = [ids[i] for i in kept], rows[kept]
        how = f"{by_file:,} of them by the time of the file, for want of an EXIF date"
        log.warning(
            "%s: %s of %s images were taken then, %s",
            store.path,
            f"{len(among):,}",
            f"{store.count():,}",
            how,
        )
    results, times = _best(store, query, ids, rows, top) if ids else ([], {})
    return Found(results, recall, times)


def _best(store, query, ids, rows, top):
    """([(score, path)], {path of a video: seconds}) of the `top` images and videos nearest to the query (1,
    Dt), by their rows (N, Dt), whose file is still there. Says how many better ones are gone; ValueError when
    all are."""
    from apps.search.nearest import top_k

    k = top
    while True:
        scores, found = top_k(query, rows, k)  # (1, k)
        if not (scores.abs() < 1.01).all():  # NaN too: top_k ranks it first
            wrong = f"a cosine cannot be {scores[0, 0].item()}"
            raise ValueError(f"{store.path}: damaged, {wrong}; delete it and index again")
        best = {}  # {id: (score, row)} of the best frame of each
        for score, row in zip(scores[0].tolist(), found[0].tolist()):
            best.setdefault(ids[row], (score, row))
        results, gone, times = [], [], {}
        for path, (number, (score, row)) in zip(store.paths(best), best.items()):
            if len(results) < top:
                (results if path.exists() else gone).append((score, path))
                times[path] = store.time(number, row - bisect_left(ids, number))
        if len(results) == top or k >= len(rows):
            break
        k *= 8
    store.report_gone([path for _, path in gone], len(results))
    return results, {path: time for path, time in times.items() if time is not None}


def _check_model(store, model, run):
    """ValueError when the index was made with another model than that of `run`."""
    if store.meta["model"] == model.identity:
        return
    folder, name = shlex.quote(shown(store.root)), shlex.quote(str(run))
    again = f"index again: python -m apps.search index {folder} --run {name}"
    if store.meta["run"] == place(run):
        raise ValueError(f"{store.path}: {run} was retrained since the index was made; {again}")
    made = shown(store.meta["run"]) if Path(store.meta["run"]).is_absolute() else store.meta["run"]
    raise ValueError(
        f"{store.path}: made with another run, {made}, not with {run}; give --run {made}, or {again}"
    )


def combine(wanted, unwanted):
    """The query (1, D), a unit row: the mean of `wanted` (A, D) less AWAY times the sum of `unwanted` (B, D).

    One vector needs one scan, and the approximate index takes it too. On Flickr8k dev, 1.8 % of the top 12
    show the unwanted; 5.4 % when it is projected out, 80 % for a text like "a dog without snow". The mean
    finds both of two wanted things as often as the lower of their scores: 62.8 and 62.5 %
    (docs/EXPERIMENTS.md)."""
    import torch.nn.functional as F

    return F.normalize(wanted.mean(0, keepdim=True) - AWAY * unwanted.sum(0), dim=-1)


def approximate(store, query, k, model, quiet):
    """(ids of k rows near the query (1, D), recall as text), from usearch's graph in INDEX.usearch.

    The graph is mapped into memory. It is built when the rows have changed, and measured on PROBES."""
    from usearch.index import Index as Graph

    # 150,000 rows, 500 captions: recall@12 is 0.9645 at 64, 0.9973 at 256, 0.9998 at 512 (5 ms per query).
    expansion = max(512, 4 * k)
    file = Path(f"{store.path}.usearch")
    times, _, recall = store.meta.get("ann", "").partition("\t")
    # The times hold inode and change time: a damaged graph, or one that somebody else made, is never mapped.
    if not file.is_file() or times != times_of(file.stat()):
        recall = _build(store, file, k, expansion, model, quiet)
    graph = Graph.restore(file, view=True, expansion_search=expansion)
    return graph.search(query[0].numpy(), k).keys.tolist(), recall


def _build(store, file, k, expansion, model, quiet):
    """Write the graph of all rows to `file`, and its times and recall to the index; return the recall."""
    import torch
    from tqdm import tqdm
    from usearch.index import Index as Graph

    from apps.search.nearest import top_k

    ids, rows = store.rows()
    keys = torch.tensor(ids)
    options = dict(metric="ip", dtype="f16", expansion_search=expansion)
    graph = Graph(ndim=rows.shape[1], multi=True, **options)  # a video has one key and several rows
    with tqdm(total=len(ids), desc="approximate index, made once", unit="", disable=quiet) as bar:
        for some, part in zip(keys.split(8192), rows.split(8192)):
            graph.add(some.numpy(), part.numpy())
            bar.update(len(some))
    with replacing(file) as new:
        graph.save(new)
    probes = model.encode_text(list(PROBES)).cpu()
    exact = keys[top_k(probes, rows, k)[1]].tolist()  # (K, k)
    near = graph.search(probes.numpy(), k).keys.tolist()
    hits = sum(len(set(a) & set(b)) for a, b in zip(exact, near))
    recall = f"recall@{k} {hits / sum(len(set(a)) for a in exact):.3f}"
    with store.db:
        store.put(ann=f"{times_of(file.stat())}\t{recall}")
    return recall
