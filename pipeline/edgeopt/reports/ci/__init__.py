"""What a run says in a pull request: a comment, annotations at lines of the recipe, GitLab's code quality."""
