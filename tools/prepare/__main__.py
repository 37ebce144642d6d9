"""Convert the official files of published data sets into the CSVs of this project.

Captions, for train.py:

    python -m tools.prepare flickr8k captions.txt --images Images
    python -m tools.prepare flickr8k Flickr8k.token.txt --split Flickr_8k.trainImages.txt --out data/train
    python -m tools.prepare flickr30k results.csv --images flickr30k_images
    python -m tools.prepare coco captions_train2017.json --images train2017
    python -m tools.prepare karpathy dataset_coco.json --images coco --split train+restval --out data/train
    python -m tools.prepare msrvtt MSRVTT_data.json --images videos --split train+validate
    python -m tools.prepare msrvtt MSRVTT_JSFUSION_test.csv --images videos --out data/1ka
    python -m tools.prepare msvd AllVideoDescriptions.txt --images YouTubeClips --split test_list.txt

This writes caption.csv (every caption) and unique_caption.csv (the first caption of each image). The last
three are videos; `python eval.py --csv data/1ka/caption.csv --images videos` gives their recall@k.

Questions with answers:

    python -m tools.prepare vqav2 v2_OpenEnded_mscoco_val2014_questions.json \\
        v2_mscoco_val2014_annotations.json --images val2014 --out data/vqav2
    python -m tools.prepare gqa testdev_balanced_questions.json --images images
    python -m tools.prepare clevr CLEVR_val_questions.json --images images/val
    python -m tools.prepare tallyqa test.json --images tallyqa
    python -m tools.prepare pope coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json
    python -m tools.prepare vizwiz val.json --images val
    python -m tools.prepare cocoqa cocoqa-2015-05-17/test --images val2014

This writes questions.csv with a row image_name,question,answer,type for each right answer; of VQAv2 and
VizWiz for each annotator's answer, so that equal rows are counts.
"""

import sys
from argparse import BooleanOptionalAction
from pathlib import Path

from models import script

from . import captions, questions


def prepare(args):
    """Convert the files, and print what was done. Raises ValueError or OSError with the way out."""
    convert = captions.convert if args.format in captions.READERS else questions.convert
    print(*convert(args), sep="\n")


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    p = script.parser("python -m tools.prepare", __doc__)
    p.add_argument("format", choices=[*captions.READERS, *questions.READERS], help="the data set")
    p.add_argument(
        "source",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="the official file; vqav2: the questions and the annotations; cocoqa: the folder of a split; "
        "gqa, clevr, tallyqa, pope, vizwiz: one file or several",
    )
    p.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images or videos; rows of those not in it are dropped",
    )
    p.add_argument(
        "--split",
        help="coco, karpathy, msrvtt: a split, or several as a+b; all captions: a file with a list of names",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the CSVs (default: that of SOURCE)")
    p.add_argument(
        "--overwrite", action=BooleanOptionalAction, default=False, help="replace CSVs that exist already"
    )
    args = p.parse_args(argv)
    return script.run("prepare", lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
