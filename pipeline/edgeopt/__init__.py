"""edgeopt: make trained models smaller and faster without losing accuracy, and prove it."""
