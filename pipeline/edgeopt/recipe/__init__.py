"""From a recipe's text to a plan: document, resolve, planner. Pure: nothing is built here."""
