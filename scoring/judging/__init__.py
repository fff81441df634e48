"""How good values are: protocol T, its measures, and what a model has to beat."""
