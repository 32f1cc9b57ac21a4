"""Rooms of ``wsss.report``: reading a run folder, and the sections of its page."""
