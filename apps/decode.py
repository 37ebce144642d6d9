"""Words for an image: the nearest training captions, and a small decoder that writes one of its own.

python -m apps.decode train                                       learn to write, from the run's captions alone
python -m apps.decode caption photo.jpg photos                    images or folders of them
python -m apps.decode caption photo.jpg --llm NAME                a language model makes one sentence of them
python -m apps.decode score --csv caption.csv --held-out          BLEU-4 and CIDEr-D with 95 % intervals
"""

import argparse
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# BLEU-4 / CIDEr on (COCO, Flickr30k), Karpathy's test splits: the in-domain tables of Fei et al., ICCV 2023 (README of
# github.com/FeiElysia/ViECap). CapDec and DeCap learn from that data set's captions alone, ZeroCap and MAGIC steer GPT-2.
PUBLISHED = {
    "ZeroCap 2022": ((7.0, 34.5), (5.4, 16.8)),
    "MAGIC 2022": ((12.9, 49.3), (6.4, 20.4)),
    "CapDec 2022": ((26.4, 91.8), (17.7, 39.1)),
    "DeCap 2023": ((24.7, 91.2), (21.2, 56.7)),
}
NEIGHBOURS = 40  # of the consensus; 5 to 320 were tried on held-out training images of Flickr8k
RESAMPLES = 1000  # of the bootstrap
INSTRUCTION = "These captions were found for one photograph. Write the one caption that most of them agree on, and nothing else."
EXAMPLES = """Captions: A dog runs on the beach. | Two dogs play in the sand. | A brown dog runs by the sea.
One caption: A brown dog runs on the beach.

Captions: A man climbs a rock. | A climber hangs from a cliff. | A woman on a mountain.
One caption: A climber hangs from a rock face.

"""


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m apps.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = argparse.BooleanOptionalAction
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py, holds the decoder (default %(default)s)",
    )
    every.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the towers' outputs (default %(default)s)",
    )
    every.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    every.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    t = commands.add_parser(
        "train",
        parents=[every],
        help="train a decoder on the captions the run was trained on, no image needed",
    )
    t.add_argument(
        "--epochs",
        type=int,
        default=6,
        help="passes over the captions; never under 300 steps (default %(default)s)",
    )
    t.add_argument("--batch-size", type=int, default=64, help="captions a step (default %(default)s)")
    t.add_argument("--lr", type=float, default=1.5e-3, help="AdamW learning rate (default %(default)s)")
    t.add_argument(
        "--width", type=int, default=192, help="of the transformer, a multiple of 4 (default %(default)s)"
    )
    t.add_argument("--layers", type=int, default=3, help="of the transformer (default %(default)s)")
    t.add_argument(
        "--dropout",
        type=float,
        default=0.1,
        help="share of units dropped in training, 0 to 1 (default %(default)s)",
    )
    t.add_argument(
        "--vocab",
        type=int,
        default=3000,
        help="tokens of the vocabulary at most, 257 or more (default %(default)s)",
    )
    t.add_argument(
        "--noise",
        type=float,
        default=2.0,
        help="largest norm of the noise on an embedding of norm 1 (default %(default)s)",
    )
    t.add_argument(
        "--temperature",
        type=float,
        default=0.03,
        help="of the projection onto the captions, in cosine (default %(default)s)",
    )
    t.add_argument(
        "--seed", type=int, default=0, help="of weights, order, noise and dropout (default %(default)s)"
    )
    c = commands.add_parser("caption", parents=[every], help="words for images")
    c.add_argument("image", nargs="+", help="image files or folders of them", metavar="IMAGE")
    c.add_argument(
        "--nearest",
        type=int,
        default=3,
        help="how many of the nearest training captions to show (default %(default)s)",
    )
    c.add_argument(
        "--llm",
        help="causal language model (Hugging Face name or folder): makes one caption of the nearest",
        metavar="NAME",
    )
    s = commands.add_parser("score", parents=[every], help="BLEU-4 and CIDEr-D over a captions file")
    s.add_argument("--csv", required=True, help="captions file with several captions an image")
    s.add_argument(
        "--images", help="folder of the CSV's images (default: the one the run was trained on)", metavar="DIR"
    )
    s.add_argument(
        "--image-column",
        default="image_name",
        help="name of the CSV's column of image names (default %(default)s)",
    )
    s.add_argument(
        "--caption-column",
        default="comment",
        help="name of the CSV's column of captions (default %(default)s)",
    )
    s.add_argument(
        "--held-out", action=flag, default=False, help="leave out the images the run was trained on"
    )
    s.add_argument(
        "--skip-bad", action=flag, default=False, help="leave out images and lines that can't be used"
    )
    s.add_argument(
        "--seed", type=int, default=0, help="of the random captions and the bootstrap (default %(default)s)"
    )
    for command in (c, s):
        command.add_argument(
            "--beams", type=int, default=3, help="of the decoder's beam search (default %(default)s)"
        )
    return p.parse_args(argv)


