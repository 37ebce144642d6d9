import pytest
import torch
import torch.nn.functional as F

from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify
from tests.conftest import Letters

LABELS = ["dog", "cat", "a red {} bus"]


@pytest.mark.parametrize("templates", [PLAIN, TEMPLATES, TEMPLATES * 2, TEMPLATES + TEMPLATES[:1]])
def test_class_embeddings_equal_the_naive_loop_in_one_call(templates):
    text, calls = Letters(), []
    found = class_embeddings(lambda texts: calls.append(texts) or text.encode(texts), LABELS, templates)
    assert len(calls) == 1 and found.shape == (3, 26)
    for row, label in zip(found, LABELS):
        prompts = [template.replace("{}", label, 1) for template in templates]
        mean = sum(text.encode([prompt])[0] for prompt in prompts) / len(prompts)
        torch.testing.assert_close(row, mean / mean.norm())


def test_labels_are_plain_unless_templates_are_given():
    torch.testing.assert_close(class_embeddings(Letters().encode, LABELS), Letters().encode(LABELS))


def test_templates_are_distinct_and_hold_one_place_each():
    assert len(set(TEMPLATES)) == 7 and all(template.count("{}") == 1 for template in TEMPLATES)


def test_scores_are_cosines_in_the_order_of_the_classes():
    classes, predicted = Letters().encode(["dog", "cat"]), Letters().encode(["cat", "dog", "cart"])
    expected = F.cosine_similarity(predicted[:, None], classes[None], dim=-1)
    torch.testing.assert_close(classify(predicted, classes), expected)
    assert expected.argmax(1).tolist() == [1, 0, 1]
