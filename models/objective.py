"""The batches of an epoch, the learning rate and the loss of one, in one process or in several.

A batch is of one kind: "captions" trains the predictor of captions, "answers" that of answers, and
"question_only" the baseline that sees no image. `args` are the flags of train.py, `data` is what
models/features/load.py gives. Each process predicts its share of a batch, and every process computes the loss
of the whole batch.
"""

import math
from pathlib import Path

import torch

from models import distributed, losses
from models.predictor import mirror
from models.runs import LAST

QUESTION_BATCH = 256  # pairs of an image and a question per step


def learning_rate(args, step, steps):
    """The learning rate at `step`, 0 to steps - 1: it rises over the first share `warmup` of the steps, then
    is constant or falls to 0 along half a cosine."""
    rise = max(1, int(args.warmup * steps))
    if step < rise:
        return args.lr * (step + 1) / rise if args.warmup else args.lr
    if args.schedule == "constant":
        return args.lr
    return args.lr * (0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def batches(args, data, epoch):
    """[(kind, indices (B,)), ...] of an epoch, the kinds evenly mixed. All that is random in an epoch follows
    from the seed and its number."""
    torch.manual_seed(args.seed * 1_000_003 + epoch)
    device = data.image_of.device
    order = torch.randperm(len(data.text)).to(device)
    if args.group_captions:
        order = torch.randperm(len(data.image)).to(device)[data.image_of].argsort(stable=True)
    found = {"captions": order.split(args.batch_size) if len(order) else ()}
    if data.questions is not None:
        # An image's questions stand together, so that a batch reads its places once.
        image_order = torch.randperm(len(data.image)).to(device)
        pairs = image_order[data.questions.image_of].argsort(stable=True)
        found["answers"] = found["question_only"] = pairs.split(QUESTION_BATCH)
    mixed = []
    for kind, split in found.items():
        mixed += [((i + 0.5) / len(split), kind, batch) for i, batch in enumerate(split)]
    mixed.sort(key=lambda item: item[:2])
    return [(kind, batch) for _, kind, batch in mixed]


def loss_of(args, data, training, epoch, kind, batch, each, process):
    """The loss of a batch, a scalar: the mean over the members of its predictor."""
    if kind == "captions":
        return _caption_loss(args, data, training, epoch, batch, each[kind], process)
    return _answer_loss(args, data, getattr(training.predictor, kind), batch, each[kind], process)


def _caption_loss(args, data, training, epoch, captions, each, process):
    """The loss `--loss` of captions (B,) and their images."""
    images, image_of = data.image_of[captions].unique(return_inverse=True)  # each image is predicted once
    mine = process.share(len(images))
    with _precision(args, process):
        rows = each(data.seen(images[mine], epoch), rows=(mine.start, len(images)))  # (share, members * Dt)
    predicted = distributed.gather(rows.float(), len(images)).chunk(args.members, dim=1)
    scale = training.log_scale.exp().clamp_max(losses.MAX_SCALE)
    text = training.predictor.project_text(data.text[captions])  # (B, Dt)
    loss = getattr(losses, args.loss)
    return sum(loss(member, text, image_of, scale, training.bias) for member in predicted) / args.members


def _answer_loss(args, data, predictor, pairs, each, process):
    """Softmax over the bank of answers, for pairs (B,) of an image and a question, an image's pairs together.
    Half the images that may be are mirrored, and left and right in their answers swapped."""
    mine = process.share(len(pairs))
    questions, answer_of = data.questions, data.answer_of[pairs]
    seen = dict(question=questions.tokens[_wordings(questions, pairs)[mine]])
    if predictor.reads_image:
        images, image_of = questions.image_of[pairs].unique_consecutive(return_inverse=True)
        fixed = image_of[~data.has_mirror[pairs]].bincount(minlength=len(images)) > 0
        mirrored = (torch.rand(len(images)) < 0.5).to(fixed.device) & ~fixed  # (images,)
        answer_of = torch.where(mirrored[image_of, None], data.mirror[answer_of], answer_of)
        own = image_of[mine].unique()  # the images of this process
        first = int(own[:1].sum())
        places = mirror(data.places[images[own]], mirrored[own])
        seen |= dict(image=data.image[images[own]], places=places)
        seen |= dict(image_of=image_of[mine] - first, image_rows=(first, len(images)))
    with _precision(args, process):
        rows = each(**seen, rows=(mine.start, len(pairs)))  # (share, members * Dt)
    members = len(predictor.members)
    predicted = distributed.gather(rows.float(), len(pairs)).chunk(members, dim=1)
    right = (data.answer, answer_of, data.share[pairs])
    scale = predictor.log_scale.exp().clamp_max(losses.MAX_SCALE)
    return sum(losses.answer_bank(member, *right, scale) for member in predicted) / members


def _wordings(questions, pairs):
    """The row of a wording for each of the pairs (B,): half the time its own, else any of its wordings."""
    choices = questions.wordings[questions.question_of[pairs]]  # (B, W)
    any_of = torch.randint(choices.shape[1], (len(pairs),)).to(choices.device)
    column = any_of * (torch.rand(len(pairs)) < 0.5).to(choices.device)
    return choices.gather(1, column[:, None])[:, 0]


def _precision(args, process):
    return torch.autocast(torch.device(process.device).type, torch.bfloat16, enabled=args.bf16)


def check_finite(value, args, data, kind, batch, epoch, step):
    """ValueError naming the images of a batch whose loss is not finite."""
    if math.isfinite(value):
        return
    kept = f"{Path(args.run, LAST)} holds the last good state. " if Path(args.run, LAST).exists() else ""
    image_of = data.image_of if kind == "captions" else data.questions.image_of
    files = ", ".join(sorted({data.names[i] for i in image_of[batch].tolist()}))
    advice = f"{kept}Lower --lr, or look at this batch's files: {files}"
    raise ValueError(f"loss is {value} at epoch {epoch}, step {step}. {advice}")


def predict_held_out(args, held_out, training):
    """(predictions (N, Dt) of the held-out images that have captions, the embeddings (M, Dt) of these
    captions, the one of the N images that each describes (M,), their mean loss)."""
    captioned, image_of = held_out.image_of.unique(return_inverse=True)  # an image may have questions alone
    loss_sum = 0.0
    with torch.no_grad():
        device = training.log_scale.device
        predicted = training.predictor(held_out.image[captioned].to(device)).cpu()  # (N, Dt)
        text = training.predictor.project_text(held_out.text.to(device)).cpu()  # (M, Dt)
        scalars = training.log_scale.exp().cpu(), training.bias.cpu()
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))
        for batch in order.split(args.batch_size):
            images, which = image_of[batch].unique(return_inverse=True)
            loss = getattr(losses, args.loss)(predicted[images], text[batch], which, *scalars)
            loss_sum += loss.item() * len(batch)
    return predicted, text, image_of, loss_sum / len(text)
