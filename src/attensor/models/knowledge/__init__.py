"""Knowledge graphs: scorers of triples, and the Tensor Brain, which decodes perception and memory into them."""
