"""The files next to the model in a bundle: model card, golden vectors, firmware kit, example programs."""
