"""Archives of any size: tars of images and captions go through the towers once, into feature shards that stay on the disk.

    names = encode_shards("cc3m-{00000..00331}.tar", "features/cc3m", vision, text, open_image)
    shards = open_shards("features/cc3m", names)
    shards.image[torch.tensor([7, 2_000_000])]    # (2, Dv) float32 unit rows, read from the disk

A tar is laid out as WebDataset's are and img2dataset writes them: KEY.jpg (jpeg, png, webp) next to KEY.txt, its caption, or next to
KEY.json with a list of them under "captions". NAME.tar becomes FOLDER/NAME.safetensors, whole or not at all: a killed run goes on
with the tar it was in, and machines that share the folder each take every world-th tar.

Tars are strangers' files: Python's tarfile reads member after member up to a limit, and nothing is unpacked or executed. The
webdataset package would read members of any size, and hand an address that begins with pipe: to a shell.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

FORMAT = "vl-jepa features 1"
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)  # (key, ending) as WebDataset has them: a key ends at the first dot
KINDS = dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image") | dict(txt="txt", json="json")  # no other member is read
LIMITS = dict(image=64 << 20, txt=1 << 20, json=1 << 20)  # bytes of a member
DAMAGED = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)  # of headers, mutated
STALE = 3600  # seconds: writing a shard takes a few, so an older temporary file is that of a dead process


class Shards(NamedTuple):
    image: "Rows"  # (N, Dv)
    text: "Rows"  # (M, Dt)
    image_of: torch.Tensor  # (M,) int64, the image each caption describes
    names: object  # names() yields the member name of each of the N images
    digest: str  # of the tars and the towers


def encode_shards(pattern, folder, vision, text, open_image, rank=0, world=1, batch_size=32, workers=None, quiet=False):
    """Write the feature shards that are not there yet, of every `world`-th tar from number `rank` on; return the names of all the
    pattern's shards for `open_shards`. Rows are float16, so features equal those of features.py; one shard's have to fit in memory.

    `pattern` holds {00000..00331}, {a,b} or *. `vision`, `text` are encoder objects (`.name`, `.key`, `.encode`, `.preprocess`);
    `open_image(file)` gives a PIL image or raises ValueError. Samples that can't be used are left out and counted, a line a tar.
    Raises ValueError, before any tower runs, for a tar that is none or is not there (once encoded it may go), and for a shard made
    with other towers or from another tar."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: ranks are 0 to {world - 1}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tars = _expand(pattern)
    towers = dict(vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    own = [(tar, folder / f"{name}.safetensors") for name, tar in list(tars.items())[rank::world]]
    todo = [(tar, path) for tar, path in own if not (path.exists() and _made_from(path, tar, towers))]
    for tar, _ in todo:
        try:
            tarfile.open(tar, "r:").close()
        except (*DAMAGED, OSError) as error:
            raise ValueError(f"{tar}: no uncompressed tar ({error}); fetch or unpack it, or leave it out of the pattern") from None
    if len(todo) < len(own):
        print(f"{folder}: {len(own) - len(todo)} of {len(own)} tars are encoded already")
    for number, (tar, path) in enumerate(todo, 1):
        made_from, skipped = _stamp(tar) | dict(tar_sha256=_sha256(tar)), Counter()
        tensors = _encode(tar, vision, text, open_image, batch_size, workers, skipped, f"{number}/{len(todo)} {tar.name}", quiet)
        _write(path, save(tensors, dict(format=FORMAT, **towers, **made_from, skipped=json.dumps(skipped))))
        told = f"; left out {skipped.total():,}: {', '.join(f'{n:,} {why}' for why, n in skipped.most_common())}" if skipped else ""
        print(f"{tar.name}: {len(tensors['image']):,} images, {len(tensors['text']):,} captions{told}", flush=True)
    return list(tars)


def open_shards(folder, names=None):
    """The `Shards` of a folder, mapped into memory and not read: those named, in that order, or all of them. Raises ValueError naming
    a file that is damaged or of other towers than the first; FileNotFoundError for one that is not there."""
    folder, found, digest, towers = Path(folder), [], hashlib.sha256(), None
    for path in sorted(folder.glob("*.safetensors")) if names is None else [folder / f"{name}.safetensors" for name in names]:
        metadata, tensors = _read(path, towers)
        towers = towers or metadata
        digest.update(metadata["digest"].encode())
        if len(tensors["image"]):  # a tar may hold nothing of use
            found.append((path, tensors))
    if not found:
        raise ValueError(f"{folder}: no features in it; a tar holds KEY.jpg and KEY.txt, one after the other")
    image, text = (Rows([(path, tensors[kind]) for path, tensors in found]) for kind in ("image", "text"))
    image_of = torch.cat([tensors["image_of"] + start for start, (_, tensors) in zip(image.starts, found)])
    return Shards(image, text, image_of, lambda: (name for _, tensors in found for name in _names(tensors)), digest.hexdigest())


class Rows:
    """Rows of float16 in files, to read as a tensor (n, D): `rows[index]` and `rows[a:b]` are (B, D) float32 unit rows, on the
    index's device; `rows[mask]`, bool (n,), are the `Rows` under a mask. No row is kept: the pages are the files', so the system
    drops them when it wants memory. A row without the norm towers give raises ValueError naming its file."""

    def __init__(self, parts, picked=None):
        self.parts, self.picked = parts, picked  # [(path, (n, D) float16)], the rows under the mask (n,) int64 or None for all
        self.starts = torch.tensor([0, *(len(part) for _, part in parts)]).cumsum(0)  # (parts + 1,)
        self.shape = (int(self.starts[-1]) if picked is None else len(picked), parts[0][1].shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        index = torch.tensor(range(len(self))[index], dtype=torch.int64) if isinstance(index, slice) else index
        if index.dtype == torch.bool:
            where = index.cpu().nonzero()[:, 0]
            return Rows(self.parts, where if self.picked is None else self.picked[where])
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} asked for, of {len(self)}")
        places = index.cpu() if self.picked is None else self.picked[index.cpu()]
        ordered, order = places.sort()  # each file once, and front to back
        bounds = torch.searchsorted(ordered, self.starts).tolist()
        halves = torch.empty(len(places), self.shape[1], dtype=torch.float16)
        for (_, part), start, first, last in zip(self.parts, self.starts.tolist(), bounds, bounds[1:]):
            if first < last:
                halves[order[first:last]] = part[ordered[first:last] - start]
        rows = halves.float()
        norms = rows.norm(dim=1, keepdim=True)
        sound = (norms.square() - norms.square().round().clamp(1, 8)).abs() < 0.02  # 1 a joined tower; float16 moves it by 0.001
        if not sound.all():  # NaN too
            damaged = places[~sound[:, 0]][0]
            raise _damaged(self.parts[int((self.starts <= damaged).sum()) - 1][0], "a row without the norm that towers give")
        return rows.div_(norms).to(index.device)

    def blocks(self, size=2048):
        """All rows in order, (size, D) float32 at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def _expand(pattern):
    """{name: path} of the tars of a pattern, in order."""
    from braceexpand import braceexpand

    tars = {}
    for text in braceexpand(pattern, escape=False):
        for path in map(Path, sorted(glob(text)) if "*" in text else [text]):
            if path.stem in tars:
                raise ValueError(f"{tars[path.stem]} and {path}: both would become {path.stem}.safetensors; give each its own folder")
            tars[path.stem] = path
    if not tars:
        raise ValueError(f"{pattern}: no such tars")
    return tars


def _members(tar, skipped):
    """(key, kind, name, content) of each member that is read, in order; the content of one over its limit is None."""
    with open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
        try:
            while member := members.next():
                if not member.offset < members.offset <= os.fstat(file.fileno()).st_size:
                    raise tarfile.ReadError("an impossible size")  # CVE-2025-8194: older Pythons read such a member for ever
                members.members.clear()  # tarfile would keep every header it has read
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace").removeprefix("./")
                key, ending = match.groups() if (match := MEMBER.fullmatch(name)) else (name, "")
                if (kind := KINDS.get(ending.lower())) and member.isreg():
                    yield key, kind, name, members.extractfile(member).read() if member.size <= LIMITS[kind] else None
            file.seek(members.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("no end mark")  # tarfile takes a damaged header, or none, for the end
        except DAMAGED:
            skipped["rest of the tar, cut short or damaged"] += 1


def _samples(tar, skipped):
    """(name, content, captions) of each image: neighbouring members with one key make a sample, of one image (its last)."""
    for _, members in groupby(_members(tar, skipped), itemgetter(0)):
        sample = {kind: (name, content) for _, kind, name, content in members}
        try:
            captions = _captions({kind: content for kind, (_, content) in sample.items()})
        except ValueError as error:
            skipped[str(error)] += 1
        else:
            yield *sample["image"], captions


def _captions(sample):
    """The captions of a sample {kind: content}; ValueError says why it can't be used."""
    if "image" not in sample:
        raise ValueError("without an image")
    if None in (sample["image"], sample.get("txt", sample.get("json", b""))):
        raise ValueError("over the limit of 64 MiB an image, 1 MiB a text")
    try:
        captions = [sample["txt"].decode("utf-8-sig")] if "txt" in sample else json.loads(sample.get("json", "{}"))["captions"]
        captions = [caption.strip() for caption in captions if caption.strip()] if isinstance(captions, list) else []
        "".join(captions).encode()  # JSON can spell half a character, which no tokenizer takes
    except UnicodeError:
        raise ValueError("with a caption that is not UTF-8") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError('without .txt or .json with "captions"') from None
    if not captions:
        raise ValueError("with an empty caption")
    return captions


def _ahead(pool, function, items, count):
    """(item, function(item)) in order; `count` of them are worked on while the caller is busy with one."""
    queue = deque()
    for item in items:
        queue.append((item, pool.submit(function, item)))
        if len(queue) > count:
            item, future = queue.popleft()
            yield item, future.result()
    yield from ((item, future.result()) for item, future in queue)


def _encode(tar, vision, text, open_image, batch_size, workers, skipped, title, quiet):
    """The tensors of one tar's feature shard; `skipped` counts what is left out."""
    parts = getattr(vision, "parts", None) or [vision]  # joined towers are rounded each for itself, as in features.py

    def pixels(sample):
        try:
            image = open_image(io.BytesIO(sample[1]))
        except ValueError:
            return None
        return [part.preprocess(image) for part in parts]

    def sound(decoded):
        for (name, _, captions), images in decoded:
            if images is None:
                skipped["with an image that can't be decoded"] += 1
            else:
                yield name, captions, images

    def halves(tower, batch):
        rows = tower.encode(batch)
        if not ((rows.norm(dim=1) - 1).abs() < 0.01).all():
            raise ValueError(f"{tar}: tower {tower.name} gave rows that are not finite and of norm 1; its weights may be damaged")
        return rows.half().cpu()

    names, captions, image_of, image = [], [], [], []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, tqdm(desc=title, unit="", disable=quiet, leave=False) as bar:
        samples = sound(_ahead(pool, pixels, _samples(tar, skipped), 2 * batch_size))
        while batch := list(islice(samples, batch_size)):
            columns = zip(parts, zip(*(images for _, _, images in batch)))
            image.append(torch.cat([halves(part, torch.stack(column)) for part, column in columns], dim=1))  # (B, Dv)
            for name, texts, _ in batch:
                image_of += [len(names)] * len(texts)
                captions += texts
                names.append(name)
            bar.update(len(batch))
        bar.set_description(f"{title}, captions")
        distinct = sorted(dict.fromkeys(captions), key=len, reverse=True)  # alike lengths, little padding
        rows = [halves(text, distinct[i : i + 512]) for i in range(0, len(distinct), 512)]
    number, none = {caption: i for i, caption in enumerate(distinct)}, torch.empty(0, 0, dtype=torch.float16)
    return dict(image=torch.cat(image) if image else none, text=torch.cat(rows)[[number[c] for c in captions]] if rows else none,
                image_of=torch.tensor(image_of, dtype=torch.int64),
                names=torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8))  # fmt: skip


