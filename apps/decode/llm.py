"""A causal language model that makes one caption of several."""

INSTRUCTION = (
    "These captions were found for one photograph. "
    "Write the one caption that most of them agree on, and nothing else."
)
EXAMPLES = """Captions: A dog runs on the beach. | Two dogs play in the sand. | A brown dog runs by the sea.
One caption: A brown dog runs on the beach.

Captions: A man climbs a rock. | A climber hangs from a cliff. | A woman on a mountain.
One caption: A climber hangs from a rock face.

"""


class LanguageModel:
    """A model of the Hugging Face hub, or of a folder. Its weights have to be safetensors, and none of its
    own code is run. Raises OSError when `name` is no folder, not cached and cannot be fetched."""

    def __init__(self, name, device):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        network = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        self.network = network.to(device).eval()

    def summarise(self, captions):
        """One caption, str, for the captions of one image."""
        inputs = self._prompt(captions)
        inputs = {key: inputs[key].to(self.network.device) for key in ("input_ids", "attention_mask")}
        end = self.tokenizer.pad_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        tokens = self.network.generate(**inputs, max_new_tokens=60, do_sample=False, pad_token_id=end)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        lines = self.tokenizer.decode(new, skip_special_tokens=True).strip().splitlines()
        return lines[0].strip() if lines else ""

    def _prompt(self, captions):
        """Token tensors: an instruction in the model's own template when it has one, else examples to go on
        from."""
        if not self.tokenizer.chat_template:
            text = f"{EXAMPLES}Captions: {' | '.join(captions)}\nOne caption:"
            return self.tokenizer(text, return_tensors="pt")
        text = f"{INSTRUCTION}\n\n" + "\n".join(f"- {caption}" for caption in captions)
        return self.tokenizer.apply_chat_template(
            [dict(role="user", content=text)],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
