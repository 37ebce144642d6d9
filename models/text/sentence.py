"""Any sentence-transformers model."""


def load_sentence_transformer(path, device):
    """A function from M texts to rows (M, dim) on `device`, of the model in a local folder."""
    from functools import partial

    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a tenth of a second
    model = SentenceTransformer(str(path), device=str(device), local_files_only=True)
    model.eval().requires_grad_(False)
    return partial(model.encode, convert_to_tensor=True, show_progress_bar=False)
