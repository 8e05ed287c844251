"""From the text of a recipe to a plan: document, resolve, planner. Nothing is built here."""
