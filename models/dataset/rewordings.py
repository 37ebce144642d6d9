"""Other wordings of a question, to train on: a model that saw one wording alone stumbles over the next
person's.

>>> reworded("What color is the car?")[0]
'Which color is the car?'
"""

import re

# A pattern, and the wordings that take its place. Wordings that the tests use are not among them.
RULES = (
    (
        r"(?:What|Which) colou?r (is|are) (.+)",
        "Which color {0} {1}",
        "What is the color of {1}",
        "{1} {0} what color",
    ),
    (r"Is there (an? .+)", "Can you see {0}", "Does the picture show {0}", "Is {0} visible"),
    (r"Are there (.+)", "Can you see {0}", "Does the picture show {0}", "Are {0} visible"),
    (
        r"How many (.+) are there",
        "What is the number of {0}",
        "How many {0} can you see",
        "{0}: how many are there",
    ),
    (
        r"What (is|are) (.+) doing",
        "What {0} {1} busy with",
        "Which activity {0} {1} doing",
        "{1} {0} doing what",
    ),
    (r"Who is (\w+ing)", "Which person is {0}", "Who is it that is {0}", "Who can you see {0}"),
    (r"Where is this", "What place is this", "Where was this taken", "Where does this take place"),
    (
        r"Where (is|are) (the .+)",
        "In what place {0} {1}",
        "Where can you see {1}",
        "What is the location of {1}",
    ),
)


def reworded(question):
    """A list of other wordings of a question, empty for one that no rule knows."""
    for pattern, *wordings in RULES:
        found = re.fullmatch(rf"{pattern}\s*\?", question, re.IGNORECASE)
        if found:
            texts = [wording.format(*found.groups()) + "?" for wording in wordings]
            return [text[0].upper() + text[1:] for text in texts if text.lower() != question.lower()]
    return []
