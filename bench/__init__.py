"""The benchmark: our Trainer beside plain Keras and, if asked, PyTorch, Lightning and bare JAX."""
