"""Before a run: estimates of memory, time and disk, and checks of params, data and machine."""
