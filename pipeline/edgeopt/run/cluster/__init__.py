"""Tasks that run on other machines: their files go through the store, all else is small."""
