"""Labels to class embeddings, class embeddings to scores."""

import torch.nn.functional as F

# The seven templates that OpenAI's CLIP notebook found to carry most of the 80-prompt ensemble on ImageNet.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
PLAIN = ("{}",)


def class_embeddings(encode_text, labels, templates=PLAIN):
    """(C, D) unit rows: each label put into every template, encoded, averaged, made unit again. `encode_text`
    takes a list of C * T str and gives (C * T, D)."""
    rows = encode_text([template.format(label) for label in labels for template in templates])
    return F.normalize(rows.view(len(labels), len(templates), -1).mean(1), dim=-1)  # (C, D)


def classify(predicted, classes):
    """predicted (B, D), classes (C, D), unit rows -> cosine scores (B, C)."""
    return predicted @ classes.T
