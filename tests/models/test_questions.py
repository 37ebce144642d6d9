"""Questions: their rows, their places, the predictor that takes them, and how often it is right."""

import pytest
import torch
import torch.nn.functional as F

from models import answering
from models.dataset import Row, VisionTextDataset, read_questions
from models.features import encode_archive, encode_tokens
from models.features.cache import opened
from models.features.places import path_of
from models.features.questions import Tokens, encode_questions
from models.losses import answer_bank
from models.predictor import Predictor, QueryPredictor, coordinates, mirror
from tests.conftest import Letters, Pixels, make_archive, write_csv

HEADER = ("image_name", "question", "answer", "type")
ROWS = [
    ("000.jpg", "What is it?", "a disc", "what"),
    ("000.jpg", "What is it?", "a circle", "what"),
    ("000.jpg", "What is it?", "a disc", "what"),
    ("001.jpg", "What is it?", "a disc", "what"),
    ("001.jpg", "Is it red?", "no", "color"),
    ("003.jpg", "Is it red?", "yes", "color"),
]


class Places(Pixels):
    """An image tower with four places of three numbers: the mean colors of the quarters."""

    places_dim = 3

    def encode(self, images, places=False):
        rows = super().encode(images)
        if not places:
            return rows
        return rows, F.adaptive_avg_pool2d(images, 2).flatten(2).mT  # (B, 4, 3)


@pytest.fixture
def asked(tmp_path):
    """(questions file, folder of images)."""
    archive = make_archive(tmp_path / "archive", count=4)
    return write_csv(tmp_path / "questions.csv", ROWS, HEADER), archive.images


def dataset_of(asked):
    path, images = asked
    return VisionTextDataset(path, None, images, rows=read_questions(path))


def encode(asked, cache, tower=None):
    return encode_archive(dataset_of(asked), tower or Places(), Letters(), cache, quiet=True, places=True)


def test_questions_file_is_read_with_types_and_captions_between(tmp_path):
    path = write_csv(tmp_path / "q.csv", [*ROWS[:1], ("000.jpg", "", "a caption", "")], HEADER)
    question, caption = read_questions(path)
    assert (question.question, question.text, question.type) == ("What is it?", "a disc", "what")
    assert (caption.question, caption.text, caption.line) == ("", "a caption", 3)
    untyped = write_csv(tmp_path / "u.csv", [row[:3] for row in ROWS], HEADER[:3])
    assert {row.type for row in read_questions(untyped)} == {""}


def test_dataset_keeps_questions_out_of_its_captions(asked):
    dataset = dataset_of(asked)
    assert len(dataset) == 0 and len(dataset.question_rows) == len(ROWS)
    assert dataset.image_names == ["000.jpg", "001.jpg", "003.jpg"]


def test_questions_are_pairs_with_counted_answers(asked, tmp_path):
    features = encode(asked, tmp_path / "f.sqlite")
    questions = features.questions
    assert questions.answers == [{"a disc": 2, "a circle": 1}, {"a disc": 1}, {"no": 1}, {"yes": 1}]
    assert (
        questions.texts == ["What is it?", "Is it red?"] and questions.types == ["what"] * 2 + ["color"] * 2
    )
    assert questions.image_of.tolist() == [0, 1, 1, 2] and questions.question_of.tolist() == [0, 0, 1, 1]
    states = questions.tokens[torch.arange(2)]
    assert states.shape == (2, 3, 26)  # three words each
    assert torch.allclose(states[1], Letters().encode(["Is", "it", "red?"]), atol=1e-3)
    bank = questions.bank()
    assert bank == {"a disc": 3, "a circle": 1, "no": 1, "yes": 1}
    answer_of, share = questions.right(bank)
    assert answer_of.shape == share.shape == (4, 2)
    assert torch.equal(share[0], torch.tensor([2 / 3, 1 / 3])) and share[1].tolist() == [1.0, 0.0]
    assert questions.right({"no": 1})[1].sum() == 1  # what the bank lacks counts nothing
    half = features.of(torch.tensor([False, True, True]))
    assert half.questions.image_of.tolist() == [0, 0, 1]
    assert half.questions.answers == questions.answers[1:]
    assert torch.equal(half.places[torch.tensor([0, 1])], features.places[torch.tensor([1, 2])])


