"""Starter recipes: what a model, its data and a purpose say about the recipe, and its text."""
