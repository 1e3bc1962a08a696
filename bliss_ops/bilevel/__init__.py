"""The bilevel method: objective, hypergradient, one outer step, the training of a score model."""