def test_places_are_those_of_the_tower_and_are_encoded_once(asked, tmp_path):
    cache, tower = tmp_path / "f.sqlite", Places()
    features = encode(asked, cache, tower)
    dataset = dataset_of(asked)
    dataset.preprocess = tower.preprocess
    pixels = torch.stack([dataset.pixels(i) for i in range(3)])
    rows, places = tower.encode(pixels, places=True)
    every = torch.arange(3)
    assert features.places.shape == (3, 4, 3) and (features.places[every] - places).abs().max() < 1e-3
    assert (features.image - rows).abs().max() < 1e-3
    again = Places()
    found = encode(asked, cache, again)
    assert again.seen == 0 and torch.equal(found.places[every], features.places[every])


def test_images_whose_rows_alone_are_cached_are_encoded_again_for_their_places(asked, tmp_path):
    encode_archive(dataset_of(asked), Places(), Letters(), tmp_path / "f.sqlite", quiet=True)
    tower = Places()
    encode(asked, tmp_path / "f.sqlite", tower)
    assert tower.seen == 3


def test_damaged_places_are_encoded_again_and_the_others_kept(asked, tmp_path, caplog):
    cache = tmp_path / "f.sqlite"
    every = torch.arange(3)
    whole = encode(asked, cache).places[every]
    with opened(cache) as store:
        path = path_of(store, Places())
    size = path.stat().st_size // 3
    content = bytearray(path.read_bytes())
    content[size + 2] ^= 1
    path.write_bytes(content + b"part of a record")
    tower = Places()
    found = encode(asked, cache, tower)
    assert tower.seen == 1 and torch.equal(found.places[every], whole)
    assert path.name in caplog.text and path.stat().st_size % size == 0


def test_tokens_are_encoded_once_and_then_cached(tmp_path):
    letters = Letters()
    texts = ["What is it?", "Is it red?", "What is it?"]
    found = encode_tokens(texts, letters, tmp_path / "f.sqlite", quiet=True)
    assert [len(states) for states in found] == [3, 3, 3] and letters.seen == 6  # words of two texts
    again = encode_tokens(texts, letters, tmp_path / "f.sqlite", quiet=True)
    assert letters.seen == 6
    assert all((one == other).all() for one, other in zip(found, again))


def test_places_need_a_cache_on_disk(asked):
    with pytest.raises(ValueError, match="--cache"):
        encode(asked, None)


@pytest.fixture
def query():
    torch.manual_seed(0)
    return QueryPredictor(24, 26, 16, 0.0, 0.0, 2, places_dim=3, token_dim=26, known=2).eval()


def inputs(count=5):
    generator = torch.Generator().manual_seed(1)
    shapes = ((count, 24), (count, 4, 3), (count, 6, 26))
    image, places, question = [torch.randn(shape, generator=generator) for shape in shapes]
    question[1::2, 4:] = 0  # shorter ones
    return image, places, question


def test_query_predictor_without_a_question_is_the_predictor_of_captions(query):
    image, places, question = inputs()
    twin = Predictor(24, 26, 16, members=2)
    twin.load_state_dict(query.captions.state_dict())
    assert torch.equal(query(image), twin(image))
    answers = query(image, places, question)
    assert answers.shape == (5, 26) and (answers.norm(dim=1) - 1).abs().max() < 1e-6
    with pytest.raises(ValueError, match="--csv"):
        QueryPredictor(24, 26, 16, 0.0, 0.0, 1, places_dim=3, token_dim=26, captions=False)(image)


def test_answers_depend_on_image_places_their_order_and_question(query):
    image, places, question = inputs()
    answers = query(image, places, question)
    changed = [(image.flip(0), places, question), (image, places.flip(0), question)]
    changed += [(image, places.flip(1), question), (image, places, question.flip(0))]
    for other in changed:
        assert (query(*other) - answers).abs().max() > 1e-4
    assert torch.equal(query.question_only(question), query.question_only(question))


