"""The features that train.py trains on, from a CSV or from tars, in one process or several."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from models import distributed
from models.dataset import VisionTextDataset, read_questions, read_rows, split_by_image

from .archive import Features, encode_archive, encode_texts, encode_tokens
from .places import Places
from .questions import Questions, encode_questions
from .rows import Rows
from .shards import encode_shards, open_shards, summary

log = logging.getLogger(__name__)


@dataclass
class Data:
    """The features to train on, on the device (in feature shards: on the disk), and the held-out ones.
    Without questions, `places` and `questions` are None and the rest is empty; without --views, `views` is
    None."""

    source: str  # the CSV or the pattern of tars
    digest: str  # of the rows, or of tars and towers
    image: torch.Tensor | Rows  # (N, Dv), with --time change (N, F, Dv)
    text: torch.Tensor | Rows  # (M, Dt)
    image_of: torch.Tensor  # (M,)
    views: torch.Tensor | None  # (N, K, Dv) float16
    names: list  # of the N images
    examples: list  # rows of up to 3 images to try the model on, held out where some are; none of tars
    held_out: Features  # on the CPU
    places: Places | None  # (N, P, Dp)
    questions: Questions | None  # Q pairs of an image and a question
    bank: dict  # {answer: how many training rows have it}
    answer: torch.Tensor  # (A, Dt), the bank's embeddings
    answer_of: torch.Tensor  # (Q, W), the right answers of each pair
    share: torch.Tensor  # (Q, W), see Questions.right
    mirror: torch.Tensor  # (A,), the answers about mirrored images
    has_mirror: torch.Tensor  # (Q,), see Questions.mirrored

    @property
    def has_held_out(self):
        return len(self.held_out.image) > 1

    def seen(self, images, epoch):
        """(B, Dv) float32 rows of images (B,), as an epoch sees them: of the image or of one of its K views,
        another in each epoch."""
        rows = self.image[images]
        if self.views is None:
            return rows
        view = (images + epoch) % (self.views.shape[1] + 1)
        other = F.normalize(self.views[images, view - 1].float(), dim=1)
        return torch.where(view[:, None] > 0, other, rows)


def load_data(args, vision, text, process):
    """Data: every row through the towers, once, and split by image. `args` are the flags of train.py."""
    if args.time == "change" and (args.shards or args.views):
        raise ValueError(
            "--time change reads frames in order: it goes neither with --shards nor with --views"
        )
    load = _load_shards if args.shards else _load_csv
    features, names, digest, rows = load(args, vision, text, process)
    train_names, held_out_names = split_by_image(names, args.val_fraction, args.seed)
    source = args.shards or " and ".join(filter(None, (args.csv, args.questions)))
    if not train_names:
        raise ValueError(f"{source}: all {len(names)} images are held out; lower --val-fraction")
    is_held_out = torch.tensor([name in held_out_names for name in names])
    train = features.of(~is_held_out)
    held_out = features.of(is_held_out)
    image, captions = train.image, train.text
    if args.shards:
        held_out = held_out._replace(image=held_out.image[:], text=held_out.text[:])  # read from the files
    else:
        image, captions = image.to(process.device), captions.to(process.device)
    names = [name for name in names if name not in held_out_names]
    image_of = train.image_of.to(process.device)
    views = None if train.views is None else train.views.to(process.device)
    asked = _answers(args, train, text, process.device)
    examples = _examples(rows, held_out_names or train_names)
    rest = (views, names, examples, held_out, train.places)
    return Data(source, digest, image, captions, image_of, *rest, *asked)


def _examples(rows, names, most=3):
    """Up to `most` rows of different images among `names`, with different texts: of questions, if there are
    any. A text that a command line would take for a flag is passed over."""
    asked = [row for row in rows if row.question]
    found = {}
    for row in asked or rows:
        if row.image_name in names and not (row.question or row.text).startswith("-"):
            if row.image_name not in found and row.text not in {other.text for other in found.values()}:
                found[row.image_name] = row
        if len(found) == most:
            break
    return list(found.values())


def _answers(args, train, text, device):
    """(questions, bank and the tensors about answers) for Data, on the device."""
    questions = train.questions
    if questions is None:
        none = torch.empty(0, dtype=torch.int64)
        return None, {}, torch.empty(0, text.dim), none[:, None], torch.empty(0, 1), none, none
    bank = questions.bank()
    answer = encode_texts(list(bank), text, args.cache, args.quiet).to(device)
    right = [found.to(device) for found in (*questions.right(bank), *questions.mirrored(bank))]
    return questions.to(device), bank, answer, *right


def _load_csv(args, vision, text, process):
    """(Features, image names, digest of the rows, rows). Each process encodes its share into the cache
    first."""
    options = (args.cache, args.encode_batch, args.workers, args.quiet, bool(args.questions), args.views)
    options += (args.frames, args.time == "change")
    if process.world > 1:
        logging.disable(logging.WARNING)  # what is left out is logged below, once
        mine = dataset_of(args, skip_bad=True)
        mine.keep(set(mine.image_names[process.share(len(mine.image_names))]))
        encode_archive(mine, vision, text, *options)
        logging.disable(logging.NOTSET if process.rank == 0 else logging.WARNING)
        distributed.wait()
    dataset = dataset_of(args, args.skip_bad)
    features = encode_archive(dataset, vision, text, *options)
    return features, dataset.image_names, digest_of(dataset.rows), dataset.rows


def digest_of(rows):
    """The SHA-256, in hex, of the names, questions and texts of rows."""
    lines = "\n".join("\t".join(filter(None, row[:3])) for row in rows)
    return hashlib.sha256(lines.encode()).hexdigest()


def dataset_of(args, skip_bad):
    """The VisionTextDataset of the rows of --csv and of --questions, either of which may be empty."""
    rows, left_out = [], Counter()
    options = dict(skip_bad=skip_bad, left_out=left_out)
    if args.csv:
        columns = (args.image_column, args.caption_column)
        rows += read_rows(args.csv, *columns, caption_lists=args.caption_lists, **options)
    if args.questions:
        rows += read_questions(args.questions, args.image_column, **options)
    return VisionTextDataset(
        args.csv or args.questions, None, args.images, rows=rows, follow_links=args.follow_links, **options
    )


def _load_shards(args, vision, text, process):
    """(Features, image names, digest of tars and towers, no rows). Each process encodes its share first."""
    with_questions = args.recipe == "answer"
    options = (process.rank, process.world, args.encode_batch, args.workers, args.quiet, with_questions)
    names = encode_shards(args.shards, args.shard_features, vision, text, *options, args.frames)
    distributed.wait()
    shards = open_shards(args.shard_features, names)
    if process.rank == 0:
        counts = summary(shards.image, shards.text, shards.questions, shards.tally)
        log.log(shards.tally.level(), "%s: %s", args.shards, counts)
    questions = None
    if with_questions:
        if not shards.questions:
            raise ValueError(f"{args.shards}: no questions in it; --recipe answer trains on questions")
        encode = partial(encode_tokens, text=text, cache=args.cache, quiet=args.quiet)
        questions = encode_questions(shards.questions, range(len(shards.image)), encode)
    features = Features(shards.image, shards.text, shards.image_of, questions, shards.places)
    return features, shards.names(), shards.digest, []
