"""models/zeroshot.py against a plain loop, with an encoder whose rows can be worked out by hand."""

import torch
import torch.nn.functional as F

from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify

LABELS = ["dog", "cat", "a red {} bus"]


def encode(texts):
    """Unit rows (M, 26): the letter counts of each text."""
    return F.normalize(
        torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts]), dim=-1
    )


def test_class_embeddings_equal_the_naive_loop():
    """Catches templates and labels mixed up in the reshape: each class has to be averaged over its own prompts."""
    found = class_embeddings(encode, LABELS, TEMPLATES)
    for row, label in zip(found, LABELS):
        prompts = [template.replace("{}", label, 1) for template in TEMPLATES]
        mean = sum(encode([prompt])[0] for prompt in prompts) / len(prompts)
        torch.testing.assert_close(row, mean / mean.norm())


def test_class_embeddings_are_unit_rows():
    """Catches averages that are shorter than 1, by another length for each class, which shifts scores between classes."""
    for templates in (PLAIN, TEMPLATES):
        found = class_embeddings(encode, LABELS, templates)
        assert found.shape == (3, 26)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_plain_template_leaves_labels_as_they_are():
    """Catches a prompt put around labels that were asked for as typed."""
    torch.testing.assert_close(class_embeddings(encode, LABELS), encode(LABELS))


def test_each_template_counts_once():
    """Catches a template that is skipped or counted twice: doubling the whole list changes nothing, doubling one does."""
    found = class_embeddings(encode, LABELS, TEMPLATES)
    torch.testing.assert_close(class_embeddings(encode, LABELS, TEMPLATES * 2), found)
    assert not torch.allclose(class_embeddings(encode, LABELS, TEMPLATES + TEMPLATES[:1]), found)


def test_templates_hold_one_place_each():
    """Catches a template that forgets its label, and would say the same of every class."""
    assert len(set(TEMPLATES)) == 7 and all(template.count("{}") == 1 for template in TEMPLATES)


def test_encoder_is_called_once():
    """Catches a call an image tower's worth of time for each label: all prompts go in one list of C * T."""
    calls = []
    class_embeddings(lambda texts: calls.append(texts) or encode(texts), LABELS, TEMPLATES)
    assert [len(texts) for texts in calls] == [len(LABELS) * len(TEMPLATES)]


def test_classify_scores_are_cosines_in_the_order_of_the_classes():
    """Catches a transposed product: row b, column c is image b against class c."""
    classes, predicted = encode(["dog", "cat"]), encode(["cat", "dog", "cart"])
    scores = classify(predicted, classes)
    assert scores.shape == (3, 2)
    for b in range(3):
        for c in range(2):
            torch.testing.assert_close(scores[b, c], F.cosine_similarity(predicted[b], classes[c], dim=0))
    assert scores.argmax(1).tolist() == [1, 0, 1]
