"""One room per family of file formats, with one inner plan: files, graph, quantize, prune, train."""
