"""How each published class is run on a recorded case: one file a family."""
