"""What a value model has to beat, fitted in the same run."""
