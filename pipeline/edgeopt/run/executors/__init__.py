"""One file per engine that carries tasks out."""
