"""The files next to the model in a bundle: model card, golden vectors, C for firmware, example programs."""
