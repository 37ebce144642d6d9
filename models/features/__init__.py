"""Run the frozen towers once.

    features = encode_archive(dataset, vision, text, cache="features.sqlite")
    features.image     (N, Dv) float32   one unit row per image
    features.text      (M, Dt) float32   one unit row per caption or answer
    features.image_of  (M,)    int64     the image each text belongs to

Rows are kept in one SQLite file under a key of the tower (weights, preprocessing) and the content of the
image file or text. So only what is new is encoded: a renamed, copied or touched image is not, a changed one
is. Each batch is one transaction: a killed run keeps what it has encoded, and two runs at once share the
file."""

from .ahead import encode_ahead, frames_for
from .archive import Encoded, Features, encode_archive, encode_files, encode_texts, encode_tokens

__all__ = [
    "Encoded",
    "Features",
    "encode_ahead",
    "encode_archive",
    "encode_files",
    "encode_texts",
    "encode_tokens",
    "frames_for",
]
