"""Which images of an index are the same, and which nearly.

identical, near = duplicates(store, threshold=0.92)     # [[path, ...], ...], [(cosine, [path, ...]), ...]
folded(store, [(0.8, path), (0.7, copy)])               # [(0.8, path, [copy])]
"""

import logging
from itertools import chain

log = logging.getLogger(__name__)
# Flickr8k dev, 300 photographs of 224 pixels, tower efficientnet-lite2-stages. Found: 99 % of copies saved as
# JPEG of quality 50, 99.7 % cropped by a tenth, 99 % brightened by a fifth, 98 % mirrored, all with a line of
# text, 33 % halved to 112 pixels, 5 % in grey. Of the 18 million pairs of the 6,000 training photographs it
# links 9, of which 8 show one scene. CLIP was not measured; its cosines are higher.
NEAR = 0.92
AT_ONCE = 2048  # linked images that are compared with each other: 16 MB of distances
PAIRS = 1 << 22  # pairs that are in memory before they are merged into groups


def duplicates(store, threshold=NEAR, quiet=False):
    """(groups of identical files, groups of near-duplicates with the lowest cosine in each).

    Any two images of a near group have a cosine of `threshold` or more (complete linkage), so no chain of
    similar images becomes a group. Of identical files, one is compared. Files that are gone are not in a
    group, and logged. Time grows with the square of the
    number of images; memory, beside the sketches, stays bounded."""
    first = "id IN (SELECT min(id) FROM images WHERE row IS NOT NULL GROUP BY digest)"
    ids, sketches = store.sketches(first)  # (N, 256)
    near = near_groups(sketches, threshold, quiet)
    identical = [store.paths(group) for group in store.identical()]
    near = [(cosine, store.paths([ids[i] for i in group])) for cosine, group in near]
    paths = set(chain(*identical, *(group for _, group in near)))
    gone = {path for path in paths if not path.exists()}
    store.report_gone(sorted(gone), len(paths) - len(gone))
    near = [(cosine, kept) for cosine, group in near if len(kept := _without(gone, group)) > 1]
    return [kept for group in identical if len(kept := _without(gone, group)) > 1], near


def folded(store, results, threshold=NEAR):
    """[(score, path, alike)] of the results [(score, path)] of a search: of near-duplicates among them the
    first one alone, with the list `alike` of the others' paths."""
    numbers = [store.number(path) for _, path in results]
    ids, sketches = store.sketches(f"id IN ({', '.join(map(str, numbers))})")  # (n, 256)
    group_of = {
        ids[i]: number for number, (_, group) in enumerate(near_groups(sketches, threshold)) for i in group
    }
    kept, first = [], {}
    for number, (score, path) in zip(numbers, results):
        group = group_of.get(number, ("alone", number))
        if group in first:
            first[group].append(path)
        else:
            first[group] = []
            kept.append((score, path, first[group]))
    return kept


def _without(gone, paths):
    return [path for path in paths if path not in gone]


def near_groups(rows, threshold, quiet=True):
    """[(lowest cosine, indices)] of the groups of two or more near rows (N, D), in order of first member."""
    import numpy as np

    label = _linked(rows, threshold, quiet)  # (N,)
    order = np.argsort(label, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    groups = []
    for linked in sets:
        if len(linked) > AT_ONCE:
            log.warning("%d images form a chain and are compared %d at a time", len(linked), AT_ONCE)
        for start in range(0, len(linked), AT_ONCE):
            groups += _complete(rows, linked[start : start + AT_ONCE], threshold)
    return sorted(groups, key=lambda group: group[1][0])


def _linked(rows, threshold, quiet):
    """(N,) labels of the connected sets: rows that a chain of near pairs leads to."""
    import numpy as np
    from tqdm import tqdm

    label = np.arange(len(rows))
    pairs = []
    blocks = range(0, len(rows), 512)
    for start in tqdm(blocks, desc="near-duplicates", unit="block", disable=quiet or len(rows) < 20_000):
        block = rows[start : start + 512].float()
        for other in range(start, len(rows), 4096):
            cosines = block @ rows[other : other + 4096].float().T  # (512, 4096)
            close = (cosines >= threshold).triu_(start - other + 1).nonzero()  # each pair once
            pairs.append(close.numpy() + (start, other))
            if sum(map(len, pairs)) > PAIRS:
                label, pairs = _merged(label, pairs), []
    return _merged(label, pairs)


def _merged(label, pairs):
    """`label` (N,), with the sets joined that `pairs`, a list of (n, 2) arrays of row numbers, link."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return label
    a, b = label[np.concatenate(pairs)].T
    shape = (len(label), len(label))
    _, joined = connected_components(coo_array((np.ones(len(a), dtype=bool), (a, b)), shape), directed=False)
    return joined[label]


def _complete(rows, members, threshold):
    """[(lowest cosine, indices)]: the rows numbered `members` in groups by complete linkage."""
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(members) < 2:
        return []
    some = rows[members].float()
    cosines = (some @ some.T).double().numpy()  # (n, n)
    upper = np.triu_indices(len(members), 1)
    label = fcluster(linkage(1 - cosines[upper], "complete"), 1 - threshold, "distance")
    groups = []
    for number in range(1, label.max() + 1):
        inside = np.flatnonzero(label == number)
        if len(inside) > 1:
            groups.append((cosines[np.ix_(inside, inside)].min(), members[inside].tolist()))
    return groups
