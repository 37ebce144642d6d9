"""Captions for images: the nearest training captions, and new ones from a small decoder.

    python -m apps.decode train                                  train the decoder, from captions alone
    python -m apps.decode caption photo.jpg photos               images or folders of them
    python -m apps.decode caption photo.jpg --llm NAME           one more caption, by a language model
    python -m apps.decode score --csv caption.csv --held-out     BLEU-4 and CIDEr-D with 95 % intervals

The decoder of a run is in RUN/decoder.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from models.script import add_command, add_folder_flags, add_follow_links, add_model_flags, parser, run

NEAREST, DECODER = "nearest training caption", "decoder"  # rows of the table
NEIGHBOURS = 40  # of the consensus; 5 to 320 were tried on held-out training images of Flickr8k
# Flags of `train` that are options of Decoder.build.
SHAPE = ("vocab", "width", "layers", "dropout", "temperature", "noise")
LEAST = dict(epochs=0, batch_size=1, width=4, layers=1, vocab=257, beams=1, nearest=0)


def parse(argv):
    """The command line."""
    p = parser("python -m apps.decode", __doc__)
    common = argparse.ArgumentParser(add_help=False)
    add_model_flags(common)
    add(common, "--cache", ".cache/features.sqlite", "file that keeps the towers' outputs")
    commands = p.add_subparsers(dest="command", required=True)

    example = "python -m apps.decode train"
    t = add_command(commands, "train", "train RUN/decoder, without images", example, [common])
    add(t, "--epochs", 6, "passes over the captions, but at least 300 steps")
    add(t, "--batch-size", 64, "captions per step")
    add(t, "--lr", 1.5e-3, "AdamW learning rate")
    add(t, "--width", 192, "of the transformer, a multiple of 4")
    add(t, "--layers", 3, "of the transformer")
    add(t, "--dropout", 0.1, "share of units dropped in training, 0 to 1")
    add(t, "--vocab", 3000, "most tokens in the vocabulary, 257 or more")
    add(t, "--noise", 2.0, "largest norm of the noise added to an embedding of norm 1")
    add(t, "--temperature", 0.03, "of the projection onto the training captions, in cosine")
    add(t, "--seed", 0, "of weights, order, noise and dropout")

    example = "python -m apps.decode caption photo.jpg"
    c = add_command(commands, "caption", "captions for images", example, [common])
    c.add_argument("image", nargs="+", help="image files or folders of them", metavar="IMAGE")
    add_folder_flags(c)
    add(c, "--nearest", 3, "how many of the nearest training captions to show")
    c.add_argument(
        "--llm",
        help="causal language model (Hugging Face name or folder) for one more caption",
        metavar="NAME",
    )

    example = "python -m apps.decode score --csv caption.csv --held-out"
    s = add_command(commands, "score", "BLEU-4 and CIDEr-D over a captions file", example, [common])
    s.add_argument("--csv", required=True, help="captions file with several captions per image")
    s.add_argument("--images", help="folder of the CSV's images (default: that of the run)", metavar="DIR")
    s.add_argument("--image-column", help="the CSV's column of image names (default: as in training)")
    s.add_argument(
        "--caption-column",
        nargs="+",
        help="the CSV's column of captions, or several (default: as in training)",
        metavar="COLUMN",
    )
    switch = argparse.BooleanOptionalAction
    s.add_argument(
        "--caption-lists",
        action=switch,
        help="read a list in a field as several captions (default: as in training)",
    )
    s.add_argument(
        "--held-out", action=switch, default=False, help="leave out the images that were trained on"
    )
    s.add_argument("--skip-bad", action=switch, default=False, help="leave out unusable images and lines")
    add_follow_links(s)
    add(s, "--seed", 0, "of the random captions and the bootstrap")
    for command in (c, s):
        add(command, "--beams", 10, "captions of the beam search, of which one is chosen")
    return p.parse_args(argv)


def add(arguments, flag, default, text):
    """Add a flag of the type of its default."""
    arguments.add_argument(flag, type=type(default), default=default, help=f"{text} (default %(default)s)")


def train(args, model):
    """Train a decoder on the captions of the run, save it as RUN/decoder and return the exit code."""
    import torch
    from tqdm import tqdm

    from models.decoder import Decoder

    began = time.perf_counter()
    captions, embeddings = model.captions(args.cache)
    torch.manual_seed(args.seed)
    shape = {name: getattr(args, name) for name in SHAPE}
    decoder = Decoder.build(captions, embeddings, model.text_space, **shape).to(model.device)
    size = sum(p.numel() for p in decoder.parameters())
    print(
        f"{len(captions)} captions, {size / 1e6:.1f} million parameters, {decoder.config['vocab']} tokens",
        flush=True,
    )
    folder, mean = Path(args.run, "decoder"), None
    try:
        with tqdm(desc="decoder", unit="step", disable=args.quiet) as bar:
            for steps, loss in decoder.fit(captions, args.epochs, args.batch_size, args.lr):
                mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                bar.total = steps
                bar.set_postfix_str(f"loss {mean:.3f}", refresh=False)
                bar.update()
        decoder.save(folder)
    except KeyboardInterrupt:
        kept = "the earlier decoder is kept" if folder.exists() else "nothing was saved"
        print(f"\ndecode: interrupted; {kept}", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - began
    print(
        f"{folder}: {steps} steps in {seconds:.0f} s, loss {mean:.3f} nats per token, with noise and dropout"
    )
    return 0


def load_decoder(args, model):
    """The decoder of the run, or None and a note on stderr when none was trained."""
    from models.decoder import Decoder

    folder = Path(args.run, "decoder")
    if folder.exists():
        return Decoder.load(folder, model.device, model.text_space)
    hint = f"python -m apps.decode train --run {args.run}"
    print(f"decode: no decoder in {folder}, so captions are only found, not written; {hint}", file=sys.stderr)
    return None


def consensus(predicted, memory, neighbours=NEIGHBOURS):
    """(N,) int64: for each prediction (N, Dt) the index of one of its nearest memories (M, Dt), the one that
    is nearest to it and, on average, to the other neighbours. A single odd caption is far from those. After
    Devlin et al., 2015, with cosines in place of BLEU and CIDEr."""
    import torch

    scores, found = (predicted @ memory.T).topk(min(neighbours, len(memory)))  # (N, K)
    near = memory[found]  # (N, K, Dt)
    agreement = torch.einsum("nkd,njd->nkj", near, near).mean(-1)  # (N, K)
    return found.gather(1, (scores + agreement).argmax(1, keepdim=True))[:, 0]


def caption(args, model):
    """Print for each image what the decoder writes, what a language model makes of the nearest captions, and
    these. Returns the exit code, 1 when an image could not be read."""
    from apps.decode.llm import LanguageModel
    from models.dataset import expand

    files = expand(args.image, args.exclude, args.follow_links)
    decoder = load_decoder(args, model)
    captions, memory = model.captions(args.cache)
    llm = LanguageModel(args.llm, model.device) if args.llm else None
    read = 0
    for start in range(0, len(files), 32):
        batch, predicted = predict(args, model, files[start : start + 32])  # B files, (B, Dt)
        read += len(batch)
        if not batch:
            continue
        written = decoder.write(predicted, args.beams, model.encode_text) if decoder else [None] * len(batch)
        agreed = consensus(predicted, memory)
        scores, found = (predicted @ memory.T).topk(min(max(args.nearest, 5), len(memory)))  # (B, K)
        for i, file in enumerate(batch):
            nearest = [captions[c] for c in found[i].tolist()]
            print(file)
            if decoder:
                print(f"  written    {written[i]}")
            if llm:
                print(f"  rewritten  {llm.summarise(nearest)}")
            print(f"  consensus  {captions[agreed[i]]}")
            for score, text in list(zip(scores[i].tolist(), nearest))[: args.nearest]:
                print(f"  {score:9.4f}  {text}")
    return int(read < len(files))


def predict(args, model, files):
    """(B of the files, (B, Dt) float32 on the CPU): the image files that can be read, and the predictions for
    them. Prints of the others why not."""
    import torch

    from models.features import encode_files

    read, rows = [], []
    for encoded in encode_files(files, model.vision, args.cache, frames=model.frames):
        if encoded.row is None:
            print(f"decode: {encoded.error}", file=sys.stderr)
        else:
            read.append(encoded.path)
            rows.append(encoded.row)
    return read, model.predict(torch.stack(rows)).cpu() if rows else None


def images_to_score(args, model):
    """The VisionTextDataset of --csv. Prints a note when it holds images that were trained on."""
    from models.dataset import VisionTextDataset

    if args.held_out:
        columns = (args.image_column, args.caption_column)
        options = dict(caption_lists=args.caption_lists, follow_links=args.follow_links)
        return model.held_out(args.csv, args.images, *columns, args.skip_bad, **options)
    recipe = model.recipe
    caption_lists = recipe.get("caption_lists", False) if args.caption_lists is None else args.caption_lists
    images = args.images or recipe.get("images")
    if not images:
        raise ValueError(f"{args.run}: a shared model has no folder of images; name yours with --images DIR")
    dataset = VisionTextDataset(
        args.csv,
        None,
        images,
        args.image_column or recipe["image_column"],
        args.caption_column or recipe["caption_column"],
        args.skip_bad,
        caption_lists=caption_lists,
        follow_links=args.follow_links or recipe.get("follow_links", False),
    )
    names = set(dataset.image_names)
    trained_on = names & model.trained_on if model.knows_training_images else set()
    if trained_on:
        note = f"{len(trained_on)} of these {len(names)} images were trained on, which flatters"
        print(f"note: {note}; add --held-out to leave them out")
    return dataset


def score(args, model):
    """Print BLEU-4 and CIDEr-D of what is found and written, between random captions and people."""
    from apps.decode.scores import counts
    from models.features import encode_archive

    dataset = images_to_score(args, model)
    decoder = load_decoder(args, model)
    captions, memory = model.captions(args.cache)
    options = dict(quiet=args.quiet, frames=model.frames, in_order=model.reads_order)
    features = encode_archive(dataset, model.vision, model.text, args.cache, **options)
    predicted = model.predict(features.image).cpu()  # (N, Dt)
    references = [[] for _ in dataset.image_names]
    for text, image in zip(dataset.captions, dataset.image_of):
        references[image].append(text)
    draw = random.Random(args.seed)
    texts = {
        "a random training caption": [draw.choice(captions) for _ in references],
        NEAREST: [captions[i] for i in (predicted @ memory.T).argmax(1)],
        f"consensus of the {NEIGHBOURS} nearest": [captions[i] for i in consensus(predicted, memory)],
    }
    began = time.perf_counter()
    if decoder:
        texts[DECODER] = decoder.write(predicted, args.beams, model.encode_text)
    seconds = time.perf_counter() - began
    results = {name: counts(written, references) for name, written in texts.items()}
    several = [texts for texts in references if len(texts) > 1]
    if len(several) > 1:
        person = f"a person ({min(map(len, several)) - 1} references)"
        results[person] = counts([texts[0] for texts in several], [texts[1:] for texts in several])

    size = f"{len(references)} images, {len(dataset.captions)} captions"
    print(f"{args.csv}: {size}; {args.run}, {len(captions)} training captions")
    print_scores(results, args.seed)
    if decoder:
        print(f"written in {seconds:.0f} s")


def print_scores(results, seed):
    """A table of {name: what `counts` gives}, and what the decoder gains over the nearest caption."""
    from apps.decode.scores import intervals

    print(f"{'':34} BLEU-4   95 % interval   CIDEr-D   95 % interval")
    for name, (rows, cider) in results.items():
        (b, b_low, b_high), (c, c_low, c_high) = intervals(rows, cider, seed)
        print(f"{name:34} {b:6.1f}   {b_low:5.1f} - {b_high:5.1f}   {c:7.1f}   {c_low:5.1f} - {c_high:5.1f}")
    if DECODER in results:
        rows, cider = results[DECODER]
        _, (gain, low, high) = intervals(rows, cider - results[NEAREST][1], seed)
        print(f"decoder minus nearest caption: CIDEr-D {gain:+.1f} ({low:+.1f} to {high:+.1f})")


def work(args):
    """Run a command and return its exit code."""
    for name, least in LEAST.items():
        if getattr(args, name, least) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give {least} or more")

    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run, args.device)
    return dict(train=train, caption=caption, score=score)[args.command](args, model)


def main(argv=None):
    """The exit code, see `models.script`."""
    args = parse(argv)
    return run("decode", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