def train(args, model):
    """Train RUN/decoder on the captions of the run; saved at the end."""
    import torch
    from tqdm import tqdm

    from models.decoder import Decoder

    began = time.perf_counter()
    captions, embeddings = model.memory(args.cache)
    torch.manual_seed(args.seed)
    shape = {
        name: getattr(args, name) for name in ("vocab", "width", "layers", "dropout", "temperature", "noise")
    }
    decoder = Decoder.build(captions, embeddings, model.text.sha256, **shape).to(model.predictor.mean.device)
    folder, mean = Path(args.run, "decoder"), None
    size = sum(p.numel() for p in decoder.parameters())
    print(
        f"{len(captions)} captions, {size / 1e6:.1f} million parameters, {decoder.config['vocab']} tokens",
        flush=True,
    )
    try:
        with tqdm(desc="decoder", unit="step", disable=args.quiet) as bar:
            for steps, loss in decoder.fit(captions, args.epochs, args.batch_size, args.lr):
                mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                bar.total = steps
                bar.set_postfix_str(f"loss {mean:.3f}", refresh=False)
                bar.update()
        decoder.save(folder)
    except KeyboardInterrupt:
        kept = "the decoder that was there is kept" if folder.exists() else "nothing was saved"
        print(f"\ndecode: interrupted; {kept}", file=sys.stderr)
        return 130
    print(
        f"{folder}: {steps} steps in {time.perf_counter() - began:.0f} s, loss {mean:.3f} (nats a token, with noise and dropout)"
    )
    return 0


def load_decoder(args, model):
    """The run's decoder, or None where none was trained yet, which is said."""
    from models.decoder import Decoder

    folder = Path(args.run, "decoder")
    if not folder.exists():
        print(
            f"decode: no decoder in {folder}, so captions are found and none is written; python -m apps.decode train --run {args.run}",
            file=sys.stderr,
        )
        return None
    return Decoder.load(folder, model.predictor.mean.device, model.text.sha256)


def consensus(predicted, memory, neighbours=NEIGHBOURS):
    """(N,) int64: which of its nearest memories each prediction (N, Dt) is best told by: near to it and, on average, to the
    other neighbours, which a single odd caption is not (after Devlin et al., 2015, with cosines for their BLEU and CIDEr)."""
    import torch

    scores, found = (predicted @ memory.T).topk(min(neighbours, len(memory)))  # (N, K)
    near = memory[found]  # (N, K, Dt)
    agreement = torch.einsum("nkd,njd->nkj", near, near).mean(-1)  # (N, K)
    return found.gather(1, (scores + agreement).argmax(1, keepdim=True))[:, 0]


def expand(paths):
    """Files as they are, folders as the files in them, sorted."""
    files = [
        f
        for path in map(Path, paths)
        for f in (sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path])
    ]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no files in it")
    return files