def _write(path, content):
    """The whole file or none: a temporary file beside it takes its name once it is on the disk."""
    for old in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if time.time() - old.stat().st_mtime > STALE:
            old.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path, towers=None):
    """(metadata, tensors) of a feature shard that was made with these towers. The tensors are mapped, not read."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        if metadata.get("format") != FORMAT:
            raise _damaged(path, f"format {metadata.get('format')}, not {FORMAT}")
        image, text, image_of = (tensors[key] for key in ("image", "text", "image_of"))
        metadata["digest"] = " ".join(metadata[key] for key in ("tar_sha256", "vision", "vision_key", "text", "text_key"))
        if len(_names(tensors)) != len(image) or len(text) != len(image_of) or not set(image_of.tolist()) <= set(range(len(image))):
            raise _damaged(path, "its parts don't fit each other")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such feature shard; let every rank encode its tars first") from None
    except (SafetensorError, OSError, LookupError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from None
    for kind in ("vision", "text") if towers else ():
        if metadata[f"{kind}_key"] != towers[f"{kind}_key"]:
            raise ValueError(f"{path}: made with the {kind} tower {metadata[kind]} (key {metadata[f'{kind}_key']}), not with "
                             f"{towers[kind]} (key {towers[f'{kind}_key']}); name another folder of features")  # fmt: skip
    return metadata, tensors


def _names(tensors):
    return json.loads(bytes(tensors["names"].numpy()))


def _damaged(path, why):
    return ValueError(f"{path}: damaged, or no feature shard ({why}); delete it and encode again")


def _made_from(path, tar, towers):
    """True for a feature shard of these towers and this tar (a copied or touched one too), or of a tar that is gone; else ValueError."""
    metadata, _ = _read(path, towers)
    if tar.exists() and any(metadata.get(key) != value for key, value in _stamp(tar).items()) and metadata["tar_sha256"] != _sha256(tar):
        raise ValueError(f"{path}: {tar} is another tar than it was made from (SHA-256 {metadata['tar_sha256']}); delete it to encode "
                         "the tar again, or name another folder of features")  # fmt: skip
    return True


def _stamp(tar):
    stat = tar.stat()
    return dict(tar_size=str(stat.st_size), tar_mtime_ns=str(stat.st_mtime_ns))


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
