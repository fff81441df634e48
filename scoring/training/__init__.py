"""How a model is learned: point-in-time rows, the trained nets' loop, every model by name."""
