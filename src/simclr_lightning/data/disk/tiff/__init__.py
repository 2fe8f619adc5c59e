"""TIFF kinds that Pillow does not open, or gets wrong in silence (inverted, one band of many, the upper 8 bits).

`page` parses the tags of the first page, `kinds` decides which pages are read by Pillow, by `samples`, or refused, and
what their samples mean, `samples` reads the samples of any depth and layout.
"""
