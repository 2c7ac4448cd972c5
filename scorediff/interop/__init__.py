"""Reading and writing published checkpoint layouts, as tables of names; no pickle, no torch."""
