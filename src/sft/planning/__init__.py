"""make estimate: memory, time and disk of a training run; and checks of params, data and machine before it."""
