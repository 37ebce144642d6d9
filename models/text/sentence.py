"""Any sentence-transformers model."""


class SentenceTower:
    """The model in a local folder, on `device`: called with M texts it gives rows (M, Dt)."""

    def __init__(self, path, device):
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading takes a tenth of a second
        model = SentenceTransformer(str(path), device=str(device), local_files_only=True)
        self.path = path
        self.model = model.eval().requires_grad_(False)

    def __call__(self, texts):
        return self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)

    def tokens(self, texts):
        """M texts -> a list of M (T, Dk): the states of the tokens of each, without padding. ValueError for a
        model without a transformer, which has none."""
        found = self.model.encode(texts, output_value=None, show_progress_bar=False)
        if "token_embeddings" not in found[0]:
            advice = "questions need a text tower with a transformer"
            raise ValueError(f"{self.path}: a model without token states; {advice}")
        return [one["token_embeddings"][one["attention_mask"].bool()] for one in found]
