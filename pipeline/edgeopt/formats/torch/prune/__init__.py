"""Removing channels and weights."""
