"""Questions made from captions: rules.py has the words, reading.py reads a caption, evidence.py
compares the captions of one image, asking.py asks."""
