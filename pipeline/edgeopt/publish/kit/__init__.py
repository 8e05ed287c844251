"""What a bundle holds beside the model: a card, golden vectors, C for firmware, example programs."""
