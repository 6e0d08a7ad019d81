"""Ali-CCP from its archives to packed splits, in one pass over the compressed text.

The story, in the order of the files: ``archives`` finds the four text files and streams them,
``tokenise`` turns blocks of lines into numbers, ``staging`` keeps those on disk, ``vocabulary``
counts and numbers ids, ``prepare`` joins both sides and writes the splits. ``fields`` and
``protocols`` say what the columns mean and which of them a protocol takes; ``simulate`` writes
archives of the same format; ``mirror`` reads the two processed files of the public mirror.
"""
