"""AnnotatedSet pictures: boxes, outlines and class maps, in the forms in which people keep them.

Read in this order: ``raw`` (what a reader gives), one reader for each form (``coco``, ``voc``, ``yolo``, ``table``,
``masks``), ``rules`` (what is done about what is wrong), ``forms`` (which reader a folder wants). Nothing is imported
here.
"""
