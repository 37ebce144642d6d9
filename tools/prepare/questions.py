"""The official questions of VQAv2, GQA, CLEVR, TallyQA, POPE, VizWiz and COCO-QA.

A reader yields one Question for each question of the official files. Several annotators give several answers,
and equal answers stay: their number is the count. docs/questions.md lists the files and the accuracies.
"""

import json
import re
import statistics
from collections import Counter, defaultdict
from typing import NamedTuple

from .shared import account, check_paths, field, load_json, locator, summary, write_csv

HEADER = ("image_name", "question", "answer", "type")
COCOQA = ("questions.txt", "answers.txt", "img_ids.txt", "types.txt")
COCOQA_TYPES = ("object", "number", "color", "location")
# COCO-QA is made from captions, which COCO publishes for these two.
COCOQA_SPLITS = {"train": "train2014", "test": "val2014"}
COMPARISONS = {"equal_integer", "less_than", "greater_than"}  # CLEVR's functions of two numbers


class Question(NamedTuple):
    image_name: str
    text: str
    answers: list[str]
    type: str


def answer(entry, key, kind, place):
    """entry[key], an answer of this kind. The error for a missing one says that test splits have none."""
    if isinstance(entry, dict) and key not in entry:
        raise ValueError(
            f"{place}: no {key!r}; test splits are published without answers, so give a split that has them "
            "(train or val; of GQA also testdev, of TallyQA test)"
        )
    return field(entry, key, kind, place)


def annotators(entry, place):
    """The answers of all annotators, as in VQAv2 and VizWiz."""
    given = answer(entry, "answers", list, place)
    return [field(one, "answer", str, f"{place} answers[{j}]") for j, one in enumerate(given)]


def read_vqav2(sources):
    """v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json, joined by
    question_id. ValueError for an id that only one of them has."""
    asked_file, answered_file = sources
    data = load_json(asked_file)
    split = field(data, "data_subtype", str, asked_file)  # train2014
    asked = {}
    for i, entry in enumerate(field(data, "questions", list, asked_file)):
        place = f"{asked_file} questions[{i}]"
        number = field(entry, "question_id", int, place)
        if number in asked:
            raise ValueError(f"{place}: a second question with question_id {number}; delete one of the two")
        image = f"COCO_{split}_{field(entry, 'image_id', int, place):012d}.jpg"
        asked[number] = (i, image, field(entry, "question", str, place))
    for i, entry in enumerate(field(load_json(answered_file), "annotations", list, answered_file)):
        place = f"{answered_file} annotations[{i}]"
        number = field(entry, "question_id", int, place)
        if number not in asked:
            raise ValueError(
                f"{place}: question_id {number} is not in {asked_file}, or has an annotation already; "
                "give the questions and the annotations of one split"
            )
        _, image, text = asked.pop(number)
        yield Question(image, text, annotators(entry, place), field(entry, "answer_type", str, place))
    if asked:
        number, (i, *_) = next(iter(asked.items()))
        raise ValueError(
            f"{asked_file} questions[{i}]: question_id {number} has no annotation in {answered_file}; "
            "give the questions and the annotations of one split"
        )


def read_gqa(source):
    """train_balanced_questions.json and the like: {id: question}."""
    for number, entry in load_json(source).items():
        place = f"{source} question {number}"
        right = answer(entry, "answer", str, place)
        kind = field(field(entry, "types", dict, place), "structural", str, f"{place} types")
        image = f"{field(entry, 'imageId', str, place)}.jpg"
        yield Question(image, field(entry, "question", str, place), [right], kind)


def clevr_type(function):
    """One of the paper's five question types, from the function that a program ends with.

    >>> [clevr_type(f) for f in ("query_size", "equal_shape", "less_than", "exist")]
    ['query attribute', 'compare attribute', 'compare integer', 'exist']
    """
    if function in COMPARISONS:
        return "compare integer"
    verb = function.partition("_")[0]
    return {"query": "query attribute", "equal": "compare attribute"}.get(verb, function)


def read_clevr(source):
    """CLEVR_val_questions.json and the like. The type is "" where there is no program."""
    for i, entry in enumerate(field(load_json(source), "questions", list, source)):
        place = f"{source} questions[{i}]"
        right = answer(entry, "answer", str, place)
        kind = ""
        if program := entry.get("program"):
            steps = field(entry, "program", list, place)
            last = f"{place} program[{len(program) - 1}]"
            # The generator of the data set writes "type", the published files "function".
            key = "type" if isinstance(steps[-1], dict) and "type" in steps[-1] else "function"
            kind = clevr_type(field(steps[-1], key, str, last))
        image = field(entry, "image_filename", str, place)
        yield Question(image, field(entry, "question", str, place), [right], kind)


def read_tallyqa(source):
    """train.json or test.json, whose image names hold their folder. The type is "" where the file does not
    say which questions are simple."""
    for i, entry in enumerate(load_json(source, list)):
        place = f"{source} [{i}]"
        right = str(answer(entry, "answer", int, place))
        kind = ""
        if entry.get("issimple") is not None:
            kind = "simple" if field(entry, "issimple", bool, place) else "complex"
        image = field(entry, "image", str, place)
        yield Question(image, field(entry, "question", str, place), [right], kind)


