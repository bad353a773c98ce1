"""Models by name: what can be had, where it lies, fetching it, sharing it.

``table`` says what there is and ``names`` where it lies on this machine; both are known to
everything that takes a model directory. ``remote``, ``digests``, ``fetch`` and ``sharing`` bring
models here and send them away; only the command line needs these.
"""