def test_answers_depend_on_the_words_and_not_on_the_padding(query):
    """The mean of the tokens is the same, so only the readers can tell."""
    image, places, question = inputs()
    longer = torch.cat([question, torch.zeros(5, 3, 26)], dim=1)
    answers = query(image, places, question)
    assert (query(image, places, longer) - answers).abs().max() < 1e-6
    other = question.clone()
    other[:, 0] += 1
    other[:, 1] -= 1
    assert (other.sum(1) - question.sum(1)).abs().max() < 1e-5
    assert (query(image, places, other) - answers).abs().max() > 1e-4


def test_tokens_read_like_a_padded_tensor():
    states = [torch.randn(length, 4).half().float() for length in (3, 1, 5)]
    found = Tokens(states)[torch.tensor([1, 0, 1])]
    assert found.shape == (3, 3, 4) and found.dtype == torch.float32
    assert torch.equal(found[1], states[0])
    assert torch.equal(found[0, 0], states[1][0]) and found[0, 1:].abs().max() == 0
    assert Tokens(states)[torch.empty(0, dtype=torch.int64)].shape == (0, 1, 4)


def test_members_have_under_five_million_parameters():
    query = QueryPredictor(1960, 384, 2048, 0.5, 0.5, 1, places_dim=680, token_dim=384)
    assert sum(p.numel() for p in query.answers.parameters()) < 5e6


def test_each_predicts_the_rows_of_a_share():
    """Dropout of a share of a batch is that of the whole batch, where questions share images too."""
    image, places, question = inputs(6)
    image_of = torch.tensor([0, 0, 1, 1, 1, 2])
    answers = QueryPredictor(24, 26, 16, 0.5, 0.5, 2, places_dim=3, token_dim=26).answers
    torch.manual_seed(3)
    whole = answers.each(question, image[:3], places[:3], image_of)
    for rows, own in ((slice(0, 3), slice(0, 2)), (slice(3, 6), slice(1, 3))):
        torch.manual_seed(3)
        inputs_of_share = (question[rows], image[own], places[own], image_of[rows] - own.start)
        part = answers.each(*inputs_of_share, rows=(rows.start, 6), image_rows=(own.start, 3))
        for member, found in zip(whole, part):
            assert (member[rows] - found).abs().max() < 1e-5


def test_each_takes_the_empty_share_of_a_process():
    """The last batch of an epoch may have fewer pairs than there are processes."""
    answers = QueryPredictor(24, 26, 16, 0.5, 0.5, 1, places_dim=3, token_dim=26).answers
    image, places, question = inputs()
    image_of = torch.empty(0, dtype=torch.int64)
    (found,) = answers.each(question[:0, :1], image[:0], places[:0], image_of, rows=(5, 5), image_rows=(3, 3))
    assert found.shape == (0, 26)
    found.sum().backward()


def test_questions_that_share_an_image_are_answered_as_if_each_had_its_own(query):
    image, places, question = inputs()
    image_of = torch.tensor([2, 0, 0, 1, 2])
    shared = query.answers(question, image, places, image_of)
    assert (shared - query(image[image_of], places[image_of], question)).abs().max() < 1e-6


def test_mirror_swaps_left_and_right_where_it_is_asked_to():
    places = torch.arange(18.0).view(2, 9, 1)
    found = mirror(places, torch.tensor([False, True]))
    assert torch.equal(found[0], places[0])
    assert found[1, :, 0].tolist() == [11, 10, 9, 14, 13, 12, 17, 16, 15]


MIRRORED = [  # question, answer, the answer about the mirrored image
    ("Which side?", "left", "right"),
    ("Is it left or right?", "right", "left"),
    ("Where?", "on the Left", None),  # no answer says "on the right"
    ("What is it?", "a disc", "a disc"),
    ("Is it left of the disc?", "no", None),  # the answer may change
    ("Is it bright?", "no", "no"),
]


