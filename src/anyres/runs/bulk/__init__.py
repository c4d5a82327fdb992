"""Prediction over many files that a kill cannot undo: every image is answered once, on one machine or on many.

``run.py`` comes first. The list of images is cut into parts. A part is the unit of work: a worker answers it, whoever
asked writes it, whole or not at all, into a hidden folder beside the answers; when no part is missing they are joined.
What a part's answers are depends on nothing but its images, so a job that was killed ten times ends in the same bytes.
"""