def read_pope(source):
    """coco_pope_random.json and the like: one JSON object per line. The type is the setting that the file's
    name tells, or ""."""
    from models.dataset import read_text, split_lines

    setting = re.search("random|popular|adversarial", source.name)
    for number, line in enumerate(split_lines(read_text(source)), 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{place}: expected one JSON object per line ({error}), found {line[:100]!r}; "
                "fix or delete this line"
            ) from None
        right = answer(entry, "label", str, place)
        image, text = field(entry, "image", str, place), field(entry, "text", str, place)
        yield Question(image, text, [right], setting[0] if setting else "")


def read_vizwiz(source):
    """train.json or val.json. An answer "unanswerable" is an answer like any other."""
    for i, entry in enumerate(load_json(source, list)):
        place = f"{source} [{i}]"
        given = annotators(entry, place)
        kind, image = field(entry, "answer_type", str, place), field(entry, "image", str, place)
        yield Question(image, field(entry, "question", str, place), given, kind)


def read_cocoqa(sources):
    """The files COCOQA of one split: line n of each is about question n. The name of their folder, train or
    test, tells which images they are about."""
    from models.dataset import read_text, split_lines

    folder = sources[0].parent.resolve().name
    if folder not in COCOQA_SPLITS:
        raise ValueError(
            f"{sources[0].parent}: the folder of a split is named {' or '.join(COCOQA_SPLITS)}, as in the "
            "official archive; it tells which images of COCO the ids are of"
        )
    columns = [split_lines(read_text(source).rstrip("\r\n")) for source in sources]
    counts = {source.name: len(lines) for source, lines in zip(sources, columns)}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"{sources[0].parent}: the lines of its files do not match: {counts}; unpack it again"
        )
    for number, (text, right, image_id, kind) in enumerate(zip(*columns), 1):
        if not re.fullmatch(r"\s*[0-9]+\s*", image_id):
            raise ValueError(f"{sources[2]}:{number}: expected the id of an image, found {image_id[:100]!r}")
        if kind.strip() not in ("0", "1", "2", "3"):
            raise ValueError(f"{sources[3]}:{number}: expected a type from 0 to 3, found {kind[:100]!r}")
        image = f"COCO_{COCOQA_SPLITS[folder]}_{int(image_id):012d}.jpg"
        yield Question(image, text, [right], COCOQA_TYPES[int(kind)])


def each(read):
    """A reader of several files, one after the other, from a reader of one."""
    return lambda sources: (question for source in sources for question in read(source))


READERS = {
    "vqav2": read_vqav2,
    "gqa": each(read_gqa),
    "clevr": each(read_clevr),
    "tallyqa": each(read_tallyqa),
    "pope": each(read_pope),
    "vizwiz": each(read_vizwiz),
    "cocoqa": read_cocoqa,
}


def files_of(kind, sources):
    """The files to read: SOURCE as given, or for COCO-QA the four files in it. ValueError when they are too
    few or too many."""
    given = ", ".join(map(str, sources))
    if kind == "vqav2" and len(sources) != 2:
        raise ValueError(
            f"{given}: vqav2 takes two files, QUESTIONS ANNOTATIONS; "
            "the test splits are published without annotations, so give those of train or val"
        )
    if kind != "cocoqa":
        return sources
    if len(sources) != 1 or not sources[0].is_dir():
        raise ValueError(f"{given}: cocoqa takes one SOURCE, the folder that holds {', '.join(COCOQA)}")
    return [sources[0] / name for name in COCOQA]


def good_rows(questions, images, notes, kept):
    """Yield a row for each answer of the questions that can be used. Adds the others to `notes`, and each
    good question to `kept` as (image name, number of answers, type)."""
    locate = locator(images, notes)
    for question in questions:
        name, problem = locate(question.image_name.strip())
        text, kind, *answers = (
            " ".join(part.split()) for part in (question.text, question.type, *question.answers)
        )
        good = [one for one in answers if one]
        if not name:
            notes["questions dropped, no image name"].append(text)
        elif not text:
            notes["questions dropped, empty question"].append(name)
        elif problem:
            notes[f"questions {problem}"].append(name)
        elif not good:
            notes["questions dropped, no answer"].append(name)
        else:
            notes["answers dropped, empty"] += [name] * answers.count("")
            kept.append((name, len(good), kind))
            yield from ((name, text, one, kind) for one in good)


def convert(args):
    """Write questions.csv; a list of lines that say what was done. Raises ValueError or OSError with the way
    out."""
    sources = files_of(args.format, args.source)
    path = (args.out or sources[0].parent) / "questions.csv"
    check_paths(sources, args.images, [path], args.overwrite)
    if args.split is not None:
        raise ValueError(f"--split {args.split}: an official file of questions is one split; leave it out")
    notes, kept = defaultdict(list), []

    def rows():
        yield from good_rows(READERS[args.format](sources), args.images, notes, kept)
        if not kept:  # raised while the CSV is written, so an old one stays
            what = f"{sources[0]}: no question is left; check SOURCE and --images {args.images}"
            raise ValueError("\n".join([what, *summary(notes)]))

    write_csv(path, rows(), HEADER)
    names, counts, types = zip(*kept)
    spread = f"min {min(counts)}, median {statistics.median(counts):g}, max {max(counts)}"
    listed = ", ".join(f"{kind or 'none'} {n:,}" for kind, n in Counter(types).most_common())
    return [
        f"{len(set(names)):>9,} images",
        f"{len(names):>9,} questions; by type: {listed}",
        f"{sum(counts):>9,} answers; per question {spread}",
        account(args.source, "questions", len(kept), notes, "questions dropped, "),
        account(args.source, "answers", sum(counts), notes, "answers dropped, "),
        *summary(notes),
        f"written: {path}",
    ]