def test_answers_about_the_mirrored_image_swap_left_and_right():
    rows = [Row(f"{i}.jpg", question, answer, i) for i, (question, answer, _) in enumerate(MIRRORED)]
    questions = encode_questions(rows, [row.image_name for row in rows], Letters().encode_tokens)
    bank = list(questions.bank())
    swapped, has_mirror = questions.mirrored(bank)
    assert has_mirror.tolist() == [other is not None for *_, other in MIRRORED]
    for _, answer, other in MIRRORED:
        assert other in (None, bank[swapped[bank.index(answer)]])


def test_coordinates_tell_left_from_right():
    found = coordinates(torch.zeros(1, 9, 3))[0]  # y, x, ...
    assert found[:, 0].tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert found[:, 1].tolist() == [-1, 0, 1] * 3


def test_answer_bank_is_cross_entropy_with_soft_targets():
    generator = torch.Generator().manual_seed(0)
    predicted = F.normalize(torch.randn(3, 8, generator=generator), dim=1)
    answer = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    answer_of = torch.tensor([[1, 2], [4, 0], [3, 0]])
    share = torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.0, 0.0]])  # the last has no answer in the bank
    target = torch.tensor([[0, 0.75, 0.25, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    naive = F.cross_entropy(10 * predicted @ answer.T, target)
    assert answer_bank(predicted, answer, answer_of, share, 10).item() == pytest.approx(naive.item())


def test_most_frequent_answer_falls_back_to_type_and_then_to_all(asked, tmp_path):
    questions = encode(asked, tmp_path / "f.sqlite").questions
    rows = read_questions(asked[0])
    assert answering.most_frequent(rows, questions) == ["a disc", "a disc", "no", "no"]
    questions.texts[1] = "Is it blue?"  # never seen: its type decides
    assert answering.most_frequent(rows, questions)[2:] == ["no", "no"]
    questions.types[2:] = ["size", "size"]  # nor its type
    assert answering.most_frequent(rows, questions)[2:] == ["a disc", "a disc"]


def test_derangement_gives_every_image_another_one():
    image_of = torch.arange(7)
    for seed in range(5):
        other = answering.derangement(image_of, 7, seed)
        assert (other != image_of).all() and sorted(other.tolist()) == list(range(7))


def test_accuracy_counts_any_answer_of_the_file_and_splits_by_type(asked, tmp_path):
    questions = encode(asked, tmp_path / "f.sqlite").questions
    right = answering.is_right(questions, ["a circle", "a circle", "no", "no"])
    assert right.tolist() == [1, 0, 1, 0]
    assert answering.accuracy(right, questions) == dict(
        accuracy=0.5, accuracy_by_type=dict(color=0.5, what=0.5)
    )
    low, high = answering.intervals(right, questions)["accuracy"]
    assert 0 <= low <= 0.5 <= high <= 1


def test_choose_equals_the_naive_loop(asked, tmp_path, query):
    features = encode(asked, tmp_path / "f.sqlite")
    bank = list(features.questions.bank())
    answer = Letters().encode(bank)
    chosen, scores = answering.choose(query.answers, features, bank, answer)
    questions = features.questions
    for i, found in enumerate(chosen):
        image = questions.image_of[i : i + 1]
        question = questions.tokens[questions.question_of[i : i + 1]]
        with torch.no_grad():
            predicted = query(features.image[image], features.places[image], question)
        cosines = (predicted @ answer.T)[0]
        assert found == bank[int(cosines.argmax())]
        torch.testing.assert_close(scores[i], cosines.max())


def test_official_accuracies_need_the_answers_of_their_data_sets(asked, tmp_path):
    questions = encode(asked, tmp_path / "f.sqlite").questions
    assert answering.official(questions, ["a disc"] * 4) == {}
    yes_no = questions.of(torch.tensor([False, False, True]))
    assert answering.official(yes_no, ["yes"]) == dict(precision=1, recall=1, f1=1, yes_ratio=1)
