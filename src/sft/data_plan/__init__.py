"""make plan: what a blend will be, from range reads, before it is downloaded."""
