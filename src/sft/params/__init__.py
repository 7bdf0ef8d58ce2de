"""params.yaml: the schema of each section, reading, and explanations of what is wrong."""
