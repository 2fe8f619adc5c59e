"""The kinds of faults that faults.py provokes, one module for each.

`child` runs the program in a forked process. `saves` and `chains` kill processes, and `signals` stops them. `flips`
damages checkpoints. `inputs` passes malformed command lines (`values`, `commands`) and malformed data (`files`).
`hostile` passes checkpoints and configurations that would run code. `nan` puts NaN and infinity into gradients. A kind
is a function of the number of trials and an empty folder, which is the current one; it yields a text for every failure.
"""
