"""Archives of any size: tars of images, videos and captions go through the towers once, into feature shards
on the disk.

    names = encode_shards("cc3m-{00000..00331}.tar", "features/cc3m", vision, text)
    shards = open_shards("features/cc3m", names)
    shards.image[torch.tensor([7, 2_000_000])]    # (2, Dv) float32 unit rows, read from the disk

A tar has the layout of WebDataset, which img2dataset writes: KEY.jpg (png, mp4, ...) next to KEY.txt, its
caption, or next to KEY.json with a list of them under "captions", and perhaps questions (tars.questions_of).

NAME.tar becomes FOLDER/NAME.safetensors, whole or not at all: a killed run goes on with the tar it was in,
and machines that share the folder each take every world-th tar. It also keeps what became of the members."""

import hashlib
import io
import logging
import tarfile
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from models.dataset import FRAMES, Row, open_frames
from models.files import packed, sha256, unpacked, why_passed_over

from .ahead import encode_ahead, frames_for, mean_row
from .cache import batched
from .places import Places
from .rows import Parts, Rows
from .shard_files import WITH, WITHOUT, is_up_to_date, places_of, read, size_and_time, write
from .tars import DAMAGED, UNDECODABLE, Tally, expand, samples

log = logging.getLogger(__name__)


class Shards(NamedTuple):
    """The features of all tars, read from their files on demand."""

    image: Rows  # (N, Dv)
    text: Rows  # (M, Dt)
    image_of: torch.Tensor  # (M,) int64, the image each caption describes
    digest: str  # of the tars and the towers
    parts: list  # the tensors of each shard
    tally: Tally  # of the members of all tars
    questions: list  # of Row; image_name is the number of the image, since names may repeat
    places: Places | None  # (N, P, Dp), where it was encoded with questions

    def names(self):
        """A list of N str: the name of each image."""
        return [name for tensors in self.parts for name in unpacked(tensors["names"])]

    def captions(self):
        """A list of M str."""
        return [caption for tensors in self.parts for caption in unpacked(tensors["captions"])]


def encode_shards(
    pattern,
    folder,
    vision,
    text,
    rank=0,
    world=1,
    batch_size=32,
    workers=None,
    quiet=False,
    questions=False,
    frames=FRAMES,
):
    """Write the feature shards that are not there yet, of every `world`-th tar from number `rank` on. Returns
    the names of all shards of the pattern, for `open_shards`.

    `pattern` holds {00000..00331}, {a,b} or *. Rows are float16, so they equal those of `encode_archive`; the
    rows of one shard have to fit in memory. `questions` adds the questions and the local features of the
    images. A video is read as `frames` frames. Members that cannot be used are left out, counted and logged,
    one line per tar. Raises ValueError before any tower runs for a file that is no tar or is missing (an
    encoded tar may be deleted), and for a shard made with other towers or frames, or from another tar."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: ranks are 0 to {world - 1}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tars = expand(pattern)
    towers = dict(vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    frames = frames_for(vision, frames)
    towers |= dict(questions=WITH if questions else WITHOUT, frames=str(frames))
    own = [(tar, folder / f"{name}.safetensors") for name, tar in list(tars.items())[rank::world]]
    todo = [(tar, path) for tar, path in own if not is_up_to_date(path, tar, towers)]
    for tar, _ in todo:
        _check_tar(tar)
    if len(todo) < len(own):
        log.info("%s: %d of %d tars are encoded already", folder, len(own) - len(todo), len(own))
    for number, (tar, path) in enumerate(todo, 1):
        metadata = size_and_time(tar) | dict(tar_sha256=sha256(tar))
        tally = Tally()
        title = f"{number}/{len(todo)} {tar.name}"
        options = (batch_size, workers, questions, frames)
        tensors = _encode(tar, vision, text, *options, tally, title, quiet)
        write(path, tensors, tally, towers | metadata)
        asked = unpacked(tensors["questions"]) if questions else []
        log.log(tally.level(), "%s: %s", tar.name, summary(tensors["image"], tensors["text"], asked, tally))
    return list(tars)


def summary(image, text, questions, tally):
    """'2 images, 4 captions, from 4 of 5 members; left out ...', for tensors image (N, Dv) and text (M, Dt),
    a list of questions, and what became of their tars' members."""
    asked = f"{len(questions):,} questions, " if questions else ""
    return f"{len(image):,} images, {len(text):,} captions, {asked}{tally}"


