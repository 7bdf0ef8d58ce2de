"""params.yaml: schema, reading, and explanations of what is wrong with it."""