def load_llm(name, device):
    """A function from captions (list[str]) to one caption, by a causal language model: safetensors alone, and none of its
    repository's own code. OSError when `name` is no folder, not cached and can't be fetched."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    network = (
        AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        .to(device)
        .eval()
    )

    @torch.no_grad()
    def rewrite(captions):
        """One sentence made of the nearest captions."""
        if tokenizer.chat_template:
            talk = [
                dict(
                    role="user",
                    content=f"{INSTRUCTION}\n\n" + "\n".join(f"- {caption}" for caption in captions),
                )
            ]
            inputs = tokenizer.apply_chat_template(
                talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = tokenizer(
                f"{EXAMPLES}Captions: {' | '.join(captions)}\nOne caption:", return_tensors="pt"
            )
        inputs = {key: inputs[key].to(device) for key in ("input_ids", "attention_mask")}
        end = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        tokens = network.generate(**inputs, max_new_tokens=60, do_sample=False, pad_token_id=end)
        answer = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        return answer.splitlines()[0].strip() if answer else ""

    return rewrite


def caption(args, model):
    """What each image shows: written by the decoder, found among the training captions, made of these by a language model."""
    from models.dataset import open_image

    files = expand(args.image)
    decoder = load_decoder(args, model)
    captions, memory = model.memory(args.cache)
    rewrite = load_llm(args.llm, model.predictor.mean.device) if args.llm else None
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), 32):
            batch = files[start : start + 32]
            predicted = model.encode_image(list(pool.map(open_image, batch))).cpu()  # (B, Dt)
            written = decoder.write(predicted, args.beams) if decoder else [None] * len(batch)
            agreed = consensus(predicted, memory)
            scores, found = (predicted @ memory.T).topk(min(max(args.nearest, 5), len(memory)))  # (B, K)
            for i, file in enumerate(batch):
                print(file)
                if written[i] is not None:
                    print(f"  written    {written[i]}")
                if rewrite:
                    print(f"  rewritten  {rewrite([captions[c] for c in found[i].tolist()])}")
                print(f"  consensus  {captions[agreed[i]]}")
                for score, c in list(zip(scores[i].tolist(), found[i].tolist()))[: args.nearest]:
                    print(f"  {score:9.4f}  {captions[c]}")
    return 0


def words(text):
    """A caption as the metrics read it: lower case, runs of letters and digits with apostrophes inside, one space between. Not
    the Penn Treebank tokeniser of the literature, which needs Java and also cuts "dog's" in two."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def counts(written, references):
    """(N, 10) and (N,) float64: what BLEU-4 adds up over images (matches of 1 to 4 words, n-grams of 1 to 4 words, length, length of
    the nearest reference) and CIDEr-D, of N texts against N lists of references; document frequencies come from these."""
    import numpy as np
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider

    if len(references) < 2:
        raise ValueError(
            f"{len(references)} images; CIDEr weighs words by how few images they stand for, so it needs two or more"
        )
    written, references = (
        [words(text) for text in written],
        [[words(text) for text in texts] for texts in references],
    )
    bleu = BleuScorer(n=4)
    for text, texts in zip(written, references):
        bleu += (text, texts)
    rows = [
        [*c["correct"], *c["guess"], c["testlen"], min((abs(r - c["testlen"]), r) for r in c["reflen"])[1]]
        for c in bleu.ctest
    ]
    _, cider = Cider().compute_score(
        dict(enumerate(references)), {i: [text] for i, text in enumerate(written)}
    )
    return np.array(rows, float), cider


def bleu4(totals):
    """BLEU-4, 0 to 1, of (..., 10) sums of the rows of `counts`."""
    import numpy as np

    matches, grams, length, reference = totals[..., :4], totals[..., 4:8], totals[..., 8], totals[..., 9]
    precision = np.exp(np.log(np.maximum(matches, 1e-15) / np.maximum(grams, 1e-9)).mean(-1))
    return precision * np.exp(np.minimum(0, 1 - reference / np.maximum(length, 1e-9)))