def open_shards(folder, names=None):
    """The `Shards` of a folder, mapped into memory and not read: those named, in that order, or all of them.
    ValueError for a file that is damaged or was made with other towers than the first; FileNotFoundError for
    one that is not there."""
    folder = Path(folder)
    if names is None:
        paths = sorted(p for p in folder.glob("*.safetensors") if not why_passed_over(p.name))
    else:
        paths = [folder / f"{name}.safetensors" for name in names]
    digest, towers, found, total = hashlib.sha256(), None, [], Tally()
    for path in paths:
        metadata, tensors, tally = read(path, towers)
        towers = towers or metadata
        total.add(tally)
        digest.update(metadata["digest"].encode())
        if len(tensors["image"]):  # a tar may hold nothing that can be used
            found.append((path, tensors))
    if not found:
        layout = "a tar holds KEY.jpg and KEY.txt, one after the other (tar --sort=name)"
        raise ValueError(f"{folder}: no features in it, {total}; {layout}")
    image, text = (Rows([(path, tensors[kind]) for path, tensors in found]) for kind in ("image", "text"))
    parts = [tensors for _, tensors in found]
    image_of = torch.cat([tensors["image_of"] + start for start, tensors in zip(image.starts, parts)])
    asked = _questions_and_places(found, image.starts.tolist()) if towers["questions"] == WITH else ([], None)
    return Shards(image, text, image_of, digest.hexdigest(), parts, total, *asked)


def _questions_and_places(found, starts):
    """(list of Row, Places) of shards [(path, tensors)] whose first images have the numbers `starts`."""
    questions = []
    for (_, tensors), start in zip(found, starts):
        numbers = (tensors["asked_about"] + start).tolist()
        for number, (question, answer, kind) in zip(numbers, unpacked(tensors["questions"])):
            questions.append(Row(number, question, answer, 0, kind))
    by_tower = zip(*([(path, part) for part in places_of(tensors)] for path, tensors in found))
    return questions, Places([Parts(list(parts)) for parts in by_tower])


def _check_tar(tar):
    try:
        tarfile.open(tar, "r:").close()
    except (*DAMAGED, OSError) as error:
        raise ValueError(
            f"{tar}: not an uncompressed tar ({error}); unpack it, or leave it out of the pattern"
        ) from None


def _encode(tar, vision, text, batch_size, workers, questions, frames, tally, title, quiet):
    """The tensors of one tar's feature shard. `tally` counts its members."""
    names, captions, image_of, image, asked, asked_about = [], [], [], [], [], []
    places = [[] for _ in vision.parts]

    def read_frames(sample):
        return open_frames(io.BytesIO(sample.content), frames)

    with tqdm(desc=title, unit="", disable=quiet, leave=False) as bar:
        found = samples(tar, tally, questions)
        options = dict(places=questions, each_frame=True)
        encoded = encode_ahead(found, read_frames, vision.parts, batch_size, workers, **options)
        for sample, rows, error in encoded:
            bar.update()
            if error:
                first, *others = sample.members
                why = str(error).removeprefix("image: ")
                tally.leave_out(UNDECODABLE, f"{first}: {why}", *others)
                continue
            tally.read += len(sample.members)
            if questions:
                rows, maps = zip(*rows)
                for kept, one in zip(places, maps):
                    kept.append(one.half())
                asked_about += [len(names)] * len(sample.questions)
                asked += sample.questions
            # Each tower's rows are rounded on their own, as in the cache.
            image.append(torch.cat([mean_row(row.half().float()).half() for row in rows]))
            image_of += [len(names)] * len(sample.captions)
            captions += sample.captions
            names.append(sample.name)
        bar.set_description(f"{title}, captions")
        rows_of = _text_rows(captions, text)
    tensors = dict(
        image=_stack(image, 0),
        text=_stack([rows_of[caption] for caption in captions], text.dim),
        image_of=torch.tensor(image_of, dtype=torch.int64),
        names=packed(names),
        captions=packed(captions),
    )
    if questions:
        tensors |= {f"places-{i}": _stack(maps, 0, 0) for i, maps in enumerate(places)}
        tensors |= dict(asked_about=torch.tensor(asked_about, dtype=torch.int64), questions=packed(asked))
    return tensors


def _stack(rows, *shape):
    """A list of rows as one tensor float16; (0, *shape) for none."""
    return torch.stack(rows) if rows else torch.empty(0, *shape, dtype=torch.float16)


def _text_rows(captions, text):
    """{caption: (Dt,) float16 row} of the distinct captions."""
    # Texts of similar length need little padding.
    distinct = sorted(set(captions), key=lambda caption: (-len(caption), caption))
    found = {}
    for batch in batched(distinct, 512):
        rows = text.encode(batch)
        if not ((rows.norm(dim=1) - 1).abs() < 0.01).all():
            raise ValueError(
                f"tower {text.name} gave rows that are not finite and of norm 1; its weights may be damaged"
            )
        found |= zip(batch, rows.half().cpu())
    return found
