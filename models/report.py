"""Numbers in, PNG out. Figures are made without pyplot, so a notebook's own backend is left alone."""


def curves(history, chance, path):
    """Losses left; held-out R@1 both ways beside chance right. `history` is what log.jsonl holds, a dict an epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    for key, label in (("train_loss", "training captions"), ("val_loss", "held-out captions")):
        if key in history[-1]:
            left.plot(epochs, [entry[key] for entry in history], "o-", markersize=3, label=label)
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    for key, label in (
        ("text_retrieval_recall@1", "image to text"),
        ("image_retrieval_recall@1", "text to image"),
    ):
        if key in history[-1]:
            (line,) = right.plot(
                epochs, [100 * entry[key] for entry in history], "o-", markersize=3, label=label
            )
            right.axhline(100 * chance[key], linestyle=":", color=line.get_color(), label=f"{label}, chance")
            right.legend()
    right.set(xlabel="epoch", ylabel="held-out R@1, %", ylim=(0, None))
    figure.savefig(path, dpi=100)


def confusion(counts, names, path):
    """counts (C, C), row the true class, column the predicted, shown as shares of the row."""
    from matplotlib.figure import Figure

    side = min(3 + 0.25 * len(names), 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(counts / counts.sum(1, keepdim=True).clamp_min(1), vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    axis.set_xticklabels(names, rotation=90)
    axis.set_yticklabels(names)
    figure.colorbar(shown, label="share of the true class")
    figure.savefig(path, dpi=100)
