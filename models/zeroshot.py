"""Zero-shot classification: from labels to class embeddings, from class embeddings to scores."""

import torch.nn.functional as F

# OpenAI's CLIP notebook: these seven give most of what its 80 prompts gain on ImageNet.
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
    """(C, D) unit rows: the mean over templates of each label's prompts, scaled to norm 1. `encode_text` maps
    a list of C * T str to (C * T, D) and is called once."""
    rows = encode_text([template.format(label) for label in labels for template in templates])
    return F.normalize(rows.view(len(labels), len(templates), -1).mean(1), dim=-1)  # (C, D)


def classify(predicted, classes):
    """Cosine scores (B, C) of predicted (B, D) and classes (C, D), both unit rows."""
    return predicted @ classes.T
