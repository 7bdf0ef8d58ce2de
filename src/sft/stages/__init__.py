"""The six stages, one module each: the only code that does a stage's input and output."""
