"""Calls of everything public with values of every kind: each works, or raises one FinwidthError."""
