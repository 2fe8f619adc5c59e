"""Turn the overrides KEY=VALUE of a command line into one checked configuration, without importing torch.

``quoting`` quotes the values of path keys. ``grammar`` parses overrides, and ``composition`` composes them with conf/.
``unknown_keys`` refuses mistyped keys; ``near_names`` finds the nearest real name. ``keys`` lists every key with a rule
of ``rules``, and ``validate`` checks a configuration against it. ``targets`` lists the classes that a configuration may
instantiate, and ``instantiate`` makes their objects. ``plain`` converts configurations to plain containers and back.
"""