def intervals(rows, cider, seed=0):
    """[(value, lower, upper)] of BLEU-4 and CIDEr-D in percent, with the 95 % interval of a bootstrap over images."""
    import numpy as np

    weights = np.random.default_rng(seed).multinomial(
        len(cider), np.full(len(cider), 1 / len(cider)), RESAMPLES
    )  # (R, N)
    both = ((bleu4(rows.sum(0)), bleu4(weights @ rows)), (cider.mean(), weights @ cider / len(cider)))
    return [(100 * value, *(100 * np.quantile(sample, (0.025, 0.975)))) for value, sample in both]


def score(args, model):
    """BLEU-4 and CIDEr-D of what is written and found, between the floor and people."""
    from models.dataset import VisionTextDataset
    from models.features import encode_archive

    trained_on, recipe = set(model.state["trained_on"]), model.state["recipe"]
    dataset = VisionTextDataset(
        args.csv, None, args.images or recipe["images"], args.image_column, args.caption_column, args.skip_bad
    )
    seen = len(trained_on & set(dataset.image_names))
    if args.held_out:
        dataset.keep(set(dataset.image_names) - trained_on)
    elif seen:
        print(
            f"note: {seen} of these {len(dataset.image_names)} images were trained on, which flatters; add --held-out to leave them out"
        )
    decoder = load_decoder(args, model)
    captions, memory = model.memory(args.cache)
    predicted = model.predict(
        encode_archive(dataset, model.vision, model.text, args.cache, quiet=args.quiet).image
    ).cpu()  # (N, Dt)
    references = [[] for _ in dataset.image_names]
    for text, image in zip(dataset.captions, dataset.image_of):
        references[image].append(text)
    draw = random.Random(args.seed)
    texts = {
        "a random training caption": [draw.choice(captions) for _ in references],
        "nearest training caption": [captions[i] for i in (predicted @ memory.T).argmax(1)],
        f"consensus of the {NEIGHBOURS} nearest": [captions[i] for i in consensus(predicted, memory)],
    }
    began = time.perf_counter()
    if decoder:
        texts["decoder"] = decoder.write(predicted, args.beams)
    seconds = time.perf_counter() - began
    results = {name: counts(written, references) for name, written in texts.items()}
    several = [r for r in references if len(r) > 1]
    if len(several) > 1:
        fewer = f"a person ({min(map(len, several)) - 1} references)"
        results[fewer] = counts([r[0] for r in several], [r[1:] for r in several])

    print(
        f"{args.csv}: {len(references)} images, {len(dataset.captions)} captions; {args.run}, {len(captions)} training captions"
    )
    print(f"{'':34} BLEU-4   95 % interval   CIDEr-D   95 % interval")

    def line(name, rows, cider):
        (b, *b_range), (c, *c_range) = intervals(rows, cider, args.seed)
        print(
            f"{name:34} {b:6.1f}   {b_range[0]:5.1f} - {b_range[1]:5.1f}   {c:7.1f}   {c_range[0]:5.1f} - {c_range[1]:5.1f}"
        )

    for name, (rows, cider) in results.items():
        line(name, rows, cider)
    if decoder:
        gain = intervals(
            results["decoder"][0], results["decoder"][1] - results["nearest training caption"][1], args.seed
        )[1]
        print(
            f"decoder minus nearest caption: CIDEr-D {gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f}); written in {seconds:.0f} s"
        )
    print("published, other data sets (COCO; Flickr30k), CLIP's towers, another tokeniser: BLEU-4 / CIDEr")
    for name, figures in PUBLISHED.items():
        print(f"  {name:32} " + ";   ".join(f"{b:5.1f} / {c:5.1f}" for b, c in figures))
    return 0


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        for name, least in dict(
            epochs=0, batch_size=1, width=4, layers=1, vocab=257, beams=1, nearest=0
        ).items():
            if getattr(args, name, least) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give {least} or more")

        from models.vljepa import VLJEPA

        model = VLJEPA.load(args.run, args.device)
        return dict(train=train, caption=caption, score=score)[args.command](args, model)
    except (OSError, ValueError) as error:
        print(f"decode: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndecode: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
