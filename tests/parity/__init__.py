"""Replays recorded outputs of the field's own code: python -m tests.parity DIR"""
