"""The transformer: layers, attention, its parameters and where they are, text from it."""
