"""What a pull request shows of a run: a comment, annotations at lines of the recipe, code quality."""
