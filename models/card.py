"""The model card of a shared predictor: what it is, made with which towers, on what, and how good it is.

text = card(state, parameters=918912, results=json.load(open("results.json")))
"""

import os

LOCAL = (
    "cache",
    "run",
    "csv",
    "images",
    "device",
    "workers",
    "encode_batch",
    "quiet",
    "resume",
)  # flags that say where, not what
TEXT = """---
{data}
---

# VL-JEPA, small: {vision[name]} to {text[name]}

A predictor of {parameters:,} parameters that says, in the space of a frozen text tower, what an image means
([VL-JEPA, arXiv 2512.10942](https://arxiv.org/abs/2512.10942)). The towers are not in this folder; loading checks their hashes.

```python
from models.vljepa import VLJEPA

model = VLJEPA.from_pretrained("this folder or repository")
model.classify("photo.jpg", ["a dog", "a cat"])
```

## Towers

| | name | SHA-256 of the weights |
|---|---|---|
| image | {vision[name]} | {vision[sha256]} |
| text | {text[name]} | {text[sha256]} |

## Data

{images:,} images with {captions:,} captions, from `{csv}`. SHA-256 of the names and captions: {digest}.

## Results

{results}

## Recipe

Epoch {epoch} of {epochs}. The flags of train.py:

| flag | value |
|---|---|
{recipe}

## Limits

It knows what its captions said, with their biases. Labels are ranked against each other: the highest score is the best of what
was offered, which may be none of it.
"""


def card(state, parameters, results=None):
    """Markdown. `state` is a checkpoint's dict; `results` what `eval.py --csv ... --json FILE` wrote, by default those of
    the images that train.py held out."""
    from huggingface_hub import ModelCardData

    results, recipe = results or state.get("held_out"), state["recipe"]
    told = "None: no image was held out in training, and no results of `eval.py --json` were given."
    if results:

        def line(name, way):
            cells = []
            for key in (f"{way}_recall@{k}" for k in (1, 5, 10)):
                low, high = results["interval_95"][key]
                cells.append(f"{100 * results['metrics'][key]:.1f} ({100 * low:.1f} to {100 * high:.1f})")
            return f"| {name} | {' | '.join(cells)} |"

        told = (
            f"Hit rate in percent over {results['images']:,} images and {results['captions']:,} captions of {results['dataset']}, with "
            "the 95 % interval of a bootstrap over images:\n\n| | R@1 | R@5 | R@10 |\n|---|---|---|---|\n"
            + line("image to text", "text_retrieval")
            + "\n"
            + line("text to image", "image_retrieval")
        )
    data = ModelCardData(
        language="en",
        library_name="vl-jepa",
        pipeline_tag="zero-shot-image-classification",
        tags=["vl-jepa", "image-text-retrieval", "model_hub_mixin"],
    )
    flags = "\n".join(f"| {key} | {value} |" for key, value in sorted(recipe.items()) if key not in LOCAL)
    return TEXT.format(
        data=data.to_yaml(),
        **state["towers"],
        parameters=parameters,
        images=state["images"],
        captions=state["captions"],
        csv=os.path.basename(recipe["csv"]),
        digest=state["data"],
        results=told,
        epoch=state["epoch"],
        epochs=recipe["epochs"],
        recipe=flags,
    )
