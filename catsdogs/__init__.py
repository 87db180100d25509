"""Fine-tunes an image classifier in JAX: cats and dogs, or any folder."""
