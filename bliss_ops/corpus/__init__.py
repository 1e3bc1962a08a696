"""Source shards to documents, documents to packed sequences, sequences back; the embedded corpus and the validation set."""
