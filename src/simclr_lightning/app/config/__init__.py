"""KEY=VALUE in, one checked configuration out; without torch.

``quoting`` protects paths, ``grammar`` reads overrides, ``composition`` composes them with conf/, ``unknown_keys`` and
``near_names`` answer mistyped keys, ``keys`` is the table of all keys with the ``rules`` of their values, ``validate``
checks a configuration by it, ``targets`` lists what may be instantiated, ``instantiate`` does it, ``plain`` converts.
"""
